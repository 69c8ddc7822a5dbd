"""Reads and writes legacy files. docs/moving.md lists the outcome for each kind of entry."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from itertools import chain, groupby, islice
from json import JSONDecodeError
from pathlib import Path
from select import select
from typing import Any, Final, TypeAlias

from redis_sessions.errors import LegacyFileError
from redis_sessions.keys import SESSION_ID
from redis_sessions.legacy.atomic_file import Replacement, openable, replace_file
from redis_sessions.legacy.shape import (
    NAME,
    NO_ID,
    SAMPLE,
    Entry,
    Shape,
    as_shape,
    entry_of,
    is_own,
    json_type,
    key_of,
    other_shape,
)
from redis_sessions.operations.text import duration

_PIECE: Final = 1 << 20
AHEAD_MS: Final = 5 * 60_000

# Objects become tuples of (name, value), so that names that occur twice are not lost.
_decode = json.JSONDecoder(object_pairs_hook=tuple).raw_decode

_SPACE = r"[ \t\r\n]*"
_SIGNS: Final = {sign: re.compile(_SPACE + re.escape(sign) + _SPACE) for sign in ("", ",", ":", "]", "}")}
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
# The usual pair: a key that needs no check, a valid ID, and a time that can only be milliseconds. Many of them are matched
# at once, in a tenth of the time of `json`, which reads all others. What is matched already is taken apart by simpler ones.
# The group is not possessive: before Python 3.11.5, one in which something gives back matches too much (python/cpython
# #106052).
_LONG_ID = "[A-Za-z0-9][A-Za-z0-9_:-]{27,255}+"  # too long for a date, and without the dot of a version or a file's name
_USUAL = (
    rf'"[^"\\%{{}}\x00-\x1f\x7f-\x9f]{{1,128}}"{_SPACE}:{_SPACE}\{{{_SPACE}"id"{_SPACE}:{_SPACE}"(?:{_LONG_ID}|(?!{NO_ID}"){SESSION_ID})"'
    rf'{_SPACE},{_SPACE}"last_used_at"{_SPACE}:{_SPACE}[1-9][0-9]{{11,13}}{_SPACE}\}}'
)
_USUAL_RUN = re.compile(rf"{_USUAL}(?:{_SPACE},{_SPACE}{_USUAL}){{0,499}}")
_USUAL_KEYS = re.compile(r'"([^"]*+)"[^}]*+')
_USUAL_PARTS = re.compile(r'("([^"]*+)"[^"]*+"id"[^"]*+"([^"]*+)"[^0-9]*+([0-9]++)[^}]*+})')
_NAMED_ID = re.compile(rf'session[_-]?id"{_SPACE}:{_SPACE}"({SESSION_ID})"', re.IGNORECASE)
# An entry, or a run of usual pairs: what its conversation key begins with, the names that lead to its map or list, its start
# and end, its name and its value; of a run, both are None.
_Member: TypeAlias = tuple[str, tuple[str, ...], int, int, str | None, Any]


class _Cursor:
    """A place in a JSON text, which reading moves on. Raises JSONDecodeError."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.skip("")

    def begins(self, beginning: str | tuple[str, ...]) -> bool:
        return self.text.startswith(beginning, self.at)

    def value(self) -> Any:
        try:
            value, self.at = _decode(self.text, self.at)
        except JSONDecodeError:
            raise
        except ValueError:
            raise JSONDecodeError("Number with too many digits", self.text, self.at) from None
        except RecursionError:
            raise JSONDecodeError("Nested too deeply", self.text, self.at) from None
        return value

    def members(self, runs: dict[int, int] | None = None) -> Iterator[tuple[int, str | None]]:
        """Where each member of the object or list that begins here starts, and its name; "" in a list.

        The caller reads the value before it asks for the next. With `runs`, usual pairs are read here, many at once; None is
        their name. It keeps where those end, by their start, since the file is read twice.
        """
        is_list = self.begins("[")
        self.at += 1
        self.skip("")
        more = not self.begins("]" if is_list else "}")
        while more:
            start, name = self.at, ""
            if runs is not None and start not in runs and (run := _USUAL_RUN.match(self.text, start)):
                runs[start] = run.end()
            if runs and start in runs:
                self.at = runs[start]
                yield start, None
            else:
                if not is_list:
                    if not self.begins('"'):
                        raise JSONDecodeError("Expecting property name enclosed in double quotes", self.text, start)
                    name = self.value()
                    self.expect(":")
                yield start, name
            more = self.skip(",")
        self.expect("]" if is_list else "}")

    def skip(self, sign: str) -> bool:
        """Skip a sign, and the spaces around it, if it is there."""
        if found := _SIGNS[sign].match(self.text, self.at):
            self.at = found.end()
        return found is not None

    def expect(self, sign: str) -> None:
        if not self.skip(sign):
            self.skip("")
            raise JSONDecodeError(f"Expecting '{sign}'", self.text, self.at)


class LegacyFile:
    """A legacy file that is well-formed. Iterating gives each Entry in the order of the file, parsed again each time.

    Attributes:
        mtime_ms: when the file was last written, milliseconds since 1970; None if it is not a regular file.
    """

    def __init__(self, path: str | Path, text: str, shape: Shape, mtime_ms: int | None) -> None:
        """Raises JSONDecodeError, and LegacyFileError for a document that is not of this shape."""
        self.mtime_ms = mtime_ms
        self._path, self._text, self._shape = path, text, shape
        self._first: tuple[tuple[str, ...], bool] | None = None  # the first map or list: its names, whether it is a list
        self._miss: LegacyFileError | None = None
        self._runs: dict[int, int] = {}
        sample: list[_Member] = []
        keys: dict[str, None] = {}  # takes less memory than a set
        self._len = 0
        for member in self._members():
            found = self._keys(member)
            keys.update(dict.fromkeys(found))
            self._len += len(found)
            if len(sample) < SAMPLE:
                sample.append(member)
        times = Counter(chain.from_iterable(map(self._keys, self._members())) if len(keys) < self._len else ())
        self._times = {key: count for key, count in times.items() if key and count > 1}
        if self._first is None and self._miss:
            raise self._miss
        if self._first is not None:
            self._check_shape(self._first, [(name, value) for *_, name, value in sample])

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Entry]:
        text, times = self._text, self._times
        for before, within, start, end, name, value in self._members():
            if name is None:
                entries = [
                    Entry(key, session_id, int(used_at_ms), None, source, within)
                    for source, key, session_id, used_at_ms in _USUAL_PARTS.findall(text, start, end)
                ]
            else:
                entries = [entry_of(self._shape, name, value, before)._replace(source=text[start:end], within=within)]
            if times:
                keys = times.keys() & {entry.key for entry in entries}
                problems = {key: f"key occurs {times[key]} times" for key in keys}
                entries = [entry._replace(problem=problems.get(entry.key, entry.problem)) for entry in entries]
            yield from entries

    def named_ids(self) -> list[str]:
        """The IDs that stand under a name such as sessionId, anywhere in the file."""
        return _NAMED_ID.findall(self._text)

    def _keys(self, member: _Member) -> Sequence[str]:
        before, _, start, end, name, value = member
        if name is None:
            return _USUAL_KEYS.findall(self._text, start, end)
        return (key_of(self._shape, name, value, before),)

    def _members(self) -> Iterator[_Member]:
        cursor = _Cursor(self._text)
        path = self._shape.entries
        yield from self._find(cursor, tuple(path.split(".")) if path else (), (), "")
        cursor.skip("")
        if cursor.at != len(self._text):
            raise JSONDecodeError("Extra data", self._text, cursor.at)

    def _find(self, cursor: _Cursor, path: tuple[str, ...], within: tuple[str, ...], before: str) -> Iterator[_Member]:
        """The members of the map or list at a path in the value that begins here.

        A name may itself have dots in it. `before` is what their conversation keys begin with: the names that a `*` stands
        for.
        """
        if not cursor.begins(("{", "[") if not path else "{"):
            kind = json_type(cursor.value())
            self._miss = self._miss or self._unfit(within, f"is {kind}, not an object from conversation keys to session IDs")
        elif not path:
            yield from self._entries(cursor, within, before)
        else:
            head, there, missing = path[0], [], path[0] != "*"
            ways = {".".join(path[:length]): length for length in range(1, len(path) + 1)}
            for _, name in cursor.members():
                assert name is not None  # only runs are without a name
                there.append(name)
                if head == "*":
                    yield from self._find(cursor, path[1:], (*within, name), f"{before}{name}:")
                elif length := ways.get(name):
                    missing = False
                    yield from self._find(cursor, path[length:], (*within, name), before)
                else:
                    cursor.value()
            if missing:
                names = ", ".join(there[:9]) or "nothing"
                self._miss = self._miss or self._unfit(within, f"has no {head}", f"name one of {names}")

    def _entries(self, cursor: _Cursor, within: tuple[str, ...], before: str) -> Iterator[_Member]:
        """The members of the map or list that begins here, or the only record, which begins here."""
        start, shape, is_list, is_record = cursor.at, self._shape, cursor.begins("["), False
        if not is_list and shape.key_field != NAME:
            # A map of records has nothing but records in it.
            names = islice(cursor.members(), SAMPLE)
            is_record = any(isinstance(cursor.value(), str | int) and name == shape.key_field for _, name in names)
            cursor.at = start
        # A list, such as an empty one, says nothing if there are maps beside it.
        if self._first is None or (self._first[1] and not is_list and shape.key_field == NAME):
            self._first = within, is_list or is_record
        if is_record:
            value = cursor.value()
            yield before, within, start, cursor.at, "", value
            return
        for start, name in cursor.members(self._runs if is_own(shape) and not before else None):
            value = None if name is None else cursor.value()
            yield before, within, start, cursor.at, name, value

    def _check_shape(self, first: tuple[tuple[str, ...], bool], sample: list[tuple[str | None, Any]]) -> None:
        """Raise LegacyFileError if the first entries show that the file is of another shape."""
        within, is_list = first
        members = [(name, value) for name, value in sample if name is not None]
        other = other_shape(members, self._shape, is_list=is_list) if len(members) == len(sample) else None
        problem = "is of another shape"
        if is_list and self._shape.key_field == NAME:
            problem = "is a list"
        elif other is None:
            return
        shapes, timed, places = other or ([], True, [])
        if not timed:
            problem += " and has no times, so that one must be assumed"
        remedy = "name a file of conversations"
        if places:
            problem += " and has IDs in several places"
            remedy = f"name one of them at a time as entries: {', '.join(places)}"
        raise self._unfit(within, problem, remedy, shapes)

    def _unfit(
        self, within: tuple[str, ...], problem: str, remedy: str = "name a sessions.json", shapes: Sequence[str | Shape] = ()
    ) -> LegacyFileError:
        where = f"{'.'.join(within)} in {self._path}" if within else str(self._path)
        if shapes:
            remedy = f"read it with shape={', or '.join(map(repr, shapes))}"
        return LegacyFileError(f"{where} {problem}, nothing was written", line=1, column=1, remedy=remedy, shapes=shapes)


def read(path: str | Path, shape: Shape | None = None) -> LegacyFile:
    """Read a legacy file. Raises LegacyFileError if it is not well-formed; entries with a problem raise nothing."""
    try:
        with open(openable(Path(path)), "rb", buffering=0) as file:  # noqa: PTH123 - may be a number
            raw = _whole(file)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise LegacyFileError(f"{path} can't be read ({error.strerror})", remedy="name a readable file") from None
    try:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise JSONDecodeError("not UTF-8", raw.decode("latin-1"), error.start) from None
        del raw
        # A pipe's is the time at which it was read.
        mtime_ms = status.st_mtime_ns // 1_000_000 if stat.S_ISREG(status.st_mode) else None
        return LegacyFile(path, text, shape or Shape(), mtime_ms)
    except JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise LegacyFileError(
            f"{path} is broken at {where} ({error.msg}), nothing was written",
            line=error.lineno,
            column=error.colno,
            remedy="fix it there",
        ) from None


def _whole(file: FileIO) -> bytes:
    """Read to the end, also where another process that shares the open file has made it non-blocking."""
    if os.get_blocking(file.fileno()):
        return file.readall()
    parts: list[bytes | None] = [None]
    while parts[-1] != b"":
        select([file], [], [])
        parts.append(file.read(_PIECE))
    return b"".join(filter(None, parts))


def session_ids(path: str | Path, shape: Shape | str | None = None) -> frozenset[str]:
    """All session IDs in a legacy file, however old, valid or not. `shape` is as for `import_legacy`.

    For a program that deletes transcripts and must spare these: an ID that stands under a name such as sessionId is
    returned wherever it is in the file. Raises LegacyFileError, and InvalidSettings for an unknown shape.
    """
    file = read(path, as_shape(shape))
    return frozenset(entry.session_id for entry in file if entry.session_id).union(file.named_ids())


def expires_at_ms(entry: Entry, now_ms: int, max_age_ms: int, assumed_ms: int | None) -> int | str:
    """When an entry without a problem expires, milliseconds since 1970 by the server's clock; or why it is rejected.

    `assumed_ms` is the time of last use of entries that have none; None takes 0, so that they have expired.
    """
    used_at_ms = entry.used_at_ms
    if used_at_ms is None:
        if assumed_ms is None and entry.untimed:
            return entry.untimed
        used_at_ms = assumed_ms or 0
    if used_at_ms <= now_ms:
        return used_at_ms + max_age_ms
    if used_at_ms <= now_ms + AHEAD_MS:
        return now_ms + max_age_ms
    return f"last used {duration(used_at_ms - now_ms)} in the future"


class Writer(Replacement):
    """Writes a legacy file of records, all of it or nothing."""

    _before = "{\n  "

    def add(self, rows: Sequence[tuple[str, str, int, Any]]) -> None:
        """Write records of key, session ID and time. The IDs must be valid: nothing in them needs escaping."""
        if not rows:
            return
        names = [row[0] for row in rows]
        if _ESCAPED.search("".join(names)):
            names = [json.dumps(name, ensure_ascii=False)[1:-1] for name in names]
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
    replace_file(path, _document(list(rejects), 0) + "\n")


def _document(rejects: list[tuple[tuple[str, ...], str]], depth: int) -> str:
    if rejects and depth < len(rejects[0][0]):
        groups = groupby(rejects, key=lambda reject: reject[0][depth])
        inner = (f"{json.dumps(name, ensure_ascii=False)}: {_document(list(group), depth + 1)}" for name, group in groups)
        # Half of a surrogate pair can't be encoded, and its escape is the same in JSON.
        return f"{{{', '.join(inner)}}}".encode("utf-8", "backslashreplace").decode()
    sources = [source for _, source in rejects]
    opening, closing = "{}" if not sources or _is_pair(sources[0]) else "[]"
    return f"{opening}\n  " + ",\n  ".join(sources) + f"\n{closing}"


def _is_pair(source: str) -> bool:
    return source.startswith('"') and _decode(source)[1] < len(source)
