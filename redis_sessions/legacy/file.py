"""Reads and writes sessions.json. The package's docstring says what becomes of each kind of entry."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple, Self

from redis_sessions.errors import InvalidKey, InvalidSessionID, LegacyFileError
from redis_sessions.keys import SESSION_ID, check_session_id, escape
from redis_sessions.legacy.atomic_file import Replacement
from redis_sessions.legacy.json_pairs import NoObject, pair, pairs, shape

AHEAD_MS = 5 * 60_000
_encode = json.JSONEncoder(ensure_ascii=False).encode
# As milliseconds these are days in 1970 to 1973; as seconds, 1973 to 5138.
_LOOKS_LIKE_SECONDS = range(10**8, 10**11)


_SPACE = r"[ \t\r\n]*"
# A pair that needs no second look, and the comma or brace behind it: a key in which nothing can be wrong, a valid ID, and
# a time that can't be seconds. Others are taken apart by `json`.
_USUAL = re.compile(
    rf'("([^"\\%{{}}\x00-\x1f\x7f-\x9f]{{1,128}})"{_SPACE}:{_SPACE}\{{{_SPACE}"id"{_SPACE}:{_SPACE}"({SESSION_ID})"{_SPACE},'
    rf'{_SPACE}"last_used_at"{_SPACE}:{_SPACE}([1-9][0-9]{{11,14}}){_SPACE}\}}){_SPACE}([,}}]){_SPACE}'
)


class Entry(NamedTuple):
    """One entry of a legacy file.

    Attributes:
        key: the conversation key as it stands there, valid or not.
        session_id: the ID; "" where there is none.
        used_at_ms: time of last use, milliseconds since 1970; None where the entry gives none.
        problem: why it can't be imported, or None.
    """

    key: str
    session_id: str
    used_at_ms: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """A legacy file, known to be sound. Iterating gives every Entry in its order, each taken from the text anew.

    Attributes:
        mtime_ms: when the file was last written, milliseconds since 1970.
    """

    mtime_ms: int
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
                key, value, _ = pair(text, start)
                entry = _entry(key, value)
            yield entry._replace(problem=f"key occurs {times[entry.key]} times") if entry.key in times else entry

    def source(self, index: int) -> str:
        """The JSON text of an entry, name and value, unaltered."""
        return self._text[self._spans[2 * index] : self._spans[2 * index + 1]]


def read(path: str | Path) -> LegacyFile:
    """Read a legacy file. Raises LegacyFileError if it is none; entries that are not right are no error here."""
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
        for key, _, start, end in pairs(text, _USUAL):
            spans.extend((start, end))
            if key in seen:
                times[key] = times.get(key, 1) + 1
            seen.add(key)
    except JSONDecodeError as error:
        raise _broken(path, error.msg, error.lineno, error.colno) from None
    except NoObject as error:
        raise LegacyFileError(
            f"{path} holds {error}, not an object from conversation keys to session IDs",
            line=1,
            column=1,
            remedy="name a sessions.json",
        ) from None
    return LegacyFile(mtime_ms, text, spans, times)


def session_ids(path: str | Path) -> frozenset[str]:
    """Every session ID that a legacy file holds, in either shape, however old, valid or not.

    For a transcript sweeper that must spare them. Raises LegacyFileError.
    """
    return frozenset(entry.session_id for entry in read(path) if entry.session_id)


def expires_at_ms(entry: Entry, now_ms: int, max_age_ms: int, assumed_ms: int | None) -> int | str:
    """When an entry without a problem expires, milliseconds since 1970; or why it is rejected.

    Args:
        entry: one without a problem.
        now_ms: the server's time.
        max_age_ms: how long an ID may stay unused.
        assumed_ms: time of last use of entries that give none; None takes 0, so that they have expired.
    """
    used_at_ms = entry.used_at_ms if entry.used_at_ms is not None else assumed_ms or 0
    if used_at_ms > now_ms + AHEAD_MS:
        return f"last used {_ahead(used_at_ms - now_ms)} in the future"
    return min(used_at_ms, now_ms) + max_age_ms


def _ahead(ahead_ms: int) -> str:
    seconds = ahead_ms // 1000
    return f"{seconds // 86_400:,} days" if seconds >= 2 * 86_400 else f"{seconds:,} s"


class Writer:
    """Writes a legacy file in the record shape, all of it or nothing: mode 0600, put in place when the block ends well.

    Raises FileNotWritten.
    """

    def __init__(self, path: str | Path) -> None:
        self._replacement = Replacement(path)
        self._before = "\n  "

    def __enter__(self) -> Self:
        self._file = self._replacement.__enter__().file
        self._file.write("{")
        return self

    def add(self, key: str, session_id: str, used_at_ms: int) -> None:
        """Write one record, of a valid session ID: nothing in it needs escaping."""
        before, self._before = self._before, ",\n  "
        self._file.write(f'{before}{_encode(key)}: {{"id": "{session_id}", "last_used_at": {used_at_ms}}}')

    def add_source(self, pair: str) -> None:
        """Write one entry as it stood in another file."""
        before, self._before = self._before, ",\n  "
        self._file.write(f"{before}{pair}")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._file.write("\n}\n")
        self._replacement.__exit__(kind, *rest)


def write_rejects(path: str | Path, rejects: Iterable[str]) -> None:
    """Write rejected entries, each as its own source, as one JSON object that can be mended and imported."""
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
        if trouble := time_trouble(used_at_ms):
            problem = problem or f"last_used_at {trouble}"
    else:
        problem = f"{shape(value)} where an ID or a record belongs"
    problem = _key_problem(key) or problem or _id_problem(key, session_id)
    return Entry(key, session_id, used_at_ms if problem is None else None, problem)


def _key_problem(key: str) -> str | None:
    try:
        escape(key)
    except InvalidKey as error:
        return str(error)
    return None


def _id_problem(key: str, session_id: str) -> str | None:
    try:
        check_session_id(key, session_id)
    except InvalidSessionID as error:
        return str(error)
    return None


def time_trouble(used_at_ms: Any) -> str | None:
    """What keeps a value from being a time of last use, milliseconds since 1970; None if nothing does, or there is none."""
    if used_at_ms is None:
        return None
    if isinstance(used_at_ms, bool) or not isinstance(used_at_ms, int | float):
        return f"is {shape(used_at_ms)}, not a time in milliseconds"
    if isinstance(used_at_ms, float):
        return "is no whole number of milliseconds"
    if used_at_ms < 0:
        return "is negative"
    if used_at_ms in _LOOKS_LIKE_SECONDS:
        return "looks like seconds, not milliseconds"
    return None


def _broken(path: str | Path, what: str, line: int, column: int) -> LegacyFileError:
    return LegacyFileError(
        f"{path} is broken at line {line}, column {column} ({what}), nothing was written",
        line=line,
        column=column,
        remedy="mend it there",
    )
