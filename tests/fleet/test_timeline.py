import struct

from astraea_sglang.fleet.agents import ProgramRun, SegmentRun, ToolRun
from astraea_sglang.fleet.runs import Run
from astraea_sglang.fleet.timeline import draw, spans

PROGRAM = ProgramRun(
    "p", "qa", 1.0, 6.0, None, [SegmentRun(1.0, 0.5, 2.0, 4.0, 10, 0, 0, 5)], [ToolRun("cd", 4.0, 6.0, 1)]
)


def test_a_program_queues_prefills_decodes_and_calls_its_tool():
    assert list(spans(PROGRAM)) == [
        ("queue", 1.0, 1.5), ("prefill", 1.5, 2.0), ("decode", 2.0, 4.0), ("tool", 4.0, 6.0),
    ]  # fmt: skip


def test_a_queue_time_longer_than_the_wait_for_the_first_token_never_draws_backwards():
    late = ProgramRun("p", "qa", 0.0, 1.0, None, [SegmentRun(0.0, 0.9, 0.5, 1.0, 10, 0, 0, 5)], [])
    assert all(start <= end for _, start, end in spans(late))


def test_the_picture_is_a_png_of_readme_width_that_grows_with_the_fleet(tmp_path):
    sizes = []
    for programs in (2, 12):
        lost = ProgramRun("q", "qa", 0.0, 3.0, "gone")
        draw([Run(policy, {}, {}, [PROGRAM] * programs + [lost]) for policy in ("fcfs", "astraea")], tmp_path / "t.png")
        picture = (tmp_path / "t.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append(struct.unpack(">II", picture[16:24]))
    (width, small), (_, large) = sizes
    assert width == 1400
    assert large > small


def test_nothing_ended_still_makes_a_picture(tmp_path):
    draw([Run("fcfs", {}, {}, [ProgramRun("p", "qa", 0.0, 0.4, "no server")])], tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 1000
