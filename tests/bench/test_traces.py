import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_sglang.bench import traces
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan, Shared
from astraea_sglang.bench.traces import agentic, dynamo, mooncake, tracelab
from astraea_sglang.bench.traces.rows import longest
from astraea_sglang.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples" / "traces"
HEADER = "session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"


def csv(*rows: str, header: str = HEADER) -> str:
    return header + "".join(f"{row}\n" for row in rows)


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def hour(**changed) -> dict:
    return {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]} | changed


def call(id: str, session: str = "s", **changed) -> dict:
    row = {"request_id": id, "session_id": session, "input_length": 600, "output_length": 100, "hash_ids": [1, 2]}
    return row | changed


def conversation(*prompts: int) -> dict:
    turns = [{"messages": [{"role": "user", "content": "hi"}], "prompt_tokens": prompt} for prompt in prompts]
    return {"metadata": {}, "conversations": [turns]}


def saved(folder: Path, text: str, name: str = "trace") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_tracelab_session_is_a_program_whose_compaction_is_kept():
    [program] = tracelab.read("f", csv("a,1500,0,0,100,20,250.5", "a,1500,1,120,30,10,0.5", "a,1500,2,40,60,5,0"))
    one, two = SegmentPlan(100, 20, 0.2505, "tool"), SegmentPlan(30, 10, 0.0005, "tool")
    assert program == ProgramPlan("a", "tracelab", 1.5, 32, (one, two, SegmentPlan(60, 5, 0.0, None, kept=40)))
    assert list(program.prompts()) == [100, 150, 100]


def test_a_tracelab_prefix_longer_than_what_came_before_is_new_and_the_first_is_shared_with_nobody():
    [program] = tracelab.read("f", csv("a,0,0,50,10,5,1", "a,0,1,70,1,5,0"))
    assert program.prefix == (Shared("a", 50),)
    assert [s.new_prompt for s in program.segments] == [10, 6]
    assert list(program.prompts()) == [60, 71]


def test_tracelab_rows_come_in_any_order_and_under_the_exporters_own_header():
    header = "id,input_len,output_len,arrival_time,round_idx,tool_wait_after_ms,prefix_len\n"
    text = csv("7,30,10,0.000000,1,0.000000,120", "7,100,20,0.000000,0,250.500000,0", header=header)
    assert tracelab.read("f", text) == tracelab.read("f", csv("7,0,0,0,100,20,250.5", "7,0,1,120,30,10,0"))


def test_tracelab_sessions_arrive_at_once_where_no_arrivals_are_told():
    header = HEADER.replace("arrival_time,", "")
    assert tracelab.read("f", csv("a,0,0,9,2,0", header=header))[0].arrival_s == 0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], r"f:2: there is no row below the header"),
        (["a,0,0,0,100,20"], r"f:2: 6 cells under 7 columns; is the file cut off"),
        (["a,0,0,0,100,20,5", "a,0,1,120,"], r"f:3: 5 cells"),
        (["a,0,0,0,100,20,0", '"a,0,1,120,3,2,0'], r"f:3: the row is not CSV \(unexpected end of data\)"),
        (["a,0,0,0,0,20,0"], r"f:2: input_len is 0; wanted a whole number of tokens from 1 on"),
        (["a,0,0,0,1_0,20,0"], r"f:2: input_len is '1_0'"),
        (["a,0,0,-1,10,20,0"], r"f:2: prefix_len is -1\.0; wanted .* from 0 on"),
        (["a,0,0,0,10,2.5,0"], r"f:2: output_len is 2\.5"),
        (["a,-1,0,0,10,20,0"], r"f:2: arrival_time is -1\.0; wanted a finite number of milliseconds"),
        (["a,0,0,0,10,20,nan"], r"f:2: tool_wait_after_ms is nan"),
        (["a,0,0,0,10,20,inf"], r"f:2: tool_wait_after_ms is inf"),
        (["a,0,0,0,10,20,"], r"f:2: tool_wait_after_ms is ''"),
        (["a,0,0,0,10,20,1", "a,0,0,0,10,20,0"], r"f:3: session a has round 0 where 1 is wanted"),
        (["a,0,0,0,10,20,1", "a,0,2,0,10,20,0"], r"f:3: session a has round 2 where 1 is wanted"),
        (["a,0,0,0,10,20,1", "a,5,1,0,10,20,0"], r"f:3: session a has a second arrival_time"),
        (["a,0,0,0,10,20,1"], r"f:2: session a waits 0\.001 s after its last round"),
        ([f"{'a' * 257},0,0,0,10,20,0"], r"f:2: session_id is 'aaa.*wanted 1 to 256 printable"),
    ],
)
def test_a_bad_tracelab_row_is_refused_with_its_line(rows, said):
    with pytest.raises(ConfigError, match=said):
        tracelab.read("f", csv(*rows))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (HEADER.replace("prefix_len,", ""), "f:1: prefix_len is missing; a row has session_id, round_idx"),
        (HEADER.replace("\n", ",user\n"), "f:1: user is not of this format"),
        (HEADER.replace("session_id", "session_id,id"), "f:1: a column comes twice"),
    ],
)
def test_columns_of_a_tracelab_file_are_those_of_the_format(header, said):
    with pytest.raises(ConfigError, match=said):
        tracelab.read("f", csv("a,0,0,0,1,1,0", header=header))


def test_an_agentic_conversation_replies_220_tokens_unless_the_next_prompt_comes_sooner_or_is_shorter():
    [program] = agentic.read("f", json.dumps(conversation(1000, 1500, 1550, 400)))
    assert [(s.new_prompt, s.output, s.kept) for s in program.segments] == [
        (1000, 220, None), (280, 49, None), (1, 220, None), (1, 220, 399),
    ]  # fmt: skip
    assert list(program.prompts()) == [1000, 1500, 1550, 400]
    assert program.id == "conversation-0" and program.max_new_tokens == 256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"conversations": [\n[{"messages"', r"f:2: not JSON .* is the file cut off"),
        ("[]", r"f:1: \[\] was found; wanted a JSON object"),
        ('{"conversations": []}', r"f:1: conversations: \[\] was found; wanted a list that is not empty"),
        ('{"conversations": [[]]}', r"f: conversation 0: \[\] was found"),
        ('{"conversations": [[{"messages": [1]}]]}', r"f: conversation 0, turn 0: prompt_tokens is missing"),
        ('{"conversations": [[{"messages": [], "prompt_tokens": 4}]]}', r"turn 0: messages: \[\] was found"),
        ('{"conversations": [[{"messages": [1], "prompt_tokens": 0}]]}', r"turn 0: prompt_tokens is 0"),
        ('{"conversations": [[4]]}', r"f: conversation 0, turn 0: 4 was found; wanted a JSON object"),
        ('{"conversations": [[1]], "users": 3}', r"f:1: users is not of this format"),
        ('{"conversations": ' + "[" * 100_000, r"f:1: not JSON that can be read"),
    ],
)
def test_a_bad_agentic_trace_is_refused_with_its_place(text, said):
    with pytest.raises(ConfigError, match=said):
        agentic.read("f", text)


def test_a_mooncake_row_is_a_program_of_one_segment_that_shares_its_blocks():
    [one, other] = mooncake.read("f", lines(hour(), hour(timestamp=27_482, input_length=1024, hash_ids=[1, 9])))
    assert one == ProgramPlan(
        "request-0", "mooncake", 0.0, 8, (SegmentPlan(76, 5, 0.0, None),), (Shared("1", 512), Shared("2", 512))
    )
    assert (other.arrival_s, other.prefix, other.segments[0].new_prompt) == (27.482, (Shared("1", 512),), 512)


def test_blocks_of_another_size_are_recognised_by_their_number():
    rows = [hour(input_length=1000, hash_ids=[*range(16)]), hour(input_length=64, hash_ids=[3])]
    [one, other] = mooncake.read("f", lines(*rows))
    assert {run.tokens for run in one.prefix} == {64} and not other.prefix


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (hour(timestamp=-1), r"f:2: timestamp is -1; wanted a finite"),
        (hour(timestamp=float("inf")), r"f:2: timestamp is inf"),
        (hour(timestamp=True), r"f:2: timestamp is True"),
        (hour(input_length=0), r"f:2: input_length is 0"),
        (hour(output_length="4"), r"f:2: output_length is '4'"),
        (hour(hash_ids=[]), r"f:2: hash_ids is \[\]; wanted a list of whole numbers"),
        (hour(hash_ids=[1, -2, 3]), r"f:2: hash_ids is \[1, -2, 3\]"),
        (hour(hash_ids=[1, 2]), r"f:2: 2 hash_ids for 1100 tokens; the rows before .* about 512, which gives 3"),
        (hour(session_id="a"), r"f:2: session_id is not of this format"),
        ({"timestamp": 0}, r"f:2: input_length, output_length, hash_ids is missing"),
    ],
)  # fmt: skip
def test_a_bad_mooncake_row_is_refused_with_its_line(row, said):
    with pytest.raises(ConfigError, match=said):
        mooncake.read("f", lines(hour(), row))


def test_a_cut_line_of_json_is_refused_with_its_number():
    with pytest.raises(ConfigError, match=r"f:3: the line is not JSON .* is the file cut off"):
        mooncake.read("f", lines(hour()) + "\n" + lines(hour())[:-9])
    with pytest.raises(ConfigError, match=r"f:1: the line is \[1\]; wanted a JSON object"):
        mooncake.read("f", "[1]\n")


def tree() -> list[dict]:
    return [
        call("a", timestamp=1000, branches=["c", "d"]),
        call("c", "child", wait_for=["a"], delay=40, request_kind="agent"),
        call("d", "other", wait_for=["a"]),
        call("e", "other", wait_for=["d"], input_length=900, tool_wait_ms=7),
        call("b", wait_for=["a", "c", "e"], input_length=1000, delay=2, tool_wait_ms=3, tool_events=[
            {"tool_class": "grep", "duration_ms": 2}, {"tool_class": "make", "duration_ms": 3}]),
    ]  # fmt: skip


def test_dynamo_rows_become_chains_and_children_that_their_parents_wait_for():
    parent, child, other = dynamo.read("f", lines(*tree()))
    assert parent == ProgramPlan("s", "dynamo", 1.0, 128, (
        SegmentPlan(88, 100, 0.005, "make", ("child", "other")), SegmentPlan(300, 100, 0.0, None),
    ), (Shared("1", 512),))  # fmt: skip
    assert (child.parent, child.arrival_s, child.program_class) == ("s", 0.04, "agent")
    assert (other.parent, other.segments[0].tool_s, other.segments[0].tool) == ("s", 0.007, "tool")


@pytest.mark.parametrize(
    ("tokens", "ids", "kept"),
    [
        (1700, [1, 2, 3, 8], None),
        (1700, [1, 2, 8, 9], None),  # two blocks were full before: the third is another now
        (1700, [1, 7, 8, 9], 512),
        (1700, [5, 6, 7, 8], 0),
        (1150, [1, 2, 8], 1024),  # shorter than with the output: the output is gone
        (512, [1], 511),
    ],
)
def test_dynamo_blocks_tell_what_a_prompt_keeps(tokens, ids, kept):
    before = call("a", timestamp=0, input_length=1100, hash_ids=[1, 2, 3])
    [program] = dynamo.read("f", lines(before, call("b", wait_for=["a"], input_length=tokens, hash_ids=ids)))
    assert program.segments[1].kept == kept
    assert list(program.prompts()) == [1100, tokens]


@pytest.mark.parametrize(
    ("at", "changed", "said"),
    [
        (0, {"timestamp": None}, r"f:1: session s begins after nothing; wanted a timestamp"),
        (0, {"delay": 4}, r"f:1: session s begins after nothing"),
        (0, {"wait_for": ["zz"]}, r"f:1: request zz is not in the file"),
        (0, {"wait_for": ["b"]}, r"f:1: session s begins with a request that waits for b; wanted none"),
        (0, {"wait_for": ["e"]}, r"session s waits for itself by way of others"),
        (0, {"branches": ["b"]}, r"f:1: branch b does not begin a session by waiting for a"),
        (0, {"priority": 3}, r"f:1: priority is set; a plan has no priorities"),
        (0, {"seed": 3}, r"f:1: seed is not of this format"),
        (0, {"request_id": "b"}, r"f:5: request_id b comes twice"),
        (0, {"input_tokens": 3}, r"f:1: a field comes under two names"),
        (0, {"schema": "dynamo.agentic_mooncake"}, r"f:1: schema .* is Dynamo's later, typed form"),
        (1, {"wait_for": ["a", "d"]}, r"f:2: session child begins with a request that waits for a, d"),
        (3, {"wait_for": []}, r"f:4: request e does not wait for d, which is before it"),
        (4, {"wait_for": ["a", "e"]}, r"f:5: request b does not wait for c, the last of a session that a began"),
        (4, {"wait_for": ["a", "c", "d", "e"]}, r"f:5: request b waits for d, too"),
        (4, {"wait_for": "a"}, r"f:5: wait_for is 'a'; wanted a list"),
        (4, {"tool_wait_ms": -1}, r"f:5: tool_wait_ms is -1"),
        (4, {"tool_events": [{"duration_ms": 2}]}, r"f:5: tool_events: tool_class is missing"),
        (4, {"tool_events": [3]}, r"f:5: tool_events is no list of objects"),
    ],
)  # fmt: skip
def test_a_dynamo_row_that_no_plan_can_hold_is_refused_with_its_line(at, changed, said):
    rows = tree()
    rows[at] |= changed
    with pytest.raises(ConfigError, match=said):
        dynamo.read("f", lines(*rows))


counts = st.integers(1, 3000)
times = st.integers(0, 10**12).map(lambda microseconds: microseconds / 10**6)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
tools = st.one_of(st.just("tool"), names)


def chain(draw, context: int, tool, whole: int | None, spawns: list[tuple[str, ...]]) -> tuple[SegmentPlan, ...]:
    """As many segments as `spawns`; blocks of `whole` tokens of the prompt before are kept, for None any number."""
    segments: list[SegmentPlan] = []
    prompt = 0
    for index, children in enumerate(spawns):
        last, output, kept = index == len(spawns) - 1, draw(counts), None
        limit = context - 1 if whole is None else (prompt // whole - 1) * whole
        if index and limit >= 0 and draw(st.booleans()):
            kept = draw(st.integers(0, limit))
            kept -= kept % (whole or 1)
        new = draw(st.integers(1, 512) if whole and not index else counts)
        wait, name = (0.0, None) if last else (draw(times), draw(tool))
        segments.append(SegmentPlan(new, output, wait, name, children, kept))
        prompt = (context if kept is None else kept) + new
        context = prompt + output
    return tuple(segments)


def program(id: str, kind: str, arrival: float, segments, prefix=(), parent=None) -> ProgramPlan:
    return ProgramPlan(id, kind, arrival, longest(s.output for s in segments), segments, prefix, parent)


@st.composite
def tracelab_plans(draw) -> list[ProgramPlan]:
    plans = []
    for id in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        shared = draw(st.integers(0, 5000))
        segments = chain(draw, shared, st.just("tool"), None, [()] * draw(st.integers(1, 5)))
        plans.append(program(id, "tracelab", draw(times), segments, (Shared(id, shared),) if shared else ()))
    return plans


@st.composite
def dynamo_plans(draw) -> list[ProgramPlan]:
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    rounds = {id: draw(st.integers(1, 4)) for id in ids}
    spawns = {id: [()] * rounds[id] for id in ids}
    parents: dict[str, str | None] = {}
    for index, id in enumerate(ids):
        parents[id] = parent = draw(st.sampled_from([None, *ids[:index]]))
        if parent is not None:
            at = draw(st.integers(0, rounds[parent] - 1))
            spawns[parent][at] += (id,)
    plans = []
    for id in ids:
        prefix = tuple(Shared(str(block), 512) for block in draw(st.lists(st.integers(0, 10**18 - 1), max_size=4)))
        segments = chain(draw, 512 * len(prefix), tools, 512, spawns[id])
        plans.append(program(id, draw(names), draw(times), segments, prefix, parents[id]))
    return plans


@st.composite
def mooncake_plans(draw) -> list[ProgramPlan]:
    plans = []
    for index in range(draw(st.integers(1, 5))):
        prefix = tuple(Shared(str(block), 512) for block in draw(st.lists(st.integers(0, 10**18 - 1), max_size=6)))
        segment = SegmentPlan(draw(st.integers(1, 512)), draw(counts), 0.0, None)
        plans.append(program(f"request-{index}", "mooncake", draw(times), (segment,), prefix))
    return plans


@st.composite
def agentic_plans(draw) -> list[ProgramPlan]:
    plans = []
    for index in range(draw(st.integers(1, 3))):
        *calling, last = draw(st.lists(st.integers(1, 300), min_size=1, max_size=4))
        segments = (*(SegmentPlan(new, 220, 0.0, "tool") for new in calling), SegmentPlan(last, 220, 0.0, None))
        plans.append(program(f"conversation-{index}", "agentic-trace", 0.0, segments))
    return plans


@given(tracelab_plans())
def test_tracelab_gives_back_what_was_written(plans):
    assert tracelab.read("f", tracelab.write(plans)) == plans


@given(dynamo_plans())
def test_dynamo_gives_back_what_was_written(plans):
    assert dynamo.read("f", dynamo.write(plans)) == plans


@given(mooncake_plans())
def test_mooncake_gives_back_what_was_written(plans):
    assert mooncake.read("f", mooncake.write(plans)) == plans


@given(agentic_plans())
def test_agentic_gives_back_what_was_written(plans):
    assert agentic.read("f", agentic.write(plans)) == plans


def test_shares_of_any_length_are_written_as_the_blocks_they_fill():
    one, other = (program(id, "c", 0.0, (SegmentPlan(400, 1, 0.0, None),), (Shared("c", 1100),)) for id in "ab")
    first, second = (json.loads(line)["hash_ids"] for line in mooncake.write([one, other]).splitlines())
    assert first[:2] == second[:2] and first[2] != second[2] and len(first) == 3


@pytest.mark.parametrize("format", ["tracelab", "agentic-trace", "mooncake"])
def test_a_format_without_sessions_of_sessions_refuses_to_hold_children(format, tmp_path):
    child = program("kid", "c", 0.0, (SegmentPlan(4, 1, 0.0, None),), parent="p")
    with pytest.raises(ConfigError, match=r"program kid: .* write it as"):
        traces.write([child], tmp_path / "t", format)
    assert not (tmp_path / "t").exists()


def test_dynamo_refuses_half_a_tree():
    child = program("kid", "c", 0.0, (SegmentPlan(4, 1, 0.0, None),), parent="p")
    with pytest.raises(ConfigError, match="program kid: its parent is p, which does not spawn it"):
        dynamo.write([child])
    parent = program("p", "c", 0.0, (SegmentPlan(4, 1, 0.0, None, ("kid",)),))
    with pytest.raises(ConfigError, match="program kid is spawned but is not there"):
        dynamo.write([parent])


@pytest.mark.parametrize("file", sorted(EXAMPLES.iterdir()), ids=lambda file: file.stem)
def test_an_example_is_recognised_and_read_as_the_format_of_its_name(file):
    assert file.stem in traces.FORMATS
    plans = traces.read(file)
    assert plans == traces.read(file, file.stem) and len(plans) > 1


def test_every_format_has_an_example():
    assert {file.stem for file in EXAMPLES.iterdir()} == set(traces.FORMATS)


def test_plans_come_in_the_order_of_their_arrivals(tmp_path):
    late_first = saved(tmp_path, lines(hour(timestamp=50), hour(timestamp=20)))
    assert [plan.id for plan in traces.read(late_first)] == ["request-1", "request-0"]
    family = saved(tmp_path, lines(call("z", "late", timestamp=9000), *tree()))
    assert [plan.id for plan in traces.read(family)] == ["s", "child", "other", "late"]


def test_a_gzipped_trace_is_read_like_a_plain_one(tmp_path):
    (tmp_path / "t.gz").write_bytes(gzip.compress(lines(hour()).encode()))
    assert traces.read(tmp_path / "t.gz") == traces.read(saved(tmp_path, lines(hour())))


def test_a_conversation_over_many_lines_is_recognised(tmp_path):
    assert traces.read(saved(tmp_path, json.dumps(conversation(5), indent=1)))[0].program_class == "agentic-trace"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"trace:1: the file is empty"),
        (" \n\n", r"trace:1: the file is empty"),
        ("a,b\n1,2\n", r"trace:1: 'a,b' begins no trace that is known"),
        ('{"x": 1}\n', r"trace:1: .* begins no trace that is known"),
        ('{"timestamp": \n', r"trace:1: .* begins no trace that is known"),
        ('{"schema": "dynamo.agentic_mooncake", "version": 2}\n', r"trace:1: schema .* typed form"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_name(text, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        traces.read(saved(tmp_path, text))


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none cannot be read"):
        traces.read(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\x1f\x8bxx")
    with pytest.raises(ConfigError, match=r"bytes cannot be read"):
        traces.read(tmp_path / "bytes")
    plans = mooncake.read("f", lines(hour()))
    with pytest.raises(ConfigError, match=r"cannot be written \(No such file"):
        traces.write(plans, tmp_path / "no" / "folder", "mooncake")
    with pytest.raises(ConfigError, match="--format weka is unknown; choose one of: tracelab, agentic-trace"):
        traces.write(plans, tmp_path / "t", "weka")
    with pytest.raises(ConfigError, match="there is no program to write"):
        traces.write([], tmp_path / "t", "mooncake")


def test_a_file_is_replaced_at_once(tmp_path):
    plans = mooncake.read("f", lines(hour()))
    traces.write(plans, saved(tmp_path, "before"), "mooncake")
    assert traces.read(tmp_path / "trace") == plans
    assert [file.name for file in tmp_path.iterdir()] == ["trace"]
