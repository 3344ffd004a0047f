"""Real pip, real wheels, no network: pip is pointed at a folder with one tiny wheel in it."""

import hashlib
import importlib.util
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from astraea_sglang.errors import ModelError
from astraea_sglang.wheels import cache_directory, fetch_wheel

DIST_INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only wheel there is: tiny-data 1.0; the cache is empty."""
    wheel = tmp_path / "links" / "tiny_data-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_data/numbers.txt", "1 2 3\n")
        for name, text in DIST_INFO.items():
            archive.writestr(f"tiny_data-1.0.dist-info/{name}", text)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return wheel


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cached_files() -> list[Path]:
    return [path for path in cache_directory().rglob("*") if path.is_file()]


def test_a_wheel_is_downloaded_into_the_users_cache(published: Path) -> None:
    wheel = fetch_wheel("tiny-data", "1.0", sha256(published))
    assert wheel.read_bytes() == published.read_bytes()
    assert cached_files() == [wheel]


def test_a_cached_wheel_needs_no_package_index(published: Path) -> None:
    digest = sha256(published)
    wheel = fetch_wheel("tiny-data", "1.0", digest)
    published.unlink()
    assert fetch_wheel("tiny-data", "1.0", digest) == wheel


def test_a_corrupted_cached_wheel_is_downloaded_again(published: Path) -> None:
    wheel = fetch_wheel("tiny-data", "1.0", sha256(published))
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"?")
    assert fetch_wheel("tiny-data", "1.0", sha256(published)).read_bytes() == published.read_bytes()


def test_two_processes_may_ask_for_the_same_wheel_at_once(published: Path) -> None:
    digest = sha256(published)
    with ThreadPoolExecutor() as pool:
        wheels = list(pool.map(lambda _: fetch_wheel("tiny-data", "1.0", digest), range(2)))
    assert cached_files() == [wheels[0]] and wheels[0] == wheels[1] and sha256(wheels[0]) == digest


def test_a_wheel_with_another_checksum_is_refused_and_not_kept(published: Path) -> None:
    with pytest.raises(ModelError) as error:
        fetch_wheel("tiny-data", "1.0", "0" * 64)
    assert sha256(published) in str(error.value) and "0" * 64 in str(error.value) and "\n" not in str(error.value)
    assert cached_files() == []


def test_an_unknown_version_is_one_line_that_names_it(published: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot download tiny-data==9: No match.*try again$") as error:
        fetch_wheel("tiny-data", "9", sha256(published))
    assert "\n" not in str(error.value)


def test_missing_pip_says_how_to_get_it(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip is needed to download tiny-data==1.0; type: .* -m ensurepip$"):
        fetch_wheel("tiny-data", "1.0", sha256(published))


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(published))  # a file
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME to a writable folder"):
        fetch_wheel("tiny-data", "1.0", sha256(published))
