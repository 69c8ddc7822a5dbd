r"""Text for people: durations in and out, counts, and strings made safe for a terminal."""

from __future__ import annotations

import re
from typing import Final

from redis_sessions.errors import InvalidSettings

# What the CLI's help and errors show as durations.
DURATIONS: Final = "500ms, 30s, 90m, 1.5h, 1h30m, 7d or 2w"
_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?(ms|s|m|h|d|w)")
# From how many milliseconds on, which two units are used: 24 h are still hours, as in the settings.
_SCALE: Final = (
    (2 * 86_400_000, "d", 86_400_000, "h", 3_600_000),
    (3_600_000, "h", 3_600_000, "m", 60_000),
    (60_000, "m", 60_000, "s", 1_000),
)


def parse_duration_ms(text: str, name: str) -> int:
    """Milliseconds of numbers with units, the largest unit first: `500ms`, `30s`, `1.5h`, `1h30m`, `3d 4h`, `2w`.

    Args:
        text: the duration.
        name: of the option or setting, such as `--max-age`, for the error.

    Raises InvalidSettings, also for a bare number, which could be in any unit.
    """
    parts = _PART.findall(text)
    units_ms = [_UNITS_MS[unit] for *_, unit in parts]
    if re.fullmatch(rf"{_PART.pattern}( ?{_PART.pattern})*", text) and units_ms == sorted(set(units_ms), reverse=True):
        # In integers: a float has no exact 0.1.
        values = [(int(whole + part) * _UNITS_MS[unit], 10 ** len(part)) for whole, part, unit in parts]
        if all(value % scale == 0 for value, scale in values):
            return sum(value // scale for value, scale in values)
        problem = "is not a whole number of milliseconds"
    else:
        problem = "has no unit" if text.isascii() and text.isdigit() else "is not a number with a unit"
    raise InvalidSettings(problem, setting=name, remedy=f"write {DURATIONS}")


def exact_duration(milliseconds: int) -> str:
    """A duration as `parse_duration_ms` reads it, exact, in the largest unit that allows it, up to days; a day is `24h`."""
    fitting = [unit for unit in _UNITS_MS if unit != "w" and milliseconds % _UNITS_MS[unit] == 0]
    unit = "h" if milliseconds == _UNITS_MS["d"] else fitting[-1]
    return f"{milliseconds // _UNITS_MS[unit]}{unit}"


def duration(milliseconds: int) -> str:
    """A duration for people, rounded down, in two units at most: `3d 4h`, `24h`, `23h 59m`, `45s`, `80ms`."""
    for least_ms, unit, unit_ms, smaller, smaller_ms in _SCALE:
        if milliseconds >= least_ms:
            whole, rest_ms = divmod(milliseconds, unit_ms)
            part = rest_ms // smaller_ms
            return f"{whole}{unit} {part}{smaller}" if part else f"{whole}{unit}"
    return f"{milliseconds // 1000}s" if milliseconds >= 1000 else f"{milliseconds}ms"


def count(number: int, noun: str) -> str:
    """A number of things in words: `1 session`, `2,000 sessions`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def safe(text: str) -> str:
    r"""Text from Redis, a file or the command line as one line that can't control a terminal.

    What is not printable (control characters, ESC, line breaks, bidi overrides, zero width) becomes its escape, `\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
