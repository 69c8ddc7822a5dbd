"""Reads and writes legacy files. The package's docstring lists the outcome for each kind of entry."""

from __future__ import annotations

import json
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis_sessions.errors import LegacyFileError
from redis_sessions.keys import SESSION_ID
from redis_sessions.legacy.atomic_file import Replacement
from redis_sessions.legacy.shape import (
    NAME,
    NO_ID,
    SAMPLE,
    Entry,
    Shape,
    as_shape,
    entry_of,
    is_own,
    json_text,
    json_type,
    key_of,
    other_shape,
)
from redis_sessions.text import duration

AHEAD_MS: Final = 5 * 60_000

# Objects become tuples of (name, value), so that names that occur twice are not lost.
_decode = json.JSONDecoder(object_pairs_hook=tuple).raw_decode

_SPACE = r"[ \t\r\n]*"
_SPACES = re.compile(_SPACE)
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
# The usual pair: a key that needs no check, a valid ID, and a time that can only be milliseconds. Many of them are matched
# at once, in a tenth of the time of `json`, which reads all others.
_LONG_ID = "[A-Za-z0-9][A-Za-z0-9_:-]{27,255}+"  # too long for a date, and without the dot of a version or a file's name
_USUAL_PAIR = (
    rf'"([^"\\%{{}}\x00-\x1f\x7f-\x9f]{{1,128}})"{_SPACE}:{_SPACE}\{{{_SPACE}"id"{_SPACE}:{_SPACE}"({_LONG_ID}|(?!{NO_ID}"){SESSION_ID})"'
    rf'{_SPACE},{_SPACE}"last_used_at"{_SPACE}:{_SPACE}([1-9][0-9]{{11,13}}){_SPACE}\}}'
)
_USUAL = re.compile(_USUAL_PAIR)
_RUN: Final = 500
_USUAL_RUN = re.compile(rf"(?:{_USUAL_PAIR}{_SPACE},{_SPACE}){{1,{_RUN}}}+")


class _Container(NamedTuple):
    """A map or list that has entries of the file."""

    first: int  # index of its first entry
    names: tuple[str, ...]  # those that lead to it
    before: str  # what the names in it begin with in the conversation key: those that a `*` stands for
    is_list: bool  # or a single record


class LegacyFile:
    """A legacy file that is well-formed. Iterating gives each Entry in the order of the file, parsed again each time.

    Attributes:
        mtime_ms: when the file was last written, milliseconds since 1970.
    """

    def __init__(self, path: str | Path, text: str, shape: Shape, mtime_ms: int) -> None:
        """Raises JSONDecodeError, and LegacyFileError for a document that is not of this shape."""
        self.mtime_ms = mtime_ms
        self._path, self._text, self._shape = path, text, shape
        # Single entries, and runs of usual pairs: where each begins and ends, and the index of its first entry.
        self._starts, self._ends, self._firsts = array("Q"), array("Q"), array("Q", (0,))
        self._places: list[_Container] = []
        self._seen: set[str] = set()
        self._times: dict[str, int] = {}  # how often a key occurs, of those that do more than once
        self._sources: tuple[int, list[str]] = (-1, [])
        self._missing = ""  # what is not in all that a `*` stands for
        self._at = _skip_spaces(text, 0)
        self._read_at(tuple(filter(None, shape.entries.split("."))), (), "")
        _check_end(text, self._at)
        if self._missing and not self._places:
            raise self._unfit(f"has nothing at {shape.entries}", (), f"there is no {self._missing} in any")
        self._seen = set()
        self._check_shape()

    def __len__(self) -> int:
        return self._firsts[-1]

    def __iter__(self) -> Iterator[Entry]:
        times = self._times
        for run, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if self._length(run) > 1:
                pairs = _USUAL.findall(self._text, start, end)
                entries = [Entry(key, session_id, int(used_at_ms)) for key, session_id, used_at_ms in pairs]
            else:
                entries = [entry_of(self._shape, *self._member(run))]
            if times:
                entries = [_repeated(entry, times[entry.key]) if entry.key in times else entry for entry in entries]
            yield from entries

    def source(self, index: int) -> str:
        """The JSON text of an entry, unaltered: name and value in a map, the value alone in a list."""
        run = bisect_right(self._firsts, index) - 1
        if self._sources[0] != run:
            text, start, end = self._text, self._starts[run], self._ends[run]
            pairs = [pair[0] for pair in _USUAL.finditer(text, start, end)] if self._length(run) > 1 else [text[start:end]]
            self._sources = run, pairs
        return self._sources[1][index - self._firsts[run]]

    def within(self, index: int) -> tuple[str, ...]:
        """The names that lead to the map or list that an entry is in."""
        return self._place(index).names

    def _length(self, run: int) -> int:
        return self._firsts[run + 1] - self._firsts[run]

    def _place(self, index: int) -> _Container:
        return self._places[bisect_right(self._places, index, key=lambda place: place.first) - 1]

    def _member(self, run: int) -> tuple[str, Any]:
        """Name and value of a single entry."""
        place, start = self._place(self._firsts[run]), self._starts[run]
        if place.is_list:
            return "", _read_value(self._text, start)[0]
        name, value, _ = _read_pair(self._text, start)
        return place.before + name, value

    def _read_at(self, path: tuple[str, ...], names: tuple[str, ...], before: str) -> None:
        """Read the value that begins here, and the entries at a path in it."""
        if not self._text.startswith(("{", "[") if not path else "{", self._at):
            value, self._at = _read_value(self._text, self._at)
            if before:
                self._missing = ".".join(path)
                return
            if not names:
                _check_end(self._text, self._at)
            raise self._unfit(f"is {json_type(value)}, not an object from conversation keys to session IDs", names)
        if not path:
            self._read_entries(names, before)
            return
        head, *rest = path
        there: list[str] = []
        for name in self._members():
            there.append(name)
            if name == ".".join(path):
                self._read_at((), (*names, name), before)
            elif head in (name, "*"):
                self._read_at(tuple(rest), (*names, name), f"{before}{name}:" if head == "*" else before)
            else:
                _, self._at = _read_value(self._text, self._at)
        if head != "*" and head not in there and ".".join(path) not in there:
            self._missing = head
            if before:
                return
            raise self._unfit(f"has no {head}", names, f"entries must name one of {', '.join(there[:9]) or 'nothing'}")

    def _read_entries(self, names: tuple[str, ...], before: str) -> None:
        """Read the map or list of entries, or the only entry, that begins here."""
        start, by_name = self._at, self._shape.key_field == NAME
        if self._text.startswith("{", start) and not by_name and self._is_record():
            self._places.append(_Container(len(self), names, before, is_list=True))
            value, self._at = _read_value(self._text, start)
            self._add(key_of(self._shape, "", value), start, self._at)
            return
        self._at = start
        is_list = self._text.startswith("[", start)
        if is_list and by_name:
            raise self._unkeyed(names)
        self._places.append(_Container(len(self), names, before, is_list))
        for name in self._members(runs=is_own(self._shape) and not before):
            start = self._start
            value, self._at = _read_value(self._text, self._at)
            self._add(key_of(self._shape, before + name, value), start, self._at)

    def _is_record(self) -> bool:
        """Whether the object that begins here has a conversation key itself, and is not a map of records that do."""
        found = False
        for name in self._members():
            value, self._at = _read_value(self._text, self._at)
            found = found or (name == self._shape.key_field and isinstance(value, str | int))
        return found

    def _members(self, *, runs: bool = False) -> Iterator[str]:
        """The names in the object, or "" for each element of the list, that begins here.

        The caller moves on behind the value before it asks for the next. Runs of usual pairs are added here.
        """
        text = self._text
        is_list = text.startswith("[", self._at)
        closing = "]" if is_list else "}"
        self._at = _skip_spaces(text, self._at + 1)
        closed = text.startswith(closing, self._at)
        if closed:
            self._at += 1
        while not closed:
            if runs and (run := _USUAL_RUN.match(text, self._at)):
                self._add_run(run)
                continue
            self._start = self._at
            name = ""
            if not is_list:
                name, self._at = _read_name(text, self._at)
            yield name
            at = _skip_spaces(text, self._at)
            closed = text.startswith(closing, at)
            if not closed and not text.startswith(",", at):
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
            self._at = at + 1 if closed else _skip_spaces(text, at + 1)

    def _add(self, key: str, start: int, end: int) -> None:
        if key and key in self._seen:
            self._times[key] = self._times.get(key, 1) + 1
        self._seen.add(key)
        self._starts.append(start)
        self._ends.append(end)
        self._firsts.append(self._firsts[-1] + 1)

    def _add_run(self, run: re.Match[str]) -> None:
        keys = [key for key, _, _ in _USUAL.findall(self._text, run.start(), run.end())]
        distinct = set(keys)
        if len(distinct) < len(keys) or not self._seen.isdisjoint(distinct):
            for key in keys:
                if key in self._seen:
                    self._times[key] = self._times.get(key, 1) + 1
                self._seen.add(key)
        self._seen |= distinct
        self._starts.append(run.start())
        self._ends.append(run.end())
        self._firsts.append(self._firsts[-1] + len(keys))
        self._at = run.end()

    def _check_shape(self) -> None:
        """Raise LegacyFileError if the first entries show that the file is of another shape."""
        runs = range(min(len(self._starts), SAMPLE))
        if not self._starts or any(self._length(run) > 1 for run in runs):
            return
        members = [self._member(run) for run in runs]
        place = self._places[0]
        if remedy := other_shape(members, self._shape, is_list=place.is_list):
            own = self._shape == Shape()
            other = "is not a map from conversation keys to session IDs" if own else "is of another shape"
            raise self._unfit(other, (), remedy)

    def _unkeyed(self, names: tuple[str, ...]) -> LegacyFileError:
        members: list[tuple[str, Any]] = []
        for _ in self._members():
            value, self._at = _read_value(self._text, self._at)
            members += [("", value)] * (len(members) < SAMPLE)
        if not names:
            _check_end(self._text, self._at)
        return self._unfit("is a list", names, other_shape(members, self._shape, is_list=True))

    def _unfit(self, problem: str, names: tuple[str, ...], remedy: str | None = None) -> LegacyFileError:
        where = f"{'.'.join(names)} in {self._path}" if names else str(self._path)
        return LegacyFileError(
            f"{where} {problem}, nothing was written", line=1, column=1, remedy=remedy or "name a sessions.json"
        )


def read(path: str | Path, shape: Shape | None = None) -> LegacyFile:
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
    del raw
    try:
        return LegacyFile(path, text, shape or Shape(), mtime_ms)
    except JSONDecodeError as error:
        raise _broken(path, error.msg, error.lineno, error.colno) from None


def session_ids(path: str | Path, shape: Shape | str | None = None) -> frozenset[str]:
    """All session IDs in a legacy file, however old, valid or not. `shape` is as for `import_legacy`.

    For a program that deletes transcripts and must spare these. Raises LegacyFileError, and InvalidSettings for an unknown
    shape.
    """
    return frozenset(entry.session_id for entry in read(path, as_shape(shape)) if entry.session_id)


def expires_at_ms(entry: Entry, now_ms: int, max_age_ms: int, assumed_ms: int | None) -> int | str:
    """When an entry without a problem expires, milliseconds since 1970 by the server's clock; or why it is rejected.

    `assumed_ms` is the time of last use of entries that have none; None takes 0, so that they have expired.
    """
    if entry.used_at_ms is None and assumed_ms is None and entry.untimed:
        return entry.untimed
    used_at_ms = entry.used_at_ms if entry.used_at_ms is not None else assumed_ms or 0
    if used_at_ms > now_ms + AHEAD_MS:
        return f"last used {duration(used_at_ms - now_ms)} in the future"
    return min(used_at_ms, now_ms) + max_age_ms


class Writer(Replacement):
    """Writes a legacy file of records, all of it or nothing."""

    _before = "{\n  "

    def add(self, rows: Sequence[tuple[str, str, int, Any]]) -> None:
        """Write records of key, session ID and time. The IDs must be valid: nothing in them needs escaping."""
        if not rows:
            return
        names = [row[0] for row in rows]
        if _ESCAPED.search("".join(names)):
            names = [json_text(name)[1:-1] for name in names]
        records = [
            f'"{name}": {{"id": "{session_id}", "last_used_at": {used_at_ms}}}'
            for name, (_, session_id, used_at_ms, _) in zip(names, rows, strict=True)
        ]
        self.file.write(self._before + ",\n  ".join(records))
        self._before = ",\n  "

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.file.write("{\n}\n" if self._before.startswith("{") else "\n}\n")
        super().__exit__(kind, *rest)


def write_rejects(path: str | Path, rejects: Iterable[tuple[tuple[str, ...], str]]) -> None:
    """Write rejected entries, each as it stood in its file, as a document of the same shape, to be fixed and imported.

    Each comes with the names that lead to its map or list.
    """
    with Replacement(path) as replacement:
        replacement.file.writelines(_document(list(rejects), 0))
        replacement.file.write("\n")


def _document(rejects: list[tuple[tuple[str, ...], str]], depth: int) -> Iterator[str]:
    if not rejects:
        yield "{\n}"
    elif depth < len(rejects[0][0]):
        before = "{"
        for name, group in groupby(rejects, key=lambda reject: reject[0][depth]):
            yield f"{before}{json_text(name)}: "
            yield from _document(list(group), depth + 1)
            before = ", "
        yield "}"
    else:
        opening, closing = "{}" if _is_pair(rejects[0][1]) else "[]"
        before = f"{opening}\n  "
        for _, source in rejects:
            yield before + source
            before = ",\n  "
        yield f"\n{closing}"


def _is_pair(source: str) -> bool:
    return source.startswith('"') and _read_value(source, 0)[1] < len(source)


def _repeated(entry: Entry, times: int) -> Entry:
    return entry._replace(problem=f"key occurs {times} times")


def _read_name(text: str, at: int) -> tuple[str, int]:
    """The name of the pair that begins there, and where its value begins. Raises JSONDecodeError."""
    if not text.startswith('"', at):
        raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    name, end = _read_value(text, at)
    colon = _skip_spaces(text, end)
    if not text.startswith(":", colon):
        raise JSONDecodeError("Expecting ':' delimiter", text, colon)
    return name, _skip_spaces(text, colon + 1)


def _read_pair(text: str, at: int) -> tuple[str, Any, int]:
    """The name and value of the pair that begins there, and where it ends. Raises JSONDecodeError."""
    name, at = _read_name(text, at)
    return (name, *_read_value(text, at))


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


def _broken(path: str | Path, what: str, line: int, column: int) -> LegacyFileError:
    return LegacyFileError(
        f"{path} is broken at line {line}, column {column} ({what}), nothing was written",
        line=line,
        column=column,
        remedy="fix it there",
    )
