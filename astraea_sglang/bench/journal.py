"""What did a live run measure so far? A file that outlives the run: one line for every segment that ended."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from astraea_sglang.bench.figures import SegmentRun
from astraea_sglang.bench.plans import ProgramPlan, families
from astraea_sglang.errors import ConfigError


class Journal:
    """Segments of `plans` as they end, kept in `path` if one is given; what an earlier run left there is read first.

    `kept` are the segments of programs that are complete there, child sessions included; `missing` are the plans of all
    others. Raises ConfigError when the file is of other plans, or no journal.
    """

    def __init__(self, path: Path | None, plans: Sequence[ProgramPlan]) -> None:
        self._path, self._plans = path, plans
        self._file: IO[str] | None = None
        self._digest = digest(plans)
        self.kept = self._read()
        done = {run.program for run in self.kept}
        self.missing = [plan for plan in plans if plan.id not in done]

    def __enter__(self) -> "Journal":
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a")
            except OSError as problem:
                raise ConfigError(
                    f"{self._path} cannot be written ({problem.strerror}); type --out FOLDER"
                ) from problem
            size = self._path.read_bytes().rfind(b"\n") + 1
            self._file.truncate(size)  # a line that was cut off when the run before was killed
            self._write({"plans": self._digest, "programs": len(self._plans)})
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, run: SegmentRun) -> None:
        """Keep a segment, at once."""
        if self._file is not None:
            self._write(run._asdict())

    def _write(self, line: dict[str, object]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self) -> list[SegmentRun]:
        if self._path is None or not self._path.exists():
            return []
        text = self._path.read_text()
        if text and not text.startswith('{"plans": '):
            raise ConfigError(f"{self._path}:1 is no line of a journal; type another --out")
        runs: list[list[SegmentRun]] = []
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
            try:
                row = json.loads(line)
                if "plans" not in row:
                    runs[-1].append(SegmentRun(**row))
                    continue
            except (ValueError, TypeError, IndexError):
                raise ConfigError(f"{self._path}:{number} is no line of a journal; type another --out") from None
            if row["plans"] != self._digest:
                raise ConfigError(f"{self._path} is of a run of other programs; remove it, or type another --out")
            runs.append([])
        return [run for runs_of_one in runs for run in complete(self._plans, runs_of_one)]


def digest(plans: Sequence[ProgramPlan]) -> str:
    """Are two lists of plans the same? SHA-256 over all they say."""
    return hashlib.sha256("\n".join(map(repr, plans)).encode()).hexdigest()


def complete(plans: Sequence[ProgramPlan], runs: Sequence[SegmentRun]) -> list[SegmentRun]:
    """Which of `runs` belong to programs all of whose segments, and those of their child sessions, are among them?"""
    ended = {(run.program, run.segment) for run in runs}
    done = {
        plan.id
        for family in families(plans)
        if all((plan.id, len(plan.segments) - 1) in ended for plan in family)
        for plan in family
    }
    return [run for run in runs if run.program in done]
