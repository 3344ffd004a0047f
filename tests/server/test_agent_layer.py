"""The async layer on a real server: what it says of its programs arrives, and is what the server then knows."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from astraea_sglang import frontend as astraea
from astraea_sglang.errors import ServerError
from tests.server.test_programs import finished, row, state

pytestmark = pytest.mark.server
FORCED = {"type": "function", "function": {"name": "population"}}
ROOT = Path(__file__).parents[2]


def seen_at_once(client: httpx.Client) -> astraea.Tool:
    """A tool that looks at its own program on the server while it runs."""

    @astraea.tool(expects=0.5)
    def population(city: str) -> str:
        """How many people live in a city?"""
        rows = state(client)["ranks"][0]["programs"]
        return str([row["running_tools"] for row in rows if row["class"] == "census"])

    return population


def test_a_program_is_one_program_with_its_class_its_tools_and_its_end(client, server_url):
    async def agent() -> tuple[astraea.Program, astraea.Reply, astraea.Result]:
        tools = [seen_at_once(client)]
        async with astraea.program("census", tools, base_url=server_url, osl=8, priority=1, temperature=0) as p:
            reply = await p.chat("How many people live in Paris?", tool_choice=FORCED, max_tokens=64)
            result = await p.call(reply.calls[0])
            await p.chat(tool_choice="none", max_tokens=4)
            paused = row(client, p.id) or {}
            assert (paused["class"], paused["segments"], paused["identity"]) == ("census", 2, "body session_id")
        return p, reply, result

    p, reply, result = asyncio.run(agent())
    assert reply.usage and reply.usage.prompt_tokens > 0 and reply.calls[0].tool == "population"
    assert result.text == "[['population']]", result
    over = finished(client, p.id) or {}
    assert (over["why"], over["segments"], over["tools"]) == ("ended", 2, ["population"])
    assert over["program_class"] == "census"


def test_a_sub_agent_is_known_with_its_parent_and_both_end(client, server_url):
    async def agents() -> tuple[str, str]:
        async with astraea.program("lead", base_url=server_url, temperature=0, max_tokens=4) as p:
            await p.chat("Plan the work.")
            async with p.child("reviewer") as c:
                assert [piece async for piece in c.stream("Review it.")] and c.last and c.last.usage
                assert (row(client, c.id) or {})["parent_id"] == p.id
            await p.chat("Sum up.")
            return p.id, c.id

    parent, child = asyncio.run(agents())
    ends = [p["why"] for p in state(client)["ranks"][0]["finished"] if p["id"] == parent]
    assert ends[-1] == "ended"  # this server may have reaped it while it idled
    over = finished(client, child) or {}
    assert (over["why"], over["program_class"], over["parent_id"]) == ("ended", "reviewer", parent)


def test_a_cancelled_program_ends_on_the_server_too(client, server_url):
    async def agent() -> str:
        p = astraea.program("cancelled", base_url=server_url)

        async def write() -> None:
            async with p:
                async for _ in p.stream("Count.", max_tokens=400, ignore_eos=True):
                    running.cancel()

        running = asyncio.create_task(write())
        await asyncio.wait([running])
        return p.id

    assert (finished(client, asyncio.run(agent())) or {})["why"] == "ended"


def test_a_request_the_server_refuses_is_quoted(server_url):
    async def agent() -> None:
        async with astraea.program("agent", base_url=server_url) as p:
            await p.chat("hi", temperature=-1)

    with pytest.raises(ServerError, match=r"answered 400: .*temperature"):
        asyncio.run(agent())


def test_the_coding_agent_comes_to_its_end_with_its_sub_agents(client, server_url):
    command = [sys.executable, ROOT / "examples" / "03_coding_agent.py", server_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "solution.py, attempt 1" in done.stdout and "review" in done.stdout
    seen = state(client)["ranks"][0]
    over = {p["program_class"]: p for p in seen["finished"]}  # this server reaps a lead that idles for 4 s, too
    assert over["lead"]["id"] == over["coder"]["parent_id"] == over["reviewer"]["parent_id"]
    assert not {"lead", "coder", "reviewer"} & {p["class"] for p in seen["programs"]}
