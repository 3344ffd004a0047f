import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = "astraea_sglang.patches, astraea_sglang.frontend, astraea_sglang.fleet"
IMPORTS = f"import {MODULES}; print(astraea_sglang.patches.__file__)"


def imported_from(folder: Path, path: Path | None = None) -> Path:
    """Where do the subpackages come from, for a Python started in `folder` with `path` in front?"""
    environment = {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).resolve()


def test_a_checkout_and_an_editable_install_import_the_subpackages(tmp_path):
    assert imported_from(ROOT) == ROOT / "patches" / "__init__.py"
    assert imported_from(tmp_path) == ROOT / "patches" / "__init__.py"  # `make setup` installed it editable


def test_an_installed_package_imports_the_subpackages_even_from_the_checkout(tmp_path):
    source = tmp_path / "source"  # the build writes beside what it builds
    subprocess.run(["git", "clone", "--quiet", "--local", str(ROOT), str(source)], check=True)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, timeout=120)
    assert imported_from(tmp_path, site) == site / "astraea_sglang" / "patches" / "__init__.py"
    assert imported_from(source, site).name == "__init__.py"
    assert (site / "astraea_sglang" / "smollm2_chat_template.jinja").exists()
