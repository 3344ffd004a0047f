"""Replay over HTTP against a stand-in: a server in this process that speaks just enough of both APIs."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from astraea_sglang.bench import wire
from astraea_sglang.bench.bfcl import converted
from astraea_sglang.bench.journal import complete
from astraea_sglang.bench.live import LostServer, replay
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.bench.prompts import Prompts
from astraea_sglang.errors import ConfigError, ServerError
from astraea_sglang.fleet import agents

Body = dict[str, Any]
INFO = {"max_total_num_tokens": 4096, "model_path": "stand-in", "skip_tokenizer_init": False}


class StandIn:
    """Stands in for the server: each generation takes `delay_s`, its output counts up; prompts are found in a cache."""

    def __init__(self, info: Body | None = INFO, delay_s: float = 0.0, together: int = 0) -> None:
        self.info, self.delay_s = info, delay_s
        self.together = together  # so many programs' requests must have come before one is answered
        self.bodies: list[Body] = []  # of programs: neither of the probe nor refused
        self.refuse: set[str] = set()  # fields, or "ids"
        self.dies_after = 10**9  # generations
        self.running = self.most_running = self.flushed = 0
        self.known: list[list[int]] = []
        paths = {"/server_info": self._info, "/v1/models": self._models, "/flush_cache": self._flush}
        routes = [Route(path, answer, methods=["GET", "POST"]) for path, answer in paths.items()]
        generate = [Route(path, self._generate, methods=["POST"]) for path in ("/generate", "/v1/completions")]
        self.transport = httpx.ASGITransport(Starlette(routes=[*routes, *generate]))

    async def _info(self, request: Request) -> Response:
        return JSONResponse(self.info) if self.info else Response(status_code=404)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "stand-in", "max_model_len": 2048}]})

    async def _flush(self, request: Request) -> Response:
        self.flushed += 1
        return Response("flushed")

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        native = request.url.path == "/generate"
        ids = body["input_ids"] if native else body["prompt"]
        if self.refuse & (body.keys() | ({"ids"} if isinstance(ids, list) else set())):
            return JSONResponse({"message": "unknown field"}, status_code=422)
        sampling = body["sampling_params"] if native else body
        output = sampling.get("min_new_tokens", sampling.get("max_new_tokens", 0) - 1) + 1
        if "emulated_tokens" in sampling.get("custom_params", {}):
            output = sampling["custom_params"]["emulated_tokens"]
        output = output if native else body["max_tokens"]
        if (sampling.get("max_new_tokens"), sampling.get("max_tokens"), len(ids)).count(3) == 0 and len(ids) != 8:
            self.bodies.append(body)
        if len(self.bodies) > self.dies_after:
            raise httpx.ReadError("stand-in died")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.delay_s)
        while body in self.bodies and len(self.bodies) < self.together:
            await asyncio.sleep(0.001)
        self.running -= 1
        cached = max((shared(ids, known) for known in self.known), default=0) if isinstance(ids, list) else 0
        made = list(range(output))
        self.known.append([*ids, *made][:-1] if isinstance(ids, list) else [])
        if native:
            meta = {"prompt_tokens": len(ids), "cached_tokens": cached, "completion_tokens": output, "queue_time": 0.0}
            return events({"output_ids": made, "meta_info": meta})
        text = {"choices": [{"text": " x"}]}
        told = {"token_ids": made} if body.get("return_token_ids") else {}
        usage = {"prompt_tokens": len(ids) if isinstance(ids, list) else len(ids.split()), "completion_tokens": output}
        return events({"choices": [{"text": " x", **told}]}, *([] if told else [text] * (output - 1)), {"usage": usage})


def events(*parts: Body) -> Response:
    return Response("".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n")


def shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def plan(id: str, *segments: SegmentPlan, at: float = 0.0, **about: Any) -> ProgramPlan:
    return ProgramPlan(id, "react", at, 64, segments, **about)


def step(new: int = 20, output: int = 5, tool_s: float = 0.0, **about: Any) -> SegmentPlan:
    return SegmentPlan(new, output, tool_s, "t" if tool_s else None, **about)


def play(server: StandIn, *plans: ProgramPlan, **options: Any) -> list[Any]:
    options = {"note": lambda text: None} | options
    return asyncio.run(replay(plans, "http://stand-in", transport=server.transport, **options))


def programs(server: StandIn) -> list[str]:
    return [body["session_id"] for body in server.bodies]


def test_programs_arrive_as_planned_however_slow_the_server_is():
    server = StandIn(together=3)
    runs = play(server, plan("a", step()), plan("b", step(), at=0.02), plan("c", step(), at=0.04))
    assert programs(server) == ["a", "b", "c"] and server.most_running == 3
    assert {run.program: run.arrived for run in runs} == {"a": 0.0, "b": 0.02, "c": 0.04}
    assert all(run.finished >= 0.04 and run.arrived <= run.started <= run.finished for run in runs)


def test_in_a_closed_loop_the_next_program_begins_when_one_ends():
    server = StandIn(delay_s=0.01)
    runs = play(server, *(plan(name, step(), step(), at=9.0) for name in "abcd"), concurrency=2)
    assert server.most_running == 2 and {run.program for run in runs} == set("abcd")
    ends = {run.program: run.finished for run in runs if run.segment == 1}
    begun = {run.program: run.arrived for run in runs if run.segment == 0}
    assert begun["a"] == begun["b"] == 0.0 and begun["c"] == min(ends["a"], ends["b"])


def test_a_segment_comes_when_the_tool_before_it_is_done():
    one, two = play(StandIn(), plan("a", step(tool_s=0.06), step()))
    assert two.arrived == one.finished + 0.06 and two.finished >= two.arrived


def test_a_parent_goes_on_when_its_children_have_ended():
    parent = plan("p", step(tool_s=0.01, spawns=("c", "d")), step())
    children = [plan(name, step(), step(), parent="p") for name in "cd"]
    runs = play(StandIn(delay_s=0.02), parent, *children)
    by = {(run.program, run.segment): run for run in runs}
    assert by["c", 0].arrived == by["d", 0].arrived == by["p", 0].finished
    assert by["p", 1].arrived == max(by["c", 1].finished, by["d", 1].finished)


def test_a_prompt_is_what_is_kept_with_outputs_as_they_were_and_what_is_new():
    server = StandIn()
    prefix = (Shared("system", 10),)
    one = plan("a", step(20, 5), step(7, 5), step(3, 5, kept=12), prefix=prefix)
    runs = play(server, one, plan("b", step(), prefix=prefix, at=0.1))
    first, second, third, other = (body["input_ids"] for body in server.bodies)
    assert second[:35] == [*first, 0, 1, 2, 3, 4] and len(second) == 42
    assert third[:12] == first[:12] and len(third) == 15
    assert other[:10] == first[:10] and not set(other[10:]) <= set(first)
    assert [run.known for run in runs] == [0, 34, 12, 10] == [run.cached for run in runs]
    assert [run.computed for run in runs] == [30, 8, 3, 20]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9), st.none() | st.integers(0, 60)), min_size=1, max_size=6)
)
def test_prompts_are_as_long_as_planned_and_begin_with_what_was_known(rows):
    segments = [
        SegmentPlan(new, output, 0.0, None, kept=kept if i else None) for i, (new, output, kept) in enumerate(rows)
    ]
    chain = plan("a", *segments, prefix=(Shared("s", 3), Shared("t", 4)))
    context, before = wire.Context(chain), []
    for index, length in enumerate(chain.prompts()):
        prompt = context.prompt(index)
        known = Prompts([chain]).known(0, index)
        assert len(prompt) == length and prompt[:known] == before[:known]
        made = list(range(segments[index].output + index % 2))  # now and then more than planned
        context.answered(index, made)
        before = [*prompt, *made[: segments[index].output]]


@pytest.mark.parametrize(
    ("info", "sent"),
    [
        (INFO, {"max_new_tokens": 64, "min_new_tokens": 4, "stop_token_ids": [999], "logit_bias": {"999": 10_000.0}}),
        (INFO | {"skip_tokenizer_init": True}, {"max_new_tokens": 64, "custom_params": {"emulated_tokens": 5}}),
        (INFO | {"speculative_algorithm": "EAGLE"}, {"max_new_tokens": 5, "ignore_eos": True}),
    ],
)
def test_a_length_is_forced_by_what_the_server_can_do(info, sent):
    server, notes = StandIn(info), []
    (run,) = play(server, plan("a", step(output=5)), note=notes.append)
    (body,) = server.bodies
    assert sent.items() <= body["sampling_params"].items() and run.output == 5
    assert ("ignore_eos" in body["sampling_params"]) == any("told each output's length" in note for note in notes)


def test_hints_name_the_program_and_what_the_kind_allows():
    server = StandIn()
    play(server, plan("a", step(tool_s=0.01), step()))
    payloads = [body["kv_hints"]["actions"][0]["payload"] for body in server.bodies]
    about = {"program_id": "a", "program_class": "react"}
    assert payloads == [about | {"segment": 0, "next_tool": "t"}, about | {"segment": 1, "final": True}]


def test_the_cache_is_emptied_first_unless_it_is_not_wanted():
    server = StandIn()
    play(server, plan("a", step()))
    play(server, plan("a", step()), flush=False)
    assert server.flushed == 1


@pytest.mark.parametrize(
    ("refused", "as_ids", "forced", "notes"),
    [
        (set(), True, True, ["how long segments queue", "what it found in its cache"]),
        ({"ids"}, False, True, ["no token ids", "how long", "cache", "output tokens"]),
        ({"ignore_eos"}, True, False, ["does not know ignore_eos", "how long", "cache"]),
        (
            {"ids", "ignore_eos"},
            False,
            False,
            ["no token ids", "does not know ignore_eos", "how", "cache", "output tokens"],
        ),
    ],
)
def test_a_server_of_another_kind_is_asked_for_what_it_takes(refused, as_ids, forced, notes):
    server, heard = StandIn(info=None), []
    server.refuse = refused
    runs = play(server, plan("a", step(20, 5), step(4, 6)), note=heard.append)
    assert [(run.prompt, run.output) for run in runs] == [(20, 5), (29, 6)]
    for body, output in zip(server.bodies, (5, 6), strict=True):
        assert body["max_tokens"] == output and isinstance(body["prompt"], list) == as_ids
        assert ("ignore_eos" in body) == forced and "custom_params" not in body
    assert len(heard) == len(notes) and all(any(part in note for note in heard) for part in notes)


def test_sglang_hears_hints_by_its_openai_route_too():
    server = StandIn()
    play(server, plan("a", step()), api="openai")
    (body,) = server.bodies
    told = json.loads(body["custom_params"]["astraea"])
    assert body["session_id"] == told["program_id"] == "a" and told["final"] is True


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_sent():
    server = StandIn()
    with pytest.raises(
        ConfigError, match=r"program b, segment 1: 2025 prompt tokens .* as 64 .* context of 2048 tokens; "
    ):
        play(server, plan("a", step()), plan("b", step(20, 5), step(2000)))
    server.info = INFO | {"max_total_num_tokens": 90}
    with pytest.raises(ConfigError, match=r"program a, segment 0: .* KV pool of 90 tokens; .*--max-total-tokens"):
        play(server, plan("a", step()))
    assert server.bodies == []


def test_a_server_that_dies_leaves_what_was_measured_and_the_same_call_goes_on(tmp_path):
    server = StandIn()
    plans = [plan(name, step(tool_s=0.02), step(), at=i * 0.01) for i, name in enumerate("abc")]
    server.dies_after, journal = 4, tmp_path / "deep" / "run.jsonl"
    with pytest.raises(
        LostServer, match=r"stand-in died.* 1 of 3 programs are done, 2 were under way; kept in .*"
    ) as lost:
        play(server, *plans, journal=journal)
    assert [run.program for run in lost.value.runs].count("a") == 2 and lost.value.failed == ["b", "c"]
    with journal.open("a") as file:
        file.write('{"program": "b", "segm')  # killed while it wrote
    server.dies_after, before, seen = 10**9, len(server.bodies), []
    runs = play(server, *plans, journal=journal, watch=lambda seconds, done: seen.append((seconds, done)))
    assert sorted(programs(server)[before:]) == ["b", "b", "c", "c"]
    assert sorted((run.program, run.segment) for run in runs) == [(name, i) for name in "abc" for i in (0, 1)]
    arrived = {run.program: run.arrived for run in runs if run.segment == 0}
    assert arrived == {"a": 0.0, "b": 0.01, "c": 0.02}  # seconds of the whole plan
    assert seen[0][1] == 1 and seen[-1][1] == 3 and seen[0][0] > 0.009  # clocks round
    again = len(server.bodies)
    assert play(server, *plans, journal=journal) == runs and len(server.bodies) == again


def test_a_resumed_closed_loop_goes_on_after_the_last_finish(tmp_path):
    server, plans = StandIn(), [plan(name, step()) for name in "ab"]
    server.dies_after = 1
    with pytest.raises(LostServer):
        play(server, *plans, journal=tmp_path / "j", concurrency=1)
    server.dies_after = 9
    first, second = play(server, *plans, journal=tmp_path / "j", concurrency=1)
    assert (first.program, second.program) == ("a", "b") and second.arrived == first.finished


def test_an_interruption_leaves_what_ended_in_the_journal(tmp_path):
    server = StandIn()

    async def interrupted() -> None:
        plans = [plan("a", step()), plan("b", step(tool_s=30), step())]
        run = asyncio.create_task(replay(plans, "http://s", transport=server.transport, journal=tmp_path / "j"))
        while len(server.bodies) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(interrupted())
    rows = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert sorted(row["program"] for row in rows[1:]) == ["a", "b"]


def test_a_journal_of_other_programs_is_refused(tmp_path):
    journal = tmp_path / "j"
    play(StandIn(), plan("a", step()), journal=journal)
    with pytest.raises(ConfigError, match="is of a run of other programs; remove it, or type another --out"):
        play(StandIn(), plan("a", step(21)), journal=journal)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="notes:1 is no line of a journal"):
        play(StandIn(), plan("a", step()), journal=tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
    journal.write_text(journal.read_text() + "{}\n")
    with pytest.raises(ConfigError, match=r"j:3 is no line of a journal"):
        play(StandIn(), plan("a", step()), journal=journal)


def test_a_family_counts_as_complete_when_every_member_is():
    family = [plan("p", step(spawns=("c",))), plan("c", step(), step(), parent="p"), plan("x", step())]
    runs = play(StandIn(), *family)
    assert complete(family, runs) == runs
    lost = [run for run in runs if (run.program, run.segment) != ("c", 1)]
    assert {run.program for run in complete(family, lost)} == {"x"}


def test_a_refusal_midway_names_the_status_and_the_answer():
    server = StandIn()

    async def on_the_wire(client: httpx.AsyncClient) -> None:
        await wire.generate(client, "/nowhere", {}, lambda: 0.0)

    with pytest.raises(wire.Refused, match="/nowhere answered 404: Not Found; see the server's log"):
        asyncio.run(on_the_wire(httpx.AsyncClient(base_url="http://s", transport=server.transport)))


@pytest.mark.parametrize(
    ("part", "seen"),
    [
        ({"error": {"message": "out of memory"}}, "broke off: .*out of memory"),
        ({"meta_info": {"finish_reason": {"type": "abort", "message": "too long"}}}, "broke off: .*too long"),
        ({"meta_info": {}}, "out of form"),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(part, seen):
    async def asked() -> None:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, text=f"data: {json.dumps(part)}\n\n"))
        async with httpx.AsyncClient(base_url="http://s", transport=transport) as client:
            await wire.generate(client, "/generate", {}, lambda: 0.0)

    with pytest.raises(ServerError, match=seen):
        asyncio.run(asked())


@pytest.mark.parametrize(
    ("options", "error", "seen"),
    [
        ({"api": "grpc"}, ConfigError, "--api grpc is unknown; choose one of: sglang, openai"),
        ({"api": "sglang", "info": None}, ServerError, "does not answer /server_info .*--api openai"),
    ],
)
def test_a_server_that_is_not_what_was_asked_for_is_refused(options, error, seen):
    server = StandIn(options.pop("info", INFO))
    with pytest.raises(error, match=seen):
        play(server, plan("a", step()), **options)


def test_a_url_where_nothing_answers_is_refused_with_what_to_type():
    with pytest.raises(ServerError, match=r"nothing answers at http://127.0.0.1:9.*astraea serve"):
        asyncio.run(replay([plan("a", step())], "http://127.0.0.1:9"))


def agent(id: str, *rows: tuple[float, int, int, int]) -> agents.ProgramRun:
    """Segments are (sent, prompt, cached, output); a tool follows each one second later, for one second."""
    run = agents.ProgramRun(id, "qa", rows[0][0] - 0.5, finished=99.0)
    for sent, prompt, cached, output in rows:
        run.segments.append(agents.SegmentRun(sent, 0.25, sent + 0.5, sent + 1, prompt, cached, 0, output))
        run.tools.append(agents.ToolRun("cd", sent + 1, sent + 2, 10))
    return run


def test_agents_that_really_ran_are_seen_as_plans_and_runs():
    plans, runs = converted([agent("a", (1.0, 100, 0, 10), (3.0, 130, 109, 5)), agent("b", (1.5, 90, 40, 8))])
    assert plans[0].segments == (SegmentPlan(100, 10, 1.0, "cd"), SegmentPlan(20, 5, 0.0, None))
    assert plans[0].arrival_s == 0.5 and list(plans[0].prompts()) == [100, 130]
    assert [(run.program, run.segment, run.known, run.cached) for run in runs] == [
        ("a", 0, 0, 0), ("b", 0, 40, 40), ("a", 1, 109, 109),
    ]  # fmt: skip
    assert (runs[2].arrived, runs[2].started, runs[2].finished, runs[2].computed) == (3.0, 3.25, 4.0, 21)
