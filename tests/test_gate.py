"""The gate with a real program table behind it; the rule itself is in test_admit.py."""

from astraea_sglang.table import Pool, ProgramTable
from tests.builders import arrive, run, table


def paused(t: ProgramTable, program: str, *, tool: str | None = None, context: int = 100) -> None:
    segment = arrive(t, f"{program}-0", program=program, next_tool=tool)
    segment.prompt_tokens = context
    run(t, segment, 0, seconds=0)


def gate(t: ProgramTable, pool: int) -> set[str]:
    """What is blocked for a cold newcomer of 100 tokens beside one running segment of 1 token."""
    runner = arrive(t, "runner", program="runner")
    runner.prompt_tokens = 1
    t.start(runner, 1)
    fresh = arrive(t, "fresh", program="fresh")
    fresh.output = 1
    return set(t.plan([(fresh, 0)], Pool(pool)).blocked)


def test_a_program_paused_a_moment_ago_is_due_back_and_counts():
    t = table(theta=1.0)
    paused(t, "p", context=5000)
    assert gate(t, pool=5101) == {"fresh"} and gate(t, pool=5102) == set()


def test_a_program_paused_for_longer_than_half_a_refill_no_longer_counts():
    t = table(theta=1.0)
    paused(t, "p", context=5000)
    t.advance(t.now + 0.6 * t.costs.prefill * 5101)
    assert gate(t, pool=5101) == set()


def test_known_long_tools_do_not_count_and_known_short_ones_do():
    for seconds, counts in ((60.0, False), (0.01, True)):
        t = table(theta=1.0)
        for i in range(4):
            paused(t, "p", tool="search", context=5000)
            t.advance(t.now + (seconds if i < 3 else 0.0))
        assert gate(t, pool=5101) == ({"fresh"} if counts else set())


def test_a_prefix_that_programs_share_counts_once():
    t = table(theta=1.0)
    segments = [arrive(t, name, program=name) for name in "abc"]
    for segment in segments:
        segment.prompt_tokens = 1000
    assert not t.plan([(s, 900) for s in segments], Pool(2000)).blocked
    for segment in segments:
        t.start(segment, 100)
    fresh = arrive(t, "fresh", program="fresh")
    fresh.output = 1
    assert not t.plan([(fresh, 0)], Pool(1301)).blocked and t.plan([(fresh, 0)], Pool(1300)).blocked == {"fresh"}


def test_without_admission_nothing_is_blocked():
    t = table(admission="none")
    paused(t, "p", context=5000)
    assert gate(t, pool=10) == set()
