"""Every knob, its unit in its name, its default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from redis_sessions.errors import InvalidSettings

DAY_MS = 86_400_000
_MAX_AGE_NAMES = ("session_max_age_ms", "sessionMaxAgeMs")

# A century: far past any use, and far from where now + TTL would overflow the server's 64-bit milliseconds.
_Milliseconds = Annotated[int, Field(strict=True, gt=0, le=36_525 * DAY_MS)]
_Count = Annotated[int, Field(strict=True, gt=0, le=100_000)]


class StoreSettings(BaseModel):
    """How a store behaves. Immutable, validated; an unknown or unusable value raises InvalidSettings.

    Attributes:
        namespace: first part of every key, `^[A-Za-z0-9_.@-]{1,128}$`. Workers that don't share host, home and agent
            keep separate ones.
        session_max_age_ms: how long a session ID may stay unused before Redis drops it; 24 h.
        lease_ms: how long a claim on a conversation lasts without being renewed; it is renewed every third of that.
        scan_count: keys the server looks at for one page of a scan. 1000 take it about 3 ms.
        batch_size: legacy records written in one round trip.
        connect_timeout_ms, socket_timeout_ms: how long one connect and one reply may take.
        deadline_ms: how long one round trip may take, everything resent and waiting for a connection included; a scan or
            an import takes many. No further try begins that would end later if it took as long as the last. Looking up a
            host name takes what the system's resolver takes, and one try asks every node of a cluster that hangs.
        max_connections: size of the connection pool, per node of a cluster and per event loop. Who finds all in use waits
            for one, up to the deadline.

    The last four count only for clients that this package builds itself (`from_url`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,128}\z")] = "sessions"
    session_max_age_ms: _Milliseconds = DAY_MS
    lease_ms: _Milliseconds = 30_000
    scan_count: _Count = 1_000
    batch_size: _Count = 500
    connect_timeout_ms: _Milliseconds = 1_000
    socket_timeout_ms: _Milliseconds = 1_000
    deadline_ms: _Milliseconds = 6_000
    max_connections: _Count = 100

    @model_validator(mode="wrap")
    @classmethod
    def _typed_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise InvalidSettings(_first_complaint(error)) from None

    @classmethod
    def from_json_file(cls, path: str | Path, **overrides: Any) -> Self:
        """Settings whose max age comes from a JSON file that may hold anything else besides.

        Args:
            path: a JSON object with `session_max_age_ms` or `sessionMaxAgeMs` at its top level, a positive integer of
                milliseconds. With neither, the default holds.
            overrides: further settings, by name.

        Raises:
            InvalidSettings: the file can't be read, is no JSON object, or its max age is no positive integer.
        """
        document = _read_object(Path(path))
        present = {name: document[name] for name in _MAX_AGE_NAMES if name in document}
        if len(set(map(repr, present.values()))) > 1:
            raise InvalidSettings(f"{path}: {' and '.join(_MAX_AGE_NAMES)} disagree", remedy="keep one of the two spellings")
        for field, value in present.items():
            try:
                cls(session_max_age_ms=value)
            except InvalidSettings:
                raise InvalidSettings(
                    f"{path}: {field} is {_shown(value)}", remedy="give a positive integer of milliseconds, such as 86400000"
                ) from None
            overrides.setdefault("session_max_age_ms", value)
        return cls(**overrides)

    def with_max_age(self, max_age_ms: int | None) -> Self:
        """These settings with another max age, None leaving it. Raises InvalidSettings."""
        if max_age_ms is None:
            return self
        return type(self)(**self.model_dump() | {"session_max_age_ms": max_age_ms})


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


def _shown(value: Any) -> str:
    # The file may hold secrets beside the max age, even nested under its name: only scalars are quoted, and shortly.
    return repr(value)[:40] if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "settings"
    return f"{field}: {first['msg']}"
