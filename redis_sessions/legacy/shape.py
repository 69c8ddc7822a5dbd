"""Where a tool's file has conversations, session IDs and times: how an entry is read, and what would read another file."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
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
_DEPTH: Final = 3
# A shorter bare ID is taken for metadata, such as the name of a program.
_BARE: Final = 8
_JSON_TYPES: Final[dict[type, str]] = {
    **dict.fromkeys((tuple, dict), "an object"),
    list: "a list",
    str: "text",
    bool: "true or false",
    type(None): "null",
}

# From which number on, up to the next, a time is in this unit: each covers the years 1973 to 5138.
_UNITS: Final = (
    (10**8, "seconds", 1_000, 1),
    (10**11, MILLISECONDS, 1, 1),
    (10**14, "microseconds", 1, 1_000),
    (10**17, "nanoseconds", 1, 1_000_000),
    (10**20, "", 0, 1),
)
_SINCE_1973_MS: Final = 10**11
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
_TIME_RANKS = (re.compile(r"used|activ|access|seen", re.IGNORECASE), re.compile(r"updat|modif|saved", re.IGNORECASE))
_CREATED = re.compile(r"creat|start|born|expir", re.IGNORECASE)
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
    unit: str = MILLISECONDS  # what the time was given in
    untimed: str | None = None  # why it can't be imported unless a time of last use is assumed
    source: str = ""  # its JSON text, unaltered: name and value in a map, the value alone in a list
    within: tuple[str, ...] = ()  # the names that lead to the map or list that it is in


class Shape(BaseModel, frozen=True, extra="forbid"):
    """Where a file has conversations, session IDs and times of last use. The default reads a sessions.json.

    Paths are dotted: `state.chats`; a number is the place in a list.

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
            name = str(first["loc"][0])
            raise InvalidSettings(
                f"is invalid ({first['msg']})", setting=name, remedy="see redis_sessions.legacy.Shape"
            ) from None

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        """What differs from the default."""
        return self.model_dump(exclude_defaults=True).items()


def known_shapes() -> tuple[Shape, ...]:
    """The shapes of other tools' files that are known, by name. Raises InvalidSettings for a file that is wrong."""
    files = {file.stem: file for file in KNOWN.glob("*.toml")}
    return tuple(Shape(name=name, **tomllib.loads(files[name].read_text("utf-8"))) for name in sorted(files))


def as_shape(shape: Shape | str | None) -> Shape:
    """The shape itself, the known one of that name, or that of a sessions.json. Raises InvalidSettings."""
    if not isinstance(shape, str):
        return shape or Shape()
    shapes = {known.name: known for known in known_shapes()}
    if shape not in shapes:
        raise InvalidSettings(f"no shape {shape[:40]!r} is known", remedy=f"name one of {', '.join(shapes)}")
    return shapes[shape]


def is_own(shape: Shape) -> bool:
    """Whether this is the shape of a sessions.json, wherever it stands in the document."""
    return (shape.key_field, shape.id_fields, shape.used_fields) == (NAME, ("id",), ("last_used_at",))


def key_of(shape: Shape, name: str, value: Any) -> str:
    """The conversation key of an entry; "" if it has none. `name` is its name in the map."""
    found = name if shape.key_field == NAME else _at(value, shape.key_field)
    return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""


def id_of(shape: Shape, name: str, value: Any) -> str | None:
    """The text where an entry has its session ID, or None."""
    found = (name if field == NAME else _at(value, field) for field in shape.id_fields)
    return next((text for text in found if isinstance(text, str)), None)


def entry_of(shape: Shape, name: str, value: Any) -> Entry:
    """Read an entry."""
    key = key_of(shape, name, value)
    session_id: str | None = ""
    used_at_ms, unit, problem, untimed = None, MILLISECONDS, None, None
    if isinstance(value, str) and shape.key_field == NAME:
        session_id = value
    elif isinstance(value, tuple) or (isinstance(value, list) and shape.id_fields[0][:1].isdigit()):
        session_id = id_of(shape, name, value)
        if session_id is None:
            like = _id_like(value)
            but = f", but {like} looks like one" if like else ""
            problem = f"record without {_either(shape.id_fields)} that is text{but}"
        elif isinstance(value, tuple) and len(dict(value)) < len(value):
            problem = "record with a name that occurs twice"
        else:
            used_at_ms, unit, problem, untimed = _time(shape, value)
        if problem is None and not key and shape.key_field != NAME:
            problem = f"record without {shape.key_field}, its conversation key"
    else:
        problem = f"{json_type(value)} where an ID or a record belongs"
    if problem is None and session_id is not None:
        try:
            escape(key)
            check_session_id(key, session_id)
        except (InvalidKey, InvalidSessionID) as error:
            problem = str(error)
        else:
            if not _NO_ID.fullmatch(session_id):
                return Entry(key, session_id, used_at_ms, None, unit, untimed)
            problem = f"{session_id!r} is an empty value, a version, a date or a file's name, not a session ID"
    return Entry(key, session_id or "", None, problem)


def _time(shape: Shape, record: Any) -> tuple[int | None, str, str | None, str | None]:
    """The time of last use, its unit, what is wrong with it, and what is wrong unless a time is assumed."""
    for field in shape.used_fields:
        if (value := _at(record, field)) is not None:
            time = read_time(value)
            if not isinstance(time, str):
                return *time, None, None
            inside = _time_like(value, f"{field}.")
            return None, MILLISECONDS, f"{field} {time}" + (f", but {inside} looks like one" if inside else ""), None
    untimed = None
    if like := _time_like(record):
        untimed = f"no {_either(shape.used_fields)}, but {like} looks like a time"
    elif not is_own(shape):
        untimed = f"no {_either(shape.used_fields)}, and no time is assumed"
    return None, MILLISECONDS, None, untimed


json_text = json.JSONEncoder(ensure_ascii=False).encode


def json_type(value: Any) -> str:
    """What a value is, in words."""
    return _JSON_TYPES.get(type(value), "a number")


def time_problem(used_at_ms: Any) -> str | None:
    """Why a caller's value can't be a time of last use, milliseconds since 1970; None if it can, or if it is None."""
    if used_at_ms is None:
        return None
    if isinstance(used_at_ms, bool) or not isinstance(used_at_ms, int | float):
        return f"is {json_type(used_at_ms)}, not a time in milliseconds"
    if isinstance(used_at_ms, float):
        return "is not a whole number of milliseconds"
    if used_at_ms < 0:
        return "is negative"
    return "looks like seconds, not milliseconds" if used_at_ms < _SINCE_1973_MS else None


def read_time(value: Any) -> tuple[int, str] | str:
    """A time in a file as milliseconds since 1970, and what it was given in; or why it can't be one.

    The unit is known by the size. An integer that is too small for any is taken as milliseconds: long ago, 0 for never.
    """
    number = value
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            return iso_time(value)
        number = float(value) if "." in value else int(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return f"is {json_type(number)}, not a time"
    if isinstance(number, float) and not math.isfinite(number):
        return "is not a finite number"
    if number < 0:
        return "is negative"
    if number < _UNITS[0][0]:
        return (value, MILLISECONDS) if isinstance(value, int) else "is too small for a time since 1973"
    *_, (_, unit, multiplier, divisor) = (each for each in _UNITS if number >= each[0])
    if not unit:
        return "is too large for a time"
    return (number * multiplier // divisor if isinstance(number, int) else round(number * multiplier / divisor)), unit


def iso_time(text: str) -> tuple[int, str] | str:
    """A time in ISO 8601 as milliseconds since 1970, and LOCAL or what it was given in; or why it can't be one."""
    try:
        instant = datetime.fromisoformat(text)
        used_at_ms = round(instant.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return "is text, not a time"
    if used_at_ms < 0:
        return "is before 1970"
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


def _either(fields: tuple[str, ...]) -> str:
    return f"an {fields[0]}" if fields == ("id",) else " or ".join(fields)


# What would read a file of another shape


class OtherShape(NamedTuple):
    """What would read a file of another shape."""

    shapes: tuple[str | Shape, ...]  # names of known ones, and one made of the names in the file; () if none would
    timed: bool  # whether its entries have times


def other_shape(members: list[tuple[str, Any]], given: Shape, *, is_list: bool) -> OtherShape | None:
    """How a file can be read, judged by its first entries, if `given` reads none of them; None if it reads it well."""
    # A bare ID shows nothing: a file's metadata may look like one.
    if any(not isinstance(value, str) and id_of(given, name, value) is not None for name, value in members):
        return None
    document: Any = [value for _, value in members] if is_list else tuple(members)
    like = None if is_list else _id_like(document)
    one_record = like is not None and (_SESSION_NAME.search(like) or _time_like(document))
    metadata = any(name in _VERSIONS for name, _ in members)
    bare = [value for _, value in members if isinstance(value, str) and len(value) >= _BARE and _AN_ID.fullmatch(value)]
    if len(bare) * 2 > len(members) and not metadata and not one_record:
        return None
    place: tuple[str, ...] = ()
    name, record = "", ()
    if found := list(islice(_records(document), SAMPLE)):
        place, is_list, name, record = found[0]
        if len(found) > 1 and place and all(each[0][:-1] == place[:-1] for each in found):
            place = (*place[:-1], "*")
    elif one_record:
        is_list, record = True, document
    elif empty := [(name, value) for name, value in members if name in _CONTAINERS and isinstance(value, tuple | list)]:
        place, is_list = (empty[0][0],), isinstance(empty[0][1], list)
    else:
        return OtherShape((), timed=True) if metadata else None
    like, used_field = _id_like(record), _time_like(record)
    by_id = bool(record) and like is None  # the session ID is the name in the map
    shape = Shape(
        entries=".".join(filter(None, (given.entries, *place))),
        key_field=_key_like(record, like) if is_list or by_id else NAME,
        id_fields=(NAME if by_id else like or "id",),
        used_fields=(used_field or "last_used_at",),
    )
    known = [
        each.name
        for each in known_shapes()
        if each.entries == shape.entries and id_of(each, name, record) and key_of(each, name, record)
    ]
    return OtherShape((*known, *[shape] * (shape != Shape())), timed=not record or used_field is not None)


def _records(
    value: Any, depth: int = _DEPTH, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], bool, str, Any]]:
    """For each map or list of records like sessions: its place, whether it is a list, and the first one with its name."""
    is_list = isinstance(value, list)
    members = [("", each) for each in value[:SAMPLE]] if is_list else value[:SAMPLE]
    for name, member in members:
        if isinstance(member, tuple) and member and (_id_like(member) or (not is_list and _UUID.fullmatch(name))):
            yield place, is_list, name, member
            return
    for name, member in members:
        if depth and not is_list and isinstance(member, tuple | list):
            yield from _records(member, depth - 1, (*place, name))


def _id_like(record: Any) -> str | None:
    """The name under which an object probably has its session ID, or None."""
    if not isinstance(record, tuple):
        return None
    names = [name for name, value in record if isinstance(value, str) and _AN_ID.fullmatch(value)]
    return next((name for pattern in (_SESSION_NAME, _ID_NAME) for name in names if pattern.search(name)), None)


def _key_like(record: Any, id_field: str | None) -> str:
    scalars = [name for name, value in record if isinstance(value, str | int) and name != id_field]
    return next(filter(_KEY_NAME.search, scalars), _UNNAMED)


def _time_like(record: Any, before: str = "") -> str | None:
    """The path at which an object probably has its time of last use, or None."""
    if not isinstance(record, tuple):
        return None
    names = [
        name
        for name, value in record
        if (_TIME_NAME.search(name) or (isinstance(value, str) and "-" in value))
        and not isinstance(time := read_time(value), str)
        and time[0] >= _SINCE_1973_MS
    ]
    return before + min(names, key=_rank) if names else None


def _rank(name: str) -> int:
    if _CREATED.search(name):
        return 3
    return next((rank for rank, pattern in enumerate(_TIME_RANKS) if pattern.search(name)), 2)
