import pytest

from astraea_sglang.bench.declare import hints
from astraea_sglang.bench.plans import ProgramPlan
from astraea_sglang.bench.workloads import plan

PROGRAMS = [p for name in ("infercept", "coding", "mixed") for p in plan(name, load=1.0, programs=40, seed=3)]


def told(program: ProgramPlan, kind: str):
    return [hints(program, i, kind) for i in range(len(program.segments))]


@pytest.mark.parametrize("kind", ["none", "class", "declared", "oracle"])
def test_every_program_names_itself_and_its_last_segment(kind):
    for program in PROGRAMS:
        said = told(program, kind)
        assert {h.program_id for h in said} == {program.id}
        assert [h.final for h in said] == [False] * (len(said) - 1) + [True]


def test_who_tells_nothing_tells_neither_class_nor_tool():
    assert not any(h.program_class or h.next_tool or h.structure for p in PROGRAMS for h in told(p, "none"))


def test_the_oracle_declares_what_will_happen():
    for program in PROGRAMS:
        said = told(program, "oracle")
        structure, first = said[0].structure, said[0].node
        assert structure is not None and first is not None
        after = structure.after(first)
        assert after.expected_tokens == sum(s.output for s in program.segments[1:])
        assert after.new_tokens == sum(s.new_prompt for s in program.segments[1:])
        assert after.tool_s == pytest.approx(program.tool_s)
        assert [h.expected_tool_s for h in said[:-1]] == [s.tool_s for s in program.segments[:-1]]


def test_an_author_declares_what_is_usual_of_the_class_and_nothing_of_the_program():
    for program in PROGRAMS:
        said = told(program, "declared")
        structure = said[0].structure
        assert structure is not None and all(h.structure is None for h in said[1:])
        assert all(h.node and structure.has_segment(h.node) for h in said)
    kinds = {p.program_class: told(p, "declared")[0].structure for p in PROGRAMS}
    assert all(told(p, "declared")[0].structure == kinds[p.program_class] for p in PROGRAMS)
