"""A server of SGLang's own, HTTP and all, whose forward passes take an emulated device's time: no GPU, real time."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from astraea_sglang.bench.policies import Policy
from astraea_sglang.serving import NO_MIXED, Server, run


@contextmanager
def emulated_server(
    device: str, policy: Policy, log: Path, *, pool_tokens: int, max_running: int, flags: Sequence[str] = ()
) -> Iterator[Server]:
    """Run `astraea serve` on the emulated `device`, a name or a path, until the block ends; see `serving.run`.

    It takes token ids (`input_ids`); how many it answers with is said in patches/emulate.py. `policy` and its settings
    replace ASTRAEA_* variables of the user's shell. Raises ServerError with the server's own reason.
    """
    from astraea_sglang.patches.virtual import MODEL

    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASTRAEA_")}
    environment = kept | {"ASTRAEA_EMULATE": device, "CUDA_VISIBLE_DEVICES": ""}
    size = ["--max-total-tokens", str(pool_tokens), "--max-running-requests", str(max_running)]
    with TemporaryDirectory(prefix="astraea-emulated-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        unmixed = [] if "--enable-mixed-chunk" in policy.flags else [NO_MIXED]  # as a replay does by itself
        model = [folder, "--load-format", "dummy", "--skip-tokenizer-init", *size, *policy.flags, *unmixed, *flags]
        with run([sys.executable, "-m", "astraea_sglang.cli", "serve", *model], log, environment=environment) as server:
            yield server
