"""Every knob, its unit in its name, its default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import (
    BaseModel,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from redis_sessions.errors import InvalidSettings

DAY_MS = 86_400_000
_MAX_AGE_NAMES = ("session_max_age_ms", "sessionMaxAgeMs")

# A century: far past any use, and far from where now + TTL would overflow the server's 64-bit milliseconds.
_MAX_MS: Final = 36_525 * DAY_MS
_MAX_COUNT: Final = 100_000
_MAX_NAMESPACE: Final = 128
_NUMBERS: Final = (
    *("session_max_age_ms", "lease_ms", "connect_timeout_ms", "socket_timeout_ms", "deadline_ms"),
    *("scan_count", "batch_size", "max_connections"),
)
_NO_NAMESPACE = re.compile(r"[^A-Za-z0-9_.@-]")


class StoreSettings(BaseModel, frozen=True, extra="forbid"):
    """How a store behaves. Immutable, checked: an unknown name or an unusable value raises InvalidSettings.

    Attributes:
        namespace: first part of every key, 1 to 128 of `A-Z a-z 0-9 _ . @ -`; `"sessions"` unless told. Workers that don't
            share host, home and agent keep separate ones.
        session_max_age_ms: milliseconds that a session ID may stay unused before Redis drops it; 86400000 (24 h) unless
            told.
        lease_ms: milliseconds that a claim on a conversation lasts without being renewed; 30000 (30 s) unless told. A turn
            renews it every third of that.
        scan_count: keys the server looks at for one page of a scan; 1000 unless told, which take it about 3 ms.
        batch_size: legacy records written in one round trip; 500 unless told.
        connect_timeout_ms: milliseconds that one connect may take; 1000 (1 s) unless told.
        socket_timeout_ms: milliseconds that one reply may take; 1000 (1 s) unless told.
        deadline_ms: milliseconds that one round trip may take, everything resent and waiting for a connection included;
            6000 (6 s) unless told. A scan or an import takes many. No further try begins that would end later if it took
            as long as the last. Looking up a host name takes what the system's resolver takes, and one try asks every node
            of a cluster that hangs.
        max_connections: size of the connection pool, per node of a cluster and per event loop; 100 unless told. Who finds
            all in use waits for one, up to the deadline.

    Times are whole milliseconds up to a century, counts up to 100000. The last four count only for clients that this
    package builds itself (`from_url`). `settings.model_copy(update={…})` gives others, checked likewise.
    """

    namespace: str = "sessions"
    session_max_age_ms: int = DAY_MS
    lease_ms: int = 30_000
    scan_count: int = 1_000
    batch_size: int = 500
    connect_timeout_ms: int = 1_000
    socket_timeout_ms: int = 1_000
    deadline_ms: int = 6_000
    max_connections: int = 100

    # Not by Field(gt=0): its words name no remedy, and signatures would show it.
    @field_validator("namespace", *_NUMBERS, mode="plain")
    @classmethod
    def _checked(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        trouble, remedy = (_no_namespace if name == "namespace" else _no_number)(name, value)
        if trouble is not None:
            raise InvalidSettings(f"{name} {trouble}", remedy=remedy)
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _typed_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise _unknown(error, list(cls.model_fields)) from None

    if not TYPE_CHECKING:  # else a type checker would take any assignment

        def __setattr__(self, name: str, _: object) -> None:
            raise InvalidSettings(
                f"settings never change, so {name[:40]} can't be set",
                remedy=f"settings.model_copy(update={{{name[:40]!r}: …}}) gives others",
            )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002 - pydantic's
        """These settings but for what `update` names. Raises InvalidSettings."""
        return type(self)(**self.model_dump() | dict(update or {}))

    @classmethod
    def from_json_file(cls, path: str | Path, **overrides: Any) -> Self:
        """Settings whose max age comes from a JSON file that may hold anything else besides.

        Args:
            path: a JSON object with `session_max_age_ms` or `sessionMaxAgeMs` at its top level, a positive integer of
                milliseconds. With neither, the default holds; whatever else it holds is left alone.
            overrides: further settings, by name; a `session_max_age_ms` among them goes before the file's.

        Raises:
            InvalidSettings: the file can't be read, is no JSON object, or its max age can be none; or an override can't.
        """
        document = _read_object(Path(path))
        present = {name: document[name] for name in _MAX_AGE_NAMES if name in document}
        if len(set(map(repr, present.values()))) > 1:
            raise InvalidSettings(f"{path}: {' and '.join(_MAX_AGE_NAMES)} disagree", remedy="keep one of the two spellings")
        for field, value in present.items():
            trouble, remedy = _no_number("session_max_age_ms", value)
            if trouble is not None:
                raise InvalidSettings(f"{path}: {field} {trouble}", remedy=remedy)
            overrides.setdefault("session_max_age_ms", value)
        return cls(**overrides)

    def with_max_age(self, max_age_ms: int | None) -> Self:
        """These settings with another max age, None leaving it. Raises InvalidSettings."""
        return self if max_age_ms is None else self.model_copy(update={"session_max_age_ms": max_age_ms})


def _read_object(path: Path) -> dict[str, Any]:
    remedy = "name a readable UTF-8 file that holds one JSON object"
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidSettings(f"{path} can't be read ({error.strerror})", remedy=remedy) from None
    except json.JSONDecodeError as error:
        raise InvalidSettings(
            f"{path} is no JSON ({error.msg}, line {error.lineno}, column {error.colno})", remedy=remedy
        ) from None
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise InvalidSettings(f"{path} is no JSON in UTF-8", remedy=remedy) from None
    if not isinstance(document, dict):
        raise InvalidSettings(f"{path} holds no JSON object", remedy=remedy)
    return document


def _no_namespace(_: str, value: Any) -> tuple[str | None, str]:
    """What keeps a value from being a namespace, None if nothing does, and what a namespace is.

    It may be a URL with a password that went into the wrong place, so no more of it than one character is shown.
    """
    remedy = f"give 1 to {_MAX_NAMESPACE} of A-Z a-z 0-9 _ . @ -"
    if not isinstance(value, str):
        return f"is {_shown(value)}", remedy
    if not 1 <= len(value) <= _MAX_NAMESPACE:
        return f"has {len(value)} characters", remedy
    wrong = _NO_NAMESPACE.search(value)
    return wrong and f"holds {wrong[0]!a}", remedy


def _no_number(name: str, value: Any) -> tuple[str | None, str]:
    """What keeps a value from being a time or a count, None if nothing does, and what this setting takes."""
    most, unit, about = (_MAX_MS, " of milliseconds", " (a century)") if name.endswith("_ms") else (_MAX_COUNT, "", "")
    remedy = f"give a whole number{unit}, 1 to {most}{about}, such as {StoreSettings.model_fields[name].default}"
    right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
    return None if right else f"is {_shown(value)}", remedy


def _shown(value: Any) -> str:
    # It may hold secrets, as a file may, nested under the name of its max age: only scalars are quoted, and shortly.
    return repr(value)[:40] if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


def _unknown(error: ValidationError, names: list[str]) -> InvalidSettings:
    """The error for a name that is no setting, or for what a subclass has checked by pydantic."""
    from difflib import get_close_matches  # noqa: PLC0415 - a millisecond, for an error

    first = error.errors(include_input=False, include_url=False)[0]
    where = first["loc"]
    if not where:
        return InvalidSettings("that makes no settings", remedy="give them by name: StoreSettings(namespace=…)")
    if first["type"] != "extra_forbidden":
        return InvalidSettings(f"{'.'.join(map(str, where))}: {first['msg']}")
    near = get_close_matches(str(where[0]), names, 1, 0.5)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return InvalidSettings(f"{str(where[0])[:40]!r} is no setting", remedy=remedy)
