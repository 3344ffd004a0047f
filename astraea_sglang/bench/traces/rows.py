"""One row of a trace, with the place it stands at: its fields, checked. Every refusal names file, line and field."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from astraea_sglang.errors import ConfigError
from astraea_sglang.hints import ID_LENGTH

MOST_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """Fields of one row, or of one JSON object, and where it is: `file:line`."""

    where: str
    fields: Mapping[str, Any]

    def refused(self, problem: str) -> ConfigError:
        """The error that says what is wrong with this row, and where it is."""
        return ConfigError(f"{self.where}: {problem}")

    def only(self, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        """Raises ConfigError unless the row has all required fields, and no other than the optional ones."""
        known = {*required, *optional}
        if missing := [name for name in required if self.fields.get(name) is None]:
            raise self.refused(f"{', '.join(missing)} is missing; a row has {', '.join(required)}")
        if unknown := [name for name in self.fields if name not in known]:
            raise self.refused(f"{', '.join(unknown)} is not of this format; remove it, or say --format")

    def tokens(self, name: str, least: int = 1) -> int:
        """How many tokens does field `name` tell? Raises ConfigError unless a whole number from `least` on."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_TOKENS:
            raise self.refused(f"{name} is {shown(value)}; wanted a whole number of tokens from {least} on")
        return value

    def seconds(self, name: str, default: float | None = None) -> float:
        """How many seconds does field `name`, in milliseconds, tell? Raises ConfigError if negative or not finite."""
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        good = isinstance(value, int | float) and not isinstance(value, bool)
        seconds = float(Decimal(repr(value)).scaleb(-3)) if good else math.nan
        if not 0 <= seconds < math.inf:
            raise self.refused(f"{name} is {shown(value)}; wanted a finite number of milliseconds from 0 on")
        return seconds

    def name(self, name: str, most: int = ID_LENGTH) -> str:
        """Which name does field `name` hold? Raises ConfigError unless 1 to `most` printable characters."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
            raise self.refused(f"{name} is {shown(value)}; wanted 1 to {most} printable characters")
        return value

    def names(self, name: str, most: int = ID_LENGTH) -> list[str]:
        """Which names does field `name` list? None if it is left out."""
        values = self.fields.get(name) or []
        if not isinstance(values, list):
            raise self.refused(f"{name} is {shown(values)}; wanted a list of names")
        return [Row(self.where, {name: value}).name(name, most) for value in values]


def json_rows(file: str, text: str) -> Iterator[Row]:
    """Which objects does a file of JSON lines hold? Blank lines are none. Raises ConfigError where one is damaged."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise ConfigError(f"{where}: the line is not JSON ({problem}); is the file cut off?") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: the line is {shown(value)}; wanted a JSON object")
        yield Row(where, value)


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """How are `rows` written as JSON lines?"""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def milliseconds(seconds: float) -> float:
    """How many milliseconds are so many seconds? In decimal, so that `Row.seconds` gives the same back: exact for
    times of up to 15 digits."""
    return float(Decimal(repr(float(seconds))).scaleb(3))


def longest(outputs: Iterable[int]) -> int:
    """Which longest output does a program declare whose trace tells none? Its longest, up to a power of two, tokens."""
    return 1 << (max(outputs) - 1).bit_length()


def shown(value: object) -> str:
    """How is a bad value shown in an error? As it is, but short."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
