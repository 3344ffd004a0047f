"""One real SGLang server for the whole run, under `--schedule-policy astraea`, on the real small model."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

from astraea_sglang.serving import Server, start

ADMIN_KEY = "only-for-tests"
SERVER_FLAGS = shlex.split(
    f"--max-total-tokens 8192 --max-running-requests 2 --admin-api-key {ADMIN_KEY} --astraea-reap-after 4 "
    "--tool-call-parser hermes"
)


settings.register_profile("shared machine", deadline=None)  # how fast a test is says nothing there
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def _terminate_politely() -> None:
    # SIGTERM would end pytest without running a fixture's clean-up, and so leave the server to the kernel.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start("smollm2", SERVER_FLAGS, tmp_path_factory.mktemp("server") / "server.log") as running:
        yield running


@pytest.fixture(scope="session")
def server_url(server: Server) -> str:
    return server.url


@pytest.fixture
def client(server_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=120) as client:
        yield client


@pytest.fixture
def quiet_environment() -> dict[str, str]:
    """The environment of a newcomer: no setting of ours, nothing cached in variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ASTRAEA_", "SGLANG_"))}


@pytest.fixture(scope="session")
def model_directory() -> Path:
    from astraea_sglang import smollm2

    return smollm2.build()
