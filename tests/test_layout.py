import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "astraea_sglang").glob("*.py"))
DECIDING = (
    "actions", "admit", "config", "continuations", "conventions", "costs", "decisions", "errors", "graph",
    "hints", "history", "keeper", "leases", "mlfq", "nameless", "obey", "order", "plan", "predict", "program",
    "progress", "retain", "snapshot", "structure", "table", "toolcalls", "tooltimes", "tree",
)  # fmt: skip


def imported(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    return {name.split(".")[0] for name in names + [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]}


@pytest.mark.parametrize("name", DECIDING)
def test_the_policy_core_is_standard_library_and_reads_no_clock(name):
    modules = imported(ROOT / "astraea_sglang" / f"{name}.py") - {"astraea_sglang"}
    assert modules <= sys.stdlib_module_names
    assert not modules & {"time", "datetime", "random", "os", "socket"}


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.stem)
def test_only_patches_import_sglang(path):
    assert "sglang" not in imported(path)


def test_patches_under_a_second_name_are_refused():
    done = subprocess.run([sys.executable, "-c", "import patches"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "would hook SGLang twice" in done.stderr


def test_the_policy_core_runs_in_a_bare_interpreter():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from astraea_sglang.config import Config
from astraea_sglang.hints import parse
from astraea_sglang.table import Pool, ProgramTable
table = ProgramTable(Config())
hints = parse({{"program_id": "p", "node": "a", "structure": {{"nodes": [{{"id": "a", "kind": "segment"}}]}}}})
print(table.plan([(table.arrive("r", hints, 100, 10), 0)], Pool(1000)).order)
"""
    bare = [sys.executable, "-I", "-S", "-c", code]  # no site-packages, no environment
    done = subprocess.run(bare, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['r']"


def test_the_package_imports_without_sglang_or_torch():
    code = (
        "import sys, astraea_sglang.cli, astraea_sglang.table, astraea_sglang.patches, astraea_sglang.frontend\n"
        "print(sorted({'sglang', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
