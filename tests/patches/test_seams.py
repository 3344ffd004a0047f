import pytest
from sglang.srt.plugins.hook_registry import HookRegistry

from astraea_sglang.patches.seams import KNOWN_GOOD, SEAMS, Seam, drift


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.target.removeprefix("sglang."))
def test_the_installed_sglang_has_every_seam(seam):
    assert seam.problem() is None


@pytest.mark.parametrize("seam", [s for s in SEAMS if s.hook], ids=lambda seam: seam.hook)
def test_sglangs_loader_put_every_hook_in(seam):
    assert seam.target in HookRegistry._patched
    assert any(hook is seam.hook_function() for _, hook, _ in HookRegistry._hooks[seam.target])


@pytest.mark.parametrize(
    ("seam", "words"),
    [
        (Seam("sglang.srt.managers.scheduler.Scheduler.no_such_method", "a test"), "no_such_method is gone"),
        (Seam("sglang.srt.no_such_module.thing", "a test"), "no_such_module.thing is gone"),
        (Seam(SEAMS[0].target, "a test", ("other",)), "add_cli_args takes (parser)"),
    ],
)
def test_drift_is_one_line_that_names_symbol_version_and_remedy(seam, words):
    line = drift([seam])
    assert line is not None and words in line and "\n" not in line
    assert f"pip install sglang=={KNOWN_GOOD[-1]}" in line
