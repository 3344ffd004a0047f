"""Seven real clients that know nothing of astraea, against the real server, and what it saw of them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.clients import run
from examples.clients.run import Account, compare
from tests.conftest import ADMIN_KEY

NO_CLIENTS = pytest.mark.skipif(not run.PYTHON.exists(), reason="no .venv-clients; type: make examples")
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "required": ["city"]}}}
TOOL["function"]["parameters"]["properties"] = {"city": {"type": "string"}}
SAID = Account("it", 3, ("find", "track"))


def program(id: str = "a", segments: int = 3, tools: tuple[str, ...] = SAID.tools, **more: Any) -> dict[str, Any]:
    return {"id": id, "segments": segments, "tools": tools, "identity": "prompt", "why": "answered"} | more


def test_one_program_with_all_that_the_client_did_conforms():
    row = compare(SAID, [program()])
    assert row.conforms
    assert row[1:] == ("prompt", "3 segments", "find, track: parsed", "answer", "-")


@pytest.mark.parametrize(
    ("seen", "column"),
    [
        ([], "identity"),
        ([program("a", 1), program("b", 2)], "identity"),
        ([program(identity="")], "identity"),
        ([program(segments=2)], "boundary"),
        ([program(tools=("track", "find"))], "tools"),
        ([program(tools=())], "tools"),
        ([program(why="reaped")], "end"),
        ([{key: value for key, value in program().items() if key != "why"}], "end"),
    ],
)
def test_what_the_server_missed_is_said_in_its_column(seen: list[dict[str, Any]], column: str):
    row = compare(SAID, seen)
    assert not row.conforms and getattr(row, column).startswith("not seen")


def test_sub_agents_are_part_of_their_parents_program():
    row = compare(SAID, [program("a", 2, ("find",)), program("b", 1, ("track",), parent_id="a")])
    assert row.conforms and row.children == "1"


def test_a_client_without_its_environment_says_what_to_type(tmp_path: Path):
    with pytest.raises(run.ConfigError, match="type: make examples"):
        run.ask("openai", "http://127.0.0.1:1", tmp_path / "python")


@NO_CLIENTS
def test_a_client_that_fails_is_an_error_with_its_last_words():
    with pytest.raises(run.AstraeaError, match=r"openai exited with 1: .*Connection error"):
        run.ask("openai", "http://127.0.0.1:1")


def test_every_client_is_a_script_of_at_most_40_lines():
    scripts = {path.stem.removeprefix("with_"): path for path in run.HERE.glob("with_*.py")}
    assert set(scripts) == set(run.CLIENTS)
    for path in scripts.values():
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 40 and "astraea" not in text


@pytest.mark.server
def test_a_forced_tool_call_has_arguments_that_fit_the_tools_schema(client: httpx.Client):
    body = {"messages": [{"role": "user", "content": "Where is Paris?"}], "tools": [TOOL], "tool_choice": "required"}
    reply = client.post("/v1/chat/completions", json=body | {"model": "m", "temperature": 0, "max_tokens": 60}).json()
    call = reply["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "look_up" and isinstance(json.loads(call["arguments"])["city"], str)


@pytest.fixture(scope="module", params=run.CLIENTS)
def seen(request: pytest.FixtureRequest, server_url: str) -> tuple[Account, run.Row]:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=server_url, headers=headers, timeout=120) as server:
        account, programs = run.observe(request.param, server)
    return account, compare(account, programs)


@NO_CLIENTS
@pytest.mark.server
def test_an_unchanged_client_really_calls_both_tools_and_comes_to_its_end(seen: tuple[Account, run.Row]):
    account = seen[0]
    assert account.tools[:2] == ("find_order", "track") and account.requests == 3


@NO_CLIENTS
@pytest.mark.server
def test_an_unchanged_client_is_one_program_with_its_segments_tools_and_end(seen: tuple[Account, run.Row]):
    account, row = seen
    assert row.conforms, (account, row)
