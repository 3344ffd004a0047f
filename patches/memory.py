"""What was learned of programs, kept in a file across restarts: rank 0 reads and writes it, all ranks learn it."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from astraea_sglang.errors import ConfigError
from astraea_sglang.patches.messages import AstraeaHistory
from astraea_sglang.predict import Predictor

logger = logging.getLogger(__name__)
EVERY = 10.0  # seconds between two writes; a killed server forgets what came after the last
SHARE = 1e-3  # of the scheduler's time that writing may take
LARGEST = 64 << 20  # bytes


def check(path: str) -> None:
    """Raise ConfigError unless `path` can keep a history: a file of ours, or none yet in a folder that is there."""
    file = Path(path)
    fix = "move it away, or give --astraea-history another file"
    if not file.exists():
        if not os.access(file.parent, os.W_OK):
            raise ConfigError(f"--astraea-history {path}: its folder is missing or read-only; give another file")
        return
    try:
        Predictor().load(json.loads(_read(file)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--astraea-history {path} holds no history of ours ({error}); {fix}") from None


class Memory:
    """One history file, as rank 0 of the scheduler uses it."""

    def __init__(self, path: str) -> None:
        self._file = Path(path)
        self._next = time.monotonic() + EVERY

    def poll(self, engine: Any) -> list[AstraeaHistory]:
        """Called each pass: what was kept goes to all ranks until it has arrived; what is known is written at times.

        SGLang drops what a pass adds when it skips receiving (--scheduler-recv-interval), hence "until".
        """
        if not engine.remembers:
            if self._file.exists():
                return [AstraeaHistory(text=_read(self._file))]
            engine.remembers = True
        now = time.monotonic()
        if now >= self._next:
            self._write(engine.table.predictor)
            took = time.monotonic() - now
            self._next = now + max(EVERY, took / SHARE)
        return []

    def _write(self, predictor: Predictor) -> None:
        draft = self._file.with_name(self._file.name + ".part")
        try:
            draft.write_text(json.dumps(predictor.dump(), ensure_ascii=False), encoding="utf-8")
            draft.replace(self._file)
        except OSError as error:
            logger.warning("astraea: the history was not written to %s (%s)", self._file, error)


def apply(engine: Any, message: AstraeaHistory) -> None:
    """Handle a history, on every rank."""
    if engine.remembers:
        return
    engine.remembers = True
    try:
        engine.table.predictor.load(json.loads(message.text))
    except Exception:
        engine.fault("history")


def _read(file: Path) -> str:
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file.stat().st_size} bytes; at most {LARGEST} are read")
    return file.read_text(encoding="utf-8")
