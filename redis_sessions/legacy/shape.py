"""Where a tool's file has conversations, session IDs and times: how an entry is read, and what would read another file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from redis_sessions.errors import InvalidKey, InvalidSessionID, InvalidSettings
from redis_sessions.keys import SESSION_ID, check_session_id, escape

KNOWN: Final = Path(__file__).with_name("known")
NAME: Final = "@key"
_UNNAMED: Final = "FIELD_OF_THE_KEY"
MILLISECONDS: Final = "milliseconds"
LOCAL: Final = "ISO 8601 without time zone, taken as local"
# So many entries, or names of an object, show what shape a file has.
SAMPLE: Final = 50
_DEPTH: Final = 8
# A shorter bare ID is taken for metadata, such as the name of a program.
_BARE: Final = 8
_JSON_TYPES: Final = {tuple: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}

# The size of a number shows what it counts: in each unit, these are the years 1973 to 5138.
_PER_SECOND: Final = {"seconds": 1, MILLISECONDS: 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_1973_S: Final = 10**8
_5138_S: Final = 10**11
SINCE_1973_MS: Final = _1973_S * 1000
_NO_TIME: Final = "is not a time since 1973"
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,9})?")

# Text of the form of a session ID that is none: an empty value, a version, a date or a file's name.
NO_ID: Final = (
    r"(?i:undefined|null|none|nan|true|false|unknown|v?[0-9]{1,5}(?:\.[0-9]{1,5}){1,3}|"
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9:.]{1,15}Z?)?|[a-z0-9._:-]{1,200}\.(?:jsonl?|db|sqlite3?|log|txt|toml|ya?ml|md))"
)
_NO_ID = re.compile(NO_ID)
_AN_ID = re.compile(rf"(?!{NO_ID}\Z){SESSION_ID}")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_SESSION_NAME = re.compile(r"session[_-]?id\Z", re.IGNORECASE)
_ID_NAME = re.compile(r"(?:id|uuid|session|(?:thread|resume)[_-]?id)\Z", re.IGNORECASE)
_KEY_NAME = re.compile(r"key|conversation|chat|thread|channel|topic|room|user|issue|name", re.IGNORECASE)
_TIME_NAME = re.compile(r"(?:_at|At|^at|^ts|_ts|[Tt]ime\w*|[Ss]tamp|[Dd]ate\w*|[Uu]sed|[Ss]een|[Aa]ctiv\w+|[Aa]ccess\w*)\Z")
# Of several times, the one of the last use is meant.
_USED_NAME = re.compile(r"used|activ|access|seen", re.IGNORECASE)
_UPDATED_NAME = re.compile(r"updat|modif|saved", re.IGNORECASE)
_CREATED_NAME = re.compile(r"creat|start|born|expir", re.IGNORECASE)
_VERSIONS: Final = {"version", "schema_version", "schemaVersion", "$schema"}
_CONTAINERS: Final = {"sessions", "conversations", "chats", "channels", "threads", "entries", "items", "rows"}

DottedPath = Annotated[str, Field(min_length=1)]
DottedPaths = Annotated[tuple[DottedPath, ...], Field(min_length=1)]


class Entry(NamedTuple):
    """One entry of a legacy file, valid or not."""

    key: str
    session_id: str  # "" if there is none
    used_at_ms: int | None = None  # time of last use, milliseconds since 1970
    problem: str | None = None  # why it can't be imported
    source: str = ""  # its JSON text, unaltered: name and value in a map, the value alone in a list
    within: tuple[str, ...] = ()  # the names that lead to the map or list that it is in
    unit: str = MILLISECONDS  # what the time was given in
    untimed: str | None = None  # why it can't be imported unless a time of last use is assumed


class Shape(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """Where a file has conversations, session IDs and times of last use. The default reads a sessions.json.

    Paths are dotted: `state.chats`; in those of fields, a number is the place in a list.

    >>> Shape(entries="state.chats", id_fields=("sessionId",), used_fields=("updatedAt",)).key_field
    '@key'

    Raises InvalidSettings, which names the field.

    Attributes:
        name: of a known shape; "" for others.
        about: the tool and its file.
        entries: where the map or list of conversations is; "" is the whole document. `*` stands for any name, which
            becomes the first part of the conversation keys: `channels.*.threads` gives `C1:17`.
        key_field: where an entry has its conversation key; "@key" is its name in the map.
        id_fields: where it has its session ID, the first that is there; "@key" is its name in the map.
        used_fields: where it has its time of last use, the first that is there.
    """

    name: str = ""
    about: str = ""
    entries: str = ""
    key_field: DottedPath = NAME
    id_fields: DottedPaths = ("id",)
    used_fields: DottedPaths = ("last_used_at",)

    @model_validator(mode="wrap")
    @classmethod
    def _wrap_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name, problem = str(next(iter(first["loc"]), "shape")), f"is invalid ({first['msg']})"
            raise InvalidSettings(problem, setting=name, remedy="see redis_sessions.legacy.Shape") from None

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        """What differs from the default."""
        return self.model_dump(exclude_defaults=True).items()


def known_shapes() -> tuple[Shape, ...]:
    """The shapes of other tools' files that are known, by name. Raises InvalidSettings for a file that is wrong."""
    files = {file.stem: file for file in KNOWN.glob("*.toml")}
    return tuple(Shape(name=name, **tomllib.loads(files[name].read_text("utf-8"))) for name in sorted(files))


def as_shape(shape: Shape | str | None) -> Shape:
    """The shape itself, the known one of that name, or that of a sessions.json. Raises InvalidSettings."""
    if isinstance(shape, Shape | None):
        return shape or Shape()
    if not isinstance(shape, str):
        raise InvalidSettings(
            f"is a {type(shape).__name__}", setting="shape", remedy="pass a redis_sessions.legacy.Shape, or the name of one"
        )
    shapes = {known.name: known for known in known_shapes()}
    if shape not in shapes:
        raise InvalidSettings(f"no shape {shape[:40]!r} is known", remedy=f"name one of {', '.join(shapes)}")
    return shapes[shape]


def is_own(shape: Shape) -> bool:
    """Whether this is the shape of a sessions.json, wherever it stands in the document."""
    return (shape.key_field, shape.id_fields, shape.used_fields) == (NAME, ("id",), ("last_used_at",))


def key_of(shape: Shape, name: str, value: Any, before: str = "") -> str:
    """The conversation key of an entry; "" if it has none. `name` is its name in the map, `before` what keys begin with."""
    found = name if shape.key_field == NAME else _at(value, shape.key_field)
    key = str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""
    return key and before + key


def id_of(shape: Shape, name: str, value: Any) -> str | None:
    """The text where an entry has its session ID, or None."""
    found = (name if field == NAME else _at(value, field) for field in shape.id_fields)
    return next((text for text in found if isinstance(text, str)), None)


def entry_of(shape: Shape, name: str, value: Any, before: str = "") -> Entry:
    """Read an entry; its name and what its key begins with are as for `key_of`."""
    key, session_id = key_of(shape, name, value, before), id_of(shape, name, value)
    used_at_ms, unit, problem, untimed = None, MILLISECONDS, None, None
    if isinstance(value, str) and shape.key_field == NAME:
        session_id = value
    elif not isinstance(value, tuple) and not (isinstance(value, list) and shape.id_fields[0][:1].isdigit()):
        problem = f"{json_type(value)} where an ID or a record belongs"
    elif session_id is None:
        problem = f"record without text in {' or '.join(shape.id_fields)}"
        if like := _id_like(value):
            problem += f", but {like} looks like an ID"
            session_id = dict(value)[like]
    elif isinstance(value, tuple) and len(dict(value)) < len(value):
        problem = "record with a name that occurs twice"
    elif not key and shape.key_field != NAME:
        problem = f"record without {shape.key_field}, its conversation key"
    else:
        used_at_ms, unit, problem, untimed = _time(shape, value)
    if problem is None and session_id is not None:
        try:
            escape(key)
            check_session_id(key, session_id)
        except (InvalidKey, InvalidSessionID) as error:
            problem = str(error)
        else:
            if not _NO_ID.fullmatch(session_id):
                return Entry(key, session_id, used_at_ms, unit=unit, untimed=untimed)
            problem = f"{session_id!r} is an empty value, a version, a date or a file's name, not a session ID"
    return Entry(key, session_id or "", None, problem)


def _time(shape: Shape, record: Any) -> tuple[int | None, str, str | None, str | None]:
    """The time of last use, its unit, what is wrong with it, and what is wrong unless a time is assumed."""
    problem, untimed = None, None
    found = ((field, value) for field in shape.used_fields if (value := _at(record, field)) is not None)
    field, value = next(found, ("", None))
    time = read_time(value) if field else ""
    if not isinstance(time, str):
        return *time, None, None
    if field:
        like = _time_like(value, f"{field}.")
        problem = f"{field} {time}" + (f", but {like} looks like one" if like else "")
    elif (like := _time_like(record)) or not is_own(shape):
        missing = f"no {' or '.join(shape.used_fields)}, "
        untimed = missing + (f"but {like} looks like a time" if like else "and no time is assumed")
    return None, MILLISECONDS, problem, untimed


def json_type(value: Any) -> str:
    """What a value is, in words."""
    return _JSON_TYPES.get(type(value), "a number")


def read_time(value: Any) -> tuple[int, str] | str:
    """A time in a file as milliseconds since 1970, and what it was given in; or why it can't be one.

    An integer that is too small for any unit is taken as milliseconds: long ago. 0, also as text, is for never.
    """
    number = value
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            return iso_time(value)
        number = float(value) if "." in value else int(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return f"is {json_type(number)}, not a time"
    if number == 0 or (isinstance(value, int) and 0 <= value < _1973_S):
        return int(number), MILLISECONDS
    for unit, per_second in _PER_SECOND.items():
        if _1973_S <= number < _5138_S * per_second:
            return (number * 1000 // per_second if isinstance(number, int) else round(number * 1000 / per_second)), unit
    return _NO_TIME


def iso_time(text: str) -> tuple[int, str] | str:
    """A time in ISO 8601 as milliseconds since 1970, and LOCAL or what it was given in; or why it can't be one."""
    try:
        instant = datetime.fromisoformat(text)
        used_at_ms = round(instant.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return "is text, not a time"
    if used_at_ms < 0:
        return _NO_TIME
    return used_at_ms, "ISO 8601" if instant.tzinfo else LOCAL


def _at(value: Any, path: str) -> Any:
    """What is at a dotted path, or None. A name may itself have dots in it."""
    members = dict(value) if isinstance(value, tuple) else {}
    if isinstance(value, list):
        members = {str(place): each for place, each in enumerate(value)}
    if path in members:
        return members[path]
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        if (name := ".".join(parts[:cut])) in members:
            return _at(members[name], ".".join(parts[cut:]))
    return None


def other_shape(
    members: list[tuple[str, Any]], given: Shape, *, is_list: bool
) -> tuple[list[str | Shape], bool, list[str]] | None:
    """What would read a file, judged by its first entries, and whether they have times; None if `given` reads it well.

    What reads it are names of known shapes, and a Shape made of the names in the file; nothing if it has no conversations,
    or if no single path leads to all IDs: then the places where they are come last.
    """
    # A bare ID shows nothing: a file's metadata may look like one.
    if any(not isinstance(value, str) and id_of(given, name, value) is not None for name, value in members):
        return None
    document: Any = [value for _, value in members] if is_list else tuple(members)
    like = _id_like(document)
    sure = _is_sure(like)
    one_record = sure or (like is not None and _time_like(document) is not None)
    metadata = any(name in _VERSIONS for name, _ in members)
    if sum(_is_bare(value) for _, value in members) * 2 > len(members) and not metadata and not one_record:
        return None
    found = list(_below(document, (), inside=sure) if one_record else _records(document))
    if one_record and (sure or not found):
        found.append(_Candidate((), True, "", document, like))
    if any(_is_sure(record.like) for record in found):
        found = [
            record
            for record in found
            if _is_sure(record.like) or record.is_by_id or _CONTAINERS.intersection(record.place[-1:])
        ]
    # What differs in names of no meaning is of one kind.
    kinds: dict[tuple[bool, bool, tuple[str, ...]], list[_Candidate]] = {}
    for record in found:
        place = tuple(name if name in _CONTAINERS else "" for name in record.place)
        kinds.setdefault((record.is_list, record.is_by_id, place), []).append(record)
    places = [_common(record.place for record in kind) for kind in kinds.values()]
    if len(kinds) > 1:
        return [], True, [".".join(name or "[]" for name in place) or "the document" for place in places]
    if any({"", "*"}.intersection(record.place) for record in found):  # no path can say that
        return [], True, []
    if found:
        [place], is_list = places, found[0].is_list
    elif empty := [(name, value) for name, value in members if name in _CONTAINERS and isinstance(value, tuple | list)]:
        place, is_list = (empty[0][0],), isinstance(empty[0][1], list)
    else:
        return ([], True, []) if metadata else None
    fields = tuple(chain.from_iterable(record.value for record in found if not isinstance(record.value, str)))
    like, used_field = _id_like(fields), _time_like(fields)
    by_id = bool(found) and found[0].is_by_id
    keys = [name for name, value in fields if isinstance(value, str | int) and name != like]
    shape = Shape(
        entries=".".join(filter(None, (given.entries, *place))),
        key_field=_first(keys, _KEY_NAME) or _UNNAMED if is_list or by_id else NAME,
        id_fields=(NAME if by_id else like or "id",),
        used_fields=(used_field or "last_used_at",),
    )
    names = [
        known.name
        for known in known_shapes()
        if (known.entries, known.key_field == NAME) == (shape.entries, shape.key_field == NAME)
        and any(id_of(known, name, value) and key_of(known, name, value) for _, _, name, value, _ in found[:1])
    ]
    return [*names, *[shape] * (shape != Shape())], not found or used_field is not None, []


class _Candidate(NamedTuple):
    """What looks like a record of a session, or a bare ID, in a map or list of a file."""

    place: tuple[str, ...]  # the names that lead to that map or list; "" for one in a list, to which no path leads
    is_list: bool
    name: str
    value: Any
    like: str | None  # the name of what looks like its ID

    @property
    def is_by_id(self) -> bool:
        """Whether its name in the map looks like its ID."""
        return self.like is None and isinstance(self.value, tuple)


def _records(value: Any, place: tuple[str, ...] = (), *, inside: bool | None = None) -> Iterator[_Candidate]:
    """What looks like records of sessions in the maps and lists of a value.

    `inside` is None if the value is not in such a record itself, else whether that one is sure; what is in one is one less
    often.
    """
    is_list, in_container = isinstance(value, list), bool(_CONTAINERS.intersection(place[-1:]))
    members = [("", each) for each in value] if is_list else value
    by_id = all(_UUID.fullmatch(name) and _id_like(member) is None for name, member in members)
    count = 0
    for name, member in members:
        like = _id_like(member)
        named = by_id and isinstance(member, tuple) and any(isinstance(each, str | int) for _, each in member)
        sure = _is_sure(like)
        if like is not None or named or (in_container and not is_list and _is_bare(member)):
            count += 1
            if sure or inside is None or (in_container and not inside):
                yield _Candidate(place, is_list, name, member, like)
        if len(place) < _DEPTH and isinstance(member, tuple | list):
            if like is not None:
                yield from _below(member, (*place, name), inside=sure or bool(inside))
            else:
                yield from _records(member, (*place, name), inside=bool(inside) if named else inside)
        if count == SAMPLE:
            return


def _below(record: Any, place: tuple[str, ...], *, inside: bool) -> Iterator[_Candidate]:
    """What looks like records of sessions in the maps and lists that a record has."""
    for name, value in record:
        if isinstance(value, tuple | list):
            yield from _records(value, (*place, name), inside=inside)


def _common(places: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The path that leads to all places of the same length."""
    return tuple(names[0] if len(set(names)) == 1 else "*" for names in zip(*places, strict=True))


def _is_sure(like: str | None) -> bool:
    return like is not None and _SESSION_NAME.search(like) is not None


def _is_bare(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= _BARE and _AN_ID.fullmatch(value) is not None


def _id_like(record: Any) -> str | None:
    """The name under which an object probably has its session ID, or None."""
    names = record if isinstance(record, tuple) else ()
    ids = [name for name, value in names if isinstance(value, str) and _AN_ID.fullmatch(value)]
    return _first(ids, _SESSION_NAME, _ID_NAME)


def _time_like(record: Any, before: str = "") -> str | None:
    """The path at which an object probably has its time of last use, or None."""
    times = [
        name
        for name, value in (record if isinstance(record, tuple) else ())
        if (_TIME_NAME.search(name) or (isinstance(value, str) and "-" in value))
        and not isinstance(time := read_time(value), str)
        and time[0] >= SINCE_1973_MS
    ]
    times.sort(key=lambda name: bool(_CREATED_NAME.search(name)))
    return before + (_first(times, _USED_NAME, _UPDATED_NAME) or times[0]) if times else None


def _first(names: list[str], *patterns: re.Pattern[str]) -> str | None:
    """The first name that matches the first pattern, or else the next one."""
    return next((name for pattern in patterns for name in names if pattern.search(name)), None)
