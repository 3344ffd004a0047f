import pytest

from astraea_sglang.bench.device import Device
from astraea_sglang.bench.figures import SegmentRun, Spec, figures, finish_hash
from astraea_sglang.bench.plans import ProgramPlan, SegmentPlan

UNIT = Device(step_s=1.0, row_s=0.0, kv_token_s=0.0, prefill_token_s=0.0, attention_s=0.0, chunk_tokens=4096)


def program(id: str, arrival: float) -> ProgramPlan:
    """Two segments of two tokens, which take 2 s each alone, and a tool call of 10 s."""
    return ProgramPlan(id, "c", arrival, 512, (SegmentPlan(10, 2, 10.0, "t"), SegmentPlan(10, 2, 0.0, None)))


def went(id: str, first: float, last: float, cached: int = 11, computed: int = 11) -> list[SegmentRun]:
    return [
        SegmentRun(id, 0, 5.0 * (id == "b"), first - 2, first, 10, 2, 0, 0, 10),
        SegmentRun(id, 1, first + 10, last - 2, last, 22, 2, 11, cached, computed),
    ]


PLANS = [program("a", 0.0), program("b", 5.0)]
RUN = went("a", 2.0, 14.0) + went("b", 15.0, 39.0, cached=1, computed=21)


def test_the_figures_of_a_run_done_by_hand():
    seen = figures(PLANS, RUN, UNIT)
    assert seen["jct_mean"] == (14 + 34) / 2
    assert (seen["jct_p50"], seen["jct_p95"], seen["jct_p99"]) == (14, 34, 34)
    assert (seen["engine_mean"], seen["engine_p95"]) == ((4 + 24) / 2, 24)
    assert (seen["slowdown_mean"], seen["slowdown_max"]) == ((1 + 6) / 2, 6)
    assert seen["jain"] == pytest.approx((1 + 6) ** 2 / (2 * (1 + 36)))


def test_recomputed_is_what_was_computed_beyond_what_was_new():
    seen = figures(PLANS, RUN, UNIT)
    assert seen["recomputed_tokens"] == (0 + 10) / 2  # b found 1 of its 11 tokens
    assert seen["return_hit_rate"] == (11 + 1) / 22


def test_the_hash_follows_every_finish_time_and_no_order_in_the_list():
    assert finish_hash(RUN) == finish_hash(RUN[::-1])
    assert finish_hash(RUN) != finish_hash([*RUN[:-1], RUN[-1]._replace(finished=39.000000000000007)])


def test_runs_that_differ_in_anything_are_kept_apart():
    base = Spec("coding", 1.3, "astraea:mlfq", 1, 60, "d", False)
    others = [
        Spec("mixed", 1.3, "astraea:mlfq", 1, 60, "d", False),
        Spec("coding", 1.35, "astraea:mlfq", 1, 60, "d", False),
        Spec("coding", 1.3, "astraea:fcfs", 1, 60, "d", False),
        Spec("coding", 1.3, "astraea:mlfq", 11, 60, "d", False),
        Spec("coding", 1.3, "astraea:mlfq", 1, 600, "d", False),
        Spec("coding", 1.3, "astraea:mlfq", 1, 60, "e", False),
        Spec("coding", 1.3, "astraea:mlfq", 1, 60, "d", True),
    ]
    assert len({spec.name for spec in [base, *others]}) == 8
    assert "/" not in Spec("coding", 1.3, "astraea:order=x/y", 1, 60, "d", False).name
