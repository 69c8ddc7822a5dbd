"""The settings of a store, each with its unit in its name, its range and its default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from redis_sessions.errors import InvalidSettings

DAY_MS: Final = 86_400_000
# A century: far past any use, and far from where now + TTL would overflow the server's 64-bit milliseconds.
_MAX_MS: Final = 36_525 * DAY_MS
_MAX_COUNT: Final = 100_000
_MAX_TOKENS: Final = 1_000_000_000
_LIMITS: Final = ("max_turns", "max_lifetime_ms", "max_context_tokens")
# The settings that a JSON file may have, each by either of two names.
_IN_FILES: Final = {
    name: (name, re.sub("_([a-z])", lambda found: found[1].upper(), name)) for name in ("session_max_age_ms", *_LIMITS)
}

NAMESPACE: Final = "[A-Za-z0-9_.@-]{1,128}"
# The descriptions are what an error tells the caller to give.
Namespace = Annotated[str, Field(strict=True, pattern=f"^{NAMESPACE}$", description="1 to 128 of A-Z a-z 0-9 _ . @ -")]
Milliseconds = Annotated[
    int, Field(strict=True, ge=1, le=_MAX_MS, description=f"a whole number of milliseconds, 1 to {_MAX_MS}")
]
Number = Annotated[int, Field(strict=True, ge=0, le=_MAX_COUNT, description=f"a whole number, 0 to {_MAX_COUNT}")]
Count = Annotated[int, Field(strict=True, ge=1, le=_MAX_COUNT, description=f"a whole number, 1 to {_MAX_COUNT}")]
# A field's own description takes precedence over that of what it may be.
Limit = Annotated[Count | None, Field(description=f"a whole number, 1 to {_MAX_COUNT}, or None")]
MillisecondsLimit = Annotated[
    Milliseconds | None, Field(description=f"a whole number of milliseconds, 1 to {_MAX_MS}, or None")
]
TokensLimit = Annotated[
    Annotated[int, Field(strict=True, ge=1, le=_MAX_TOKENS)] | None,
    Field(description=f"a whole number, 1 to {_MAX_TOKENS}, or None"),
]


class StoreSettings(BaseModel, frozen=True, extra="forbid"):
    """How a store behaves. Immutable and checked: an unknown name or an invalid value raises InvalidSettings.

    Attributes:
        namespace: first part of every key, 1 to 128 of `A-Z a-z 0-9 _ . @ -`; default: `"sessions"`. Workers that can't
            resume each other's sessions need separate ones.
        session_max_age_ms: milliseconds that a session ID may stay unused before Redis drops it; default: 86400000 (24 h).
        lease_ms: milliseconds that a claim on a conversation lasts unless renewed; default: 30000 (30 s). A turn renews
            it every third of that.
        give_up_after: undecided failures in a row to resume a session, after which the conversation's next turn runs fresh;
            default: 3; 0: never. They are counted in the record.
        max_turns: turns of a session after which the conversation's next turn runs fresh, how="rotated"; default: None, no
            limit. This and the next two are read from the record.
        max_lifetime_ms: milliseconds since its first turn was saved, the same; default: None.
        max_context_tokens: tokens of its context after its last turn (see `Turn.context_tokens`), the same; default: None.
        records: whether what is known of a session beside its ID is kept in a hash; default: True. Without it nothing is
            given up, and nothing can be rotated. A turn without a lease keeps none either.
        scan_count: keys that the server looks at for one page of a scan; default: 1000, which take it about 3 ms.
        batch_size: legacy records written in one round trip; default: 500.
        replicas: replicas that must have a save before it counts as acknowledged; default: 0, which doesn't wait for any.
            They are waited for half of `socket_timeout_ms`, or of the `socket_timeout` of a client of your own if that is
            shorter, in the same round trip. Too few by then: `set` and `save` raise NotReplicated, and the result of
            `resume` says `replicated=False`; the ID is saved all the same.
        connect_timeout_ms: milliseconds that one connect may take; default: 1000 (1 s).
        socket_timeout_ms: milliseconds that one reply may take; default: 1000 (1 s).
        deadline_ms: milliseconds that one round trip may take, including retries and waiting for a connection;
            default: 6000 (6 s). A scan or an import takes many round trips. No retry begins that would end later if it took
            as long as the last. Resolving a host name is not limited by it, and one try may ask every node of a cluster
            that hangs.
        max_connections: size of the connection pool, per node of a cluster and per event loop; default: 100. If all are
            in use, a call waits for one until its deadline.

    Times are whole milliseconds up to a century, counts go up to 100000, tokens to 1000000000. The last four apply only to
    clients that this package builds itself (`from_url`), except for the wait for replicas.
    `settings.model_copy(update={…})` returns changed settings, also checked.
    """

    namespace: Namespace = "sessions"
    session_max_age_ms: Milliseconds = DAY_MS
    lease_ms: Milliseconds = 30_000
    give_up_after: Number = 3
    max_turns: Limit = None
    max_lifetime_ms: MillisecondsLimit = None
    max_context_tokens: TokensLimit = None
    records: Annotated[bool, Field(strict=True, description="True or False")] = True
    scan_count: Count = 1_000
    batch_size: Count = 500
    replicas: Number = 0
    connect_timeout_ms: Milliseconds = 1_000
    socket_timeout_ms: Milliseconds = 1_000
    deadline_ms: Milliseconds = 6_000
    max_connections: Count = 100

    @model_validator(mode="wrap")
    @classmethod
    def _wrap_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            made = handler(data)
        except ValidationError as error:
            raise _explain(error, cls) from None
        if (limits := made.limits) and not made.records:
            raise InvalidSettings(f"{limits[0]} is kept by the record, and records is False", remedy="leave out one of them")
        return made

    @property
    def limits(self) -> list[str]:
        """Names of the limits of a session that are set."""
        return [name for name in _LIMITS if getattr(self, name) is not None]

    if not TYPE_CHECKING:  # else a type checker would accept any assignment

        def __setattr__(self, name: str, _: object) -> None:
            raise InvalidSettings(
                f"settings are immutable, so {name[:40]} can't be set",
                remedy=f"settings.model_copy(update={{{name[:40]!r}: …}}) returns changed ones",
            )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002 - pydantic's
        """These settings with the values of `update`. Raises InvalidSettings."""
        return type(self)(**self.model_dump(exclude_unset=True) | dict(update or {}))

    @classmethod
    def from_json_file(cls, path: str | Path, **overrides: Any) -> Self:
        """Settings whose max age and limits of a session come from a JSON file, which may hold anything else too.

        Args:
            path: a JSON object with any of `session_max_age_ms`, `max_turns`, `max_lifetime_ms` and `max_context_tokens` at
                its top level, each also as `sessionMaxAgeMs` and so on. For what is not there the default applies;
                everything else in the file is ignored.
            overrides: further settings, by name; they take precedence over the file's.

        Raises:
            InvalidSettings: the file can't be read, is not a JSON object, or one of these is invalid; or an override is.
        """
        document = _read_object(Path(path))
        for setting, names in _IN_FILES.items():
            present = {name: document[name] for name in names if name in document}
            if len(set(map(repr, present.values()))) > 1:
                raise InvalidSettings(f"{path}: {' and '.join(names)} disagree", remedy="keep one of the two spellings")
            for name, value in present.items():
                try:
                    cls(**{setting: value})
                except InvalidSettings as error:
                    raise InvalidSettings(f"{path}: {name} {error.problem}", remedy=error.remedy) from None
                overrides.setdefault(setting, value)
        return cls(**overrides)

    def with_max_age(self, max_age_ms: int | None) -> Self:
        """These settings with another max age; None changes nothing. Raises InvalidSettings."""
        return self if max_age_ms is None else self.model_copy(update={"session_max_age_ms": max_age_ms})


def _read_object(path: Path) -> dict[str, Any]:
    remedy = "name a readable UTF-8 file that holds one JSON object"
    try:
        document = json.loads(path.read_text("utf-8-sig"))  # editors on Windows write a mark before the text
    except OSError as error:
        raise InvalidSettings(f"{path} can't be read ({error.strerror})", remedy=remedy) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidSettings(f"{path} is not JSON ({error.msg}, {where})", remedy=remedy) from None
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise InvalidSettings(f"{path} is not JSON in UTF-8", remedy=remedy) from None
    if not isinstance(document, dict):
        raise InvalidSettings(f"{path} is not a JSON object", remedy=remedy)
    return document


def _explain(error: ValidationError, settings: type[StoreSettings]) -> InvalidSettings:
    """The first error of pydantic's, with the setting, what was given, and what to give."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return InvalidSettings("settings must be given by name", remedy="write StoreSettings(namespace=…)")
    name, fields = str(first["loc"][0]), settings.model_fields
    if first["type"] == "extra_forbidden":
        from difflib import get_close_matches  # noqa: PLC0415 - takes a millisecond, for an error only

        near = get_close_matches(name, fields, 1, 0.5)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
        return InvalidSettings(f"{name[:40]!r} is not a setting", remedy=remedy)
    field = fields[name]
    if field.description is None:  # one that a subclass adds
        return InvalidSettings(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    remedy = f"give {field.description}, default: {field.default}"
    return InvalidSettings(_describe(first["input"]), setting=name, remedy=remedy)


def _describe(given: Any) -> str:
    """What was given, for a message: it may be a secret, such as a URL with a password that went into the wrong place."""
    if isinstance(given, int) and given.bit_length() > 64:  # Python refuses to print one of thousands of digits
        return "is too large or too small"
    if isinstance(given, int | float | None):
        return f"is {given!r}"
    if not isinstance(given, str):
        return f"is a {type(given).__name__}"
    if re.fullmatch(r"[0-9]{1,9}[a-z.]{0,2}[0-9]{0,3}", given):  # a number as text, or a duration
        return f"is the text {given!r}"
    wrong = re.search(r"[^A-Za-z0-9_.@-]", given)
    return f"is text with {wrong[0]!a} in it" if wrong else f"is text of {len(given)} characters"
