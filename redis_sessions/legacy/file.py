"""Reads and writes sessions.json. The package's docstring lists the outcome for each kind of entry."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis_sessions.errors import InvalidKey, InvalidSessionID, LegacyFileError
from redis_sessions.keys import SESSION_ID, check_session_id, escape
from redis_sessions.legacy.atomic_file import Replacement
from redis_sessions.text import duration

AHEAD_MS: Final = 5 * 60_000
# As milliseconds these are days in 1970 to 1973; as seconds, 1973 to 5138.
_LOOKS_LIKE_SECONDS: Final = range(10**8, 10**11)

_encode = json.JSONEncoder(ensure_ascii=False).encode
# Objects become tuples of (name, value), so that names that occur twice are not lost.
_decode = json.JSONDecoder(object_pairs_hook=tuple).raw_decode
_SHAPES: Final = {tuple: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}

_SPACE = r"[ \t\r\n]*"
_SPACES = re.compile(_SPACE)
# The usual pair, and the comma or brace after it: a key that needs no check, a valid ID, and a time that can't be seconds.
# It takes a third of the time of `json`, which reads all others.
_USUAL = re.compile(
    rf'("([^"\\%{{}}\x00-\x1f\x7f-\x9f]{{1,128}})"{_SPACE}:{_SPACE}\{{{_SPACE}"id"{_SPACE}:{_SPACE}"({SESSION_ID})"{_SPACE},'
    rf'{_SPACE}"last_used_at"{_SPACE}:{_SPACE}([1-9][0-9]{{11,14}}){_SPACE}\}}){_SPACE}([,}}]){_SPACE}'
)


class Entry(NamedTuple):
    """One entry of a legacy file, valid or not."""

    key: str
    session_id: str  # "" if there is none
    used_at_ms: int | None = None  # time of last use, milliseconds since 1970
    problem: str | None = None  # why it can't be imported


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """A legacy file that is well-formed. Iterating gives each Entry in the order of the file, parsed again each time."""

    mtime_ms: int  # when the file was last written, milliseconds since 1970
    _text: str = field(repr=False)
    _spans: array[int] = field(repr=False)  # where each pair begins and ends, flat
    _times: dict[str, int] = field(repr=False)  # how often a key occurs, of those that do more than once

    def __len__(self) -> int:
        return len(self._spans) // 2

    def __iter__(self) -> Iterator[Entry]:
        text, times = self._text, self._times
        for start in self._spans[::2]:
            if found := _USUAL.match(text, start):
                entry = Entry(found[2], found[3], int(found[4]))
            else:
                key, value, _ = _read_pair(text, start)
                entry = _entry(key, value)
            yield entry._replace(problem=f"key occurs {times[entry.key]} times") if entry.key in times else entry

    def source(self, index: int) -> str:
        """The JSON text of an entry, name and value, unaltered."""
        return self._text[self._spans[2 * index] : self._spans[2 * index + 1]]


def read(path: str | Path) -> LegacyFile:
    """Read a legacy file. Raises LegacyFileError if it is not well-formed; entries with a problem raise nothing."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read()
            mtime_ms = os.fstat(file.fileno()).st_mtime_ns // 1_000_000
    except OSError as error:
        raise LegacyFileError(f"{path} can't be read ({error.strerror})", remedy="name a readable file") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise _broken(path, "not UTF-8", line, column) from None
    spans = array("Q")
    seen: set[str] = set()
    times: dict[str, int] = {}
    try:
        if not text.startswith("{", _skip_spaces(text, 0)):
            value, end = _read_value(text, _skip_spaces(text, 0))
            _check_end(text, end)
            raise LegacyFileError(
                f"{path} is {_shape(value)}, not an object from conversation keys to session IDs",
                line=1,
                column=1,
                remedy="name a sessions.json",
            )
        for key, start, end in _pairs(text):
            spans.extend((start, end))
            if key in seen:
                times[key] = times.get(key, 1) + 1
            seen.add(key)
    except JSONDecodeError as error:
        raise _broken(path, error.msg, error.lineno, error.colno) from None
    return LegacyFile(mtime_ms, text, spans, times)


def session_ids(path: str | Path) -> frozenset[str]:
    """All session IDs in a legacy file, in either shape, however old, valid or not.

    For a program that deletes transcripts and must spare these. Raises LegacyFileError.
    """
    return frozenset(entry.session_id for entry in read(path) if entry.session_id)


def expires_at_ms(entry: Entry, now_ms: int, max_age_ms: int, assumed_ms: int | None) -> int | str:
    """When an entry without a problem expires, milliseconds since 1970 by the server's clock; or why it is rejected.

    `assumed_ms` is the time of last use of entries that have none; None takes 0, so that they have expired.
    """
    used_at_ms = entry.used_at_ms if entry.used_at_ms is not None else assumed_ms or 0
    if used_at_ms > now_ms + AHEAD_MS:
        return f"last used {duration(used_at_ms - now_ms)} in the future"
    return min(used_at_ms, now_ms) + max_age_ms


def time_problem(used_at_ms: Any) -> str | None:
    """Why a value can't be a time of last use, milliseconds since 1970; None if it can, or if it is None."""
    if used_at_ms is None:
        return None
    if isinstance(used_at_ms, bool) or not isinstance(used_at_ms, int | float):
        return f"is {_shape(used_at_ms)}, not a time in milliseconds"
    if isinstance(used_at_ms, float):
        return "is not a whole number of milliseconds"
    if used_at_ms < 0:
        return "is negative"
    if used_at_ms in _LOOKS_LIKE_SECONDS:
        return "looks like seconds, not milliseconds"
    return None


class Writer(Replacement):
    """Writes a legacy file of records, all of it or nothing."""

    _before = "{\n  "

    def add(self, key: str, session_id: str, used_at_ms: int) -> None:
        """Write one record. The session ID must be valid: nothing in it needs escaping."""
        self.add_source(f'{_encode(key)}: {{"id": "{session_id}", "last_used_at": {used_at_ms}}}')

    def add_source(self, pair: str) -> None:
        """Write one entry as it stood in another file."""
        self.file.write(self._before + pair)
        self._before = ",\n  "

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.file.write("{\n}\n" if self._before.startswith("{") else "\n}\n")
        super().__exit__(kind, *rest)


def write_rejects(path: str | Path, rejects: Iterable[str]) -> None:
    """Write rejected entries, each as it stood in its file, as one JSON object that can be fixed and imported."""
    with Writer(path) as writer:
        for source in rejects:
            writer.add_source(source)


def _entry(key: str, value: Any) -> Entry:
    session_id, used_at_ms, problem = "", None, None
    if isinstance(value, str):
        session_id = value
    elif isinstance(value, tuple):
        record = dict(value)
        if isinstance(record.get("id"), str):
            session_id = record["id"]
        else:
            problem = "record without an id that is text"
        if len(record) < len(value):
            problem = problem or "record with a name that occurs twice"
        used_at_ms = record.get("last_used_at")
        if wrong_time := time_problem(used_at_ms):
            problem = problem or f"last_used_at {wrong_time}"
    else:
        problem = f"{_shape(value)} where an ID or a record belongs"
    try:
        escape(key)
        if problem is None:
            check_session_id(key, session_id)
    except (InvalidKey, InvalidSessionID) as error:
        problem = str(error)
    return Entry(key, session_id, used_at_ms if problem is None else None, problem)


def _pairs(text: str) -> Iterator[tuple[str, int, int]]:
    """The name of each pair of the top-level object, and where the pair begins and ends. Raises JSONDecodeError."""
    at = _skip_spaces(text, _skip_spaces(text, 0) + 1)
    closed = text.startswith("}", at)
    if closed:
        at += 1
    while not closed:
        if found := _USUAL.match(text, at):
            yield found[2], at, found.end(1)
            at, closed = found.end(), found[5] == "}"
            continue
        key, _, end = _read_pair(text, at)
        yield key, at, end
        at = _skip_spaces(text, end)
        closed = text.startswith("}", at)
        if not closed and not text.startswith(",", at):
            raise JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip_spaces(text, at + 1)
    _check_end(text, at)


def _read_pair(text: str, at: int) -> tuple[str, Any, int]:
    """The name and value of the pair that begins there, and where it ends. Raises JSONDecodeError."""
    if not text.startswith('"', at):
        raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    key, end = _read_value(text, at)
    colon = _skip_spaces(text, end)
    if not text.startswith(":", colon):
        raise JSONDecodeError("Expecting ':' delimiter", text, colon)
    return (key, *_read_value(text, _skip_spaces(text, colon + 1)))


def _read_value(text: str, at: int) -> tuple[Any, int]:
    try:
        return _decode(text, at)
    except JSONDecodeError:
        raise
    except ValueError:
        raise JSONDecodeError("Number with too many digits", text, at) from None
    except RecursionError:
        raise JSONDecodeError("Nested too deeply", text, at) from None


def _skip_spaces(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    assert found is not None  # the pattern matches the empty string
    return found.end()


def _check_end(text: str, at: int) -> None:
    if (end := _skip_spaces(text, at)) != len(text):
        raise JSONDecodeError("Extra data", text, end)


def _shape(value: Any) -> str:
    """What a value is, in words."""
    return _SHAPES.get(type(value), "an object" if isinstance(value, dict) else "a number")


def _broken(path: str | Path, what: str, line: int, column: int) -> LegacyFileError:
    return LegacyFileError(
        f"{path} is broken at line {line}, column {column} ({what}), nothing was written",
        line=line,
        column=column,
        remedy="fix it there",
    )
