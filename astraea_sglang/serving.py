"""Starting a real SGLang server: what to add to a user's flags, and a server process that never outlives its owner."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from astraea_sglang.errors import ServerError

Settings = dict[str, str | None]  # a flag that takes no value has None
FLAGS: Settings = {"--schedule-policy": "astraea", "--enable-metrics": None, "--enable-cache-report": None}
MIXED: Settings = {"--enable-mixed-chunk": None}  # else every prefill stalls all that decodes: measured, see README
NO_MIXED = "--no-mixed-chunk"  # of `astraea serve`: SGLang has no flag against it
UNMIXED = (NO_MIXED, "--speculative", "--enable-hisparse", "--enable-megamoe-for-layernorm-sp")  # SGLang refuses both
CPU_FLAGS: Settings = {
    "--sleep-on-idle": None,  # an idle scheduler would spin on a core that tools could use
    "--disable-overlap-schedule": None,  # a CPU forward is synchronous: nothing to overlap
}
HICACHE = {"--enable-hierarchical-cache", "--enable-hicache"}  # two spellings of one flag
HICACHE_CPU_FLAGS: Settings = {  # all that torch can copy without a kernel
    "--hicache-io-backend": "direct",
    "--hicache-mem-layout": "layer_first",
}
SMOLLM2_FLAGS: Settings = {"--tool-call-parser": "hermes"}
SMOLLM2_CPU_FLAGS: Settings = {"--max-total-tokens": "32768"}  # 1.4 GiB of KV, not half the machine's memory
CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # leaves cores for clients and tools
SMOLLM2_ENVIRONMENT = {"SGLANG_TOOL_STRICT_LEVEL": "2"}  # else SGLang leaves a tool call's arguments unconstrained


def has_accelerator() -> bool:
    """Is there a device that SGLang would prefer to the CPU?"""
    from astraea_sglang.patches import machine

    return machine.has_accelerator()


def added_flags(flags: Sequence[str], *, cpu: bool, smollm2: bool) -> list[str]:
    """Which flags does `astraea serve` add to the user's own? Never one that the user gave; their order is fixed."""
    given = {flag.split("=", 1)[0] for flag in flags}
    wanted = FLAGS | ({} if any(flag.startswith(UNMIXED) for flag in given) else MIXED)
    wanted |= (CPU_FLAGS if cpu else {}) | (SMOLLM2_FLAGS if smollm2 else {})
    wanted |= SMOLLM2_CPU_FLAGS if cpu and smollm2 else {}
    wanted |= HICACHE_CPU_FLAGS if cpu and HICACHE & given else {}
    pairs = [(flag,) if value is None else (flag, value) for flag, value in wanted.items() if flag not in given]
    return [part for pair in pairs for part in pair]


def added_environment(environment: Mapping[str, str], *, cpu: bool, smollm2: bool) -> dict[str, str]:
    """Which environment variables does `astraea serve` add to the user's own? Never one that is set."""
    wanted = (CPU_ENVIRONMENT if cpu else {}) | (SMOLLM2_ENVIRONMENT if smollm2 else {})
    return {name: value for name, value in wanted.items() if name not in environment}


def flag_value(flags: Sequence[str], name: str, default: str) -> str:
    """What value do the flags give `name`, written as `--x v` or `--x=v`? The last one counts."""
    value = default
    for i, flag in enumerate(flags):
        if flag == name and i + 1 < len(flags):
            value = flags[i + 1]
        elif flag.startswith(name + "="):
            value = flag.split("=", 1)[1]
    return value


def check_port(host: str, port: int) -> None:
    """Raise ServerError when `port` cannot be bound now, half a minute before SGLang would find out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(f"port {port} on {host} is taken ({error.strerror}); choose another: --port N") from error


def free_port() -> int:
    """Which port of 127.0.0.1 is free right now?"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True, slots=True)
class Server:
    """A running SGLang server: where it listens, where it logs, the process that owns all others of it."""

    url: str
    log: Path
    pid: int


def start(model: str | Path, flags: Sequence[str], log: Path) -> AbstractContextManager[Server]:
    """Run `astraea serve MODEL FLAGS` until the block ends; see `run`."""
    return run([sys.executable, "-m", "astraea_sglang.cli", "serve", str(model), *flags], log)


@contextmanager
def run(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, timeout_s: float = 300
) -> Iterator[Server]:
    """Run a server's command on a free port of 127.0.0.1 until the block ends; yield it once it is healthy.

    Its whole process group is killed on the way out, and by the kernel should this process die first (Linux).
    Raises ServerError with the log's last line of reason when it exits or is not healthy within `timeout_s` seconds.
    """
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", log, process.pid)
        _wait_healthy(server, process, timeout_s)
        yield server
    finally:
        _stop(process)


def _wait_healthy(server: Server, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(
                f"the server exited with {process.returncode}: {_reason(server.log)} (whole log: {server.log})"
            )
        try:
            if httpx.get(server.url + "/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    raise ServerError(
        f"the server was not healthy within {timeout_s:g} s: {_reason(server.log)} (whole log: {server.log})"
    )


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("astraea:") or "Error" in line]
    return (telling or lines or ["it printed nothing"])[-1]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # it drains and ends its own children
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):  # what is left of its group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
