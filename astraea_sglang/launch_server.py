"""`python -m astraea_sglang.launch_server`: `python -m sglang.launch_server` with `astraea` as the default policy."""

import sys

from astraea_sglang.errors import AstraeaError


def main(argv: list[str]) -> None:
    """Run a server with SGLang's own flags until it is stopped; a bad flag or a taken port ends it with one line."""
    from astraea_sglang.patches.launch import launch

    try:
        launch(argv)
    except AstraeaError as error:
        raise SystemExit(f"astraea: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
