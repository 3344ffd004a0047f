"""Where in its code is a program? The lines that lead from its function to a node, the same traced and for real."""

import contextlib
import os
import sys
from types import CodeType
from typing import NamedTuple

from astraea_sglang.frontend.lang import interpreter

Lines = tuple[tuple[str, int], ...]  # file and line of each call, the program's function last
Path = tuple[tuple[Lines, int], ...]  # of a fork: where each fork around it was made, and which of those states it is

_OWN = (os.path.dirname(__file__) + os.sep, os.path.dirname(interpreter.__file__) + os.sep, contextlib.__file__)


class Place(NamedTuple):
    """A point of a program: a request or tool call, as far as code tells them apart. `kind` is its type."""

    kind: str
    path: Path = ()
    lines: Lines = ()
    nth: int = 0  # among those of its expression
    name: str = ""  # of its variable or tool


def lines_of(code: CodeType) -> Lines | None:
    """Which lines of the caller lead here from the function with this code? None if it is not running here."""
    lines: list[tuple[str, int]] = []
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_OWN):
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        if frame.f_code is code:
            return tuple(lines)
        frame = frame.f_back
    return None
