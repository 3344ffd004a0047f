import pytest


@pytest.fixture(scope="session", autouse=True)
def _hooked() -> None:
    """SGLang with our hooks in this process, put there by SGLang's own loader."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
