import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from astraea_sglang.bench import plots
from astraea_sglang.bench.plots import distributions, loads, memory, styles, timeline


def run(policy: str, seed: int = 1, **more: Any) -> dict[str, Any]:
    rows = [{"id": f"p{n}", "jct": 1.0 + n, "engine": 1.0 + n / 2, "slowdown": 1.0 + n} for n in range(5)]
    kept = [[0.0, 0, 0, 0, 10], [5.0, 5, 1, 2, 2], [10.0, 0, 0, 5, 5]]
    return {"policy": policy, "seed": seed, "per_program": rows, "memory": kept} | more


def lanes(programs: int) -> dict[str, list[list[float]]]:
    return {f"p{n:03}": [[n, n + 1.0, n + 2.0], [n + 6.0, n + 6.5, n + 9.0]] for n in range(programs)}


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> Callable[..., Figure]:
    """Draws a picture; gives the figure as it was saved, once its file is seen to be a PNG of a sensible size."""

    def draw(plot: Callable[..., None], *arguments: Any) -> Figure:
        saved: list[Figure] = []
        save = Figure.savefig

        def keep(figure: Figure, target: Path) -> None:
            saved.append(figure)
            save(figure, target)

        monkeypatch.setattr(Figure, "savefig", keep)
        plot(*arguments, "a heading", tmp_path / "a.png")
        monkeypatch.setattr(Figure, "savefig", save)
        content = (tmp_path / "a.png").read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG") and 1000 < width < 2000 and 100 < height < 2500
        (figure,) = saved
        return figure

    return draw


@given(st.lists(st.sampled_from(["fcfs", "astraea", "unloaded", *(f"p{n}" for n in range(20))]), unique=True))
def test_no_two_policies_look_alike(policies):
    look = styles(policies)
    assert list(look) == policies
    for one, other in itertools.combinations(look.values(), 2):
        assert (one.color, one.linestyle) != (other.color, other.linestyle)


def test_fcfs_is_black_astraea_is_vermilion_and_thickest_whoever_else_runs():
    look = styles(["lpm", "astraea", "hrrn", "fcfs"])
    assert (look["fcfs"].color, look["astraea"].color) == ("#000000", "#d55e00")
    assert look["astraea"].linewidth == max(style.linewidth for style in look.values())
    assert look == {**styles(["fcfs", "lpm", "hrrn", "astraea"])}


def test_a_distribution_ends_at_all_programs_of_all_seeds(drawn):
    figure = drawn(distributions, [run("fcfs", 1), run("fcfs", 2), run("a")], styles(["fcfs", "a"]))
    for panel in figure.axes:
        first, second = panel.get_lines()
        assert len(first.get_xdata()) == 10 and len(second.get_xdata()) == 5  # type: ignore[arg-type]
        assert first.get_ydata()[-1] == 1.0  # type: ignore[index]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fcfs", "a"]


def test_load_curves_pool_the_seeds_and_their_bands_span_them(drawn):
    far = [{"id": "p", "jct": 100.0, "engine": 100.0, "slowdown": 100.0}] * 5
    sweep = {1.0: [run("fcfs", 1), run("fcfs", 2, per_program=far)], 1.3: [run("fcfs"), run("a")]}
    panel = drawn(loads, sweep, styles(["fcfs", "a"])).axes[0]
    assert list(panel.get_lines()[0].get_ydata()) == [51.5, 3.0]  # type: ignore[arg-type]
    band = panel.collections[0].get_paths()[0].vertices
    assert sorted({y for x, y in band if x == 1.0}) == [3.0, 100.0]  # type: ignore[misc]


@pytest.mark.parametrize(("policies", "bands"), [(["fcfs", "a", "b"], 3), (["fcfs", "a", "b", "astraea"], 2)])
def test_bands_of_many_policies_do_not_become_mud(drawn, policies, bands):
    sweep = {load: [run(policy) for policy in policies] for load in (1.0, 1.3)}
    assert len(drawn(loads, sweep, styles(policies)).axes[0].collections) == bands


@pytest.mark.parametrize("panels", [1, 2, 3, 8, 9])
def test_memory_has_a_panel_per_run_up_to_eight(drawn, panels):
    figure = drawn(memory, [run(f"p{n}") for n in range(panels)])
    visible = [panel for panel in figure.axes if panel.get_visible()]
    assert len(visible) == min(panels, 8) and all(len(panel.collections) == 4 for panel in visible)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["running", "preserved", "cached", "free"]


def test_memory_is_averaged_over_time_not_over_rows():
    rows = [[0.0, 10, 0, 0, 0], [9.0, 0, 0, 0, 10], *([9.0 + n / 1000, 0, 0, 0, 10] for n in range(1, 1001))]
    _, shares = plots._binned(rows)
    assert shares[0].mean() == pytest.approx(0.9) and shares.sum(0) == pytest.approx(1)


def test_one_row_of_memory_is_a_picture(drawn):
    drawn(memory, [run("a", memory=[[0.0, 1, 1, 1, 1]])])


@settings(deadline=None)  # the first call imports
@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_shares_of_memory_lie_within_what_was_held(steps):
    rows, second = [], 0.0
    for gap, running, cached in steps:
        rows.append([second, running, 0, cached, 20 - running - cached])
        second += gap
    _, shares = plots._binned(rows)
    held = [row[1] / 20 for row in rows]
    assert min(held) - 1e-6 <= shares[0].min() and shares[0].max() <= max(held) + 1e-6
    assert shares.sum(0) == pytest.approx(1)


def test_a_timeline_shows_the_middle_programs_in_order_the_same_for_every_run(drawn):
    figure = drawn(timeline, [run("fcfs", segments=lanes(60)), run("a", segments=lanes(60))])
    for panel in figure.axes:
        assert len(panel.collections) == 3 * 40
        assert "40 programs" in panel.get_ylabel()
    assert figure.axes[0].get_xlim() == (10.0, 49.0 + 9.0)


def test_a_program_is_queued_runs_and_is_in_a_tool_between_segments():
    assert list(plots._spans([[0.0, 1.0, 2.0], [6.0, 6.5, 9.0]])) == [
        ("queued", 0.0, 1.0), ("running", 1.0, 2.0), ("in a tool", 2.0, 6.0),
        ("queued", 6.0, 6.5), ("running", 6.5, 9.0),
    ]  # fmt: skip


def test_a_program_that_one_run_lost_leaves_its_lane_empty(drawn):
    figure = drawn(timeline, [run("fcfs", segments=lanes(4)), run("a", segments=lanes(3) | {"p003": []})])
    assert [len(panel.collections) for panel in figure.axes] == [12, 9]
