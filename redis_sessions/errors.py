"""The errors of this package.

Each names its conversation key, if it is about one, and says what to do next. None contains a password, a URL or the text of
a server's reply, because errors end up in logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeGuard

# The remedy where operations of some keys are refused, and a scan would find a part.
ONE_NODE: Final = "write redis+cluster:// in place of redis://"


class SessionStoreError(Exception):
    """Base of all errors that this package raises on purpose.

    Attributes:
        message: what is wrong, in one line.
        key: the conversation key, or None if the error is not about a single one.
        remedy: what to do next, or None.
    """

    def __init__(self, message: str, *, key: str | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.key = key
        self.remedy = remedy
        super().__init__(message if remedy is None else f"{message}: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would pass the text alone to `__init__`, which takes other arguments.
        return _made_again, (type(self), self.args), self.__dict__


def _made_again(kind: type[SessionStoreError], args: tuple[Any, ...]) -> SessionStoreError:
    """Make an error as pickle and copy do, which then set its attributes."""
    made = kind.__new__(kind, *args)
    super(SessionStoreError, made).__init__(*args)
    return made


class InvalidKey(SessionStoreError, ValueError):
    """A conversation key that is empty, longer than 512 UTF-8 bytes, or not text."""


class InvalidSessionID(SessionStoreError, ValueError):
    """Text that can't be a session ID, from a caller or from Redis. `key` names the conversation."""


class InvalidSettings(SessionStoreError):
    """An invalid setting, settings file or URL. The message names the setting, and the file if there is one.

    Attributes:
        setting: name of the setting or argument that the message begins with, such as `url`; None if it is about no single
            one.
        problem: the message without that name.
    """

    def __init__(self, problem: str, *, setting: str | None = None, remedy: str | None = None) -> None:
        self.setting = setting
        self.problem = problem
        super().__init__(problem if setting is None else f"{setting} {problem}", remedy=remedy)


class LegacyFileError(SessionStoreError):
    """A sessions.json that can't be read as one; nothing of it was imported.

    Attributes:
        line, column: the place of the error, counted from 1; None if it has no place (a missing file).
        shapes: what reads a file of another shape: names of known ones, and a redis_sessions.legacy.Shape.
    """

    def __init__(
        self, message: str, *, line: int | None = None, column: int | None = None, shapes: Sequence[object] = (), **more: Any
    ) -> None:
        self.line = line
        self.column = column
        self.shapes = shapes
        super().__init__(message, **more)


class FileNotWritten(SessionStoreError):
    """A file could not be written; what was there before is unchanged."""


class StoreUnavailable(SessionStoreError):
    """Redis can't be reached, or replies that it can't serve now (loading, failing over, out of memory)."""


class AccessDenied(StoreUnavailable):
    """Redis refuses this user: a wrong password, or a command that its ACL doesn't grant. Never retried."""


class CommandRefused(StoreUnavailable):
    """Redis, or a proxy before it, refuses a command: it is unknown there, over a quota, or for a reason of its own."""


class KeysScattered(StoreUnavailable):
    """A proxy sends the keys of one conversation to several servers, where no script can reach them all."""


def is_away(fact: object) -> TypeGuard[StoreUnavailable]:
    """Whether this is the error of a server that could not be reached, as opposed to one that refuses a command or user."""
    return isinstance(fact, StoreUnavailable) and not isinstance(fact, AccessDenied | CommandRefused)


class CorruptValue(SessionStoreError):
    """A key of the store holds what this package never writes, such as a list instead of a string."""


class LeaseHeld(SessionStoreError):
    """Another worker runs this conversation now, or took it over while this worker ran it.

    Attributes:
        holder: the token of the claim that holds it, `host:pid:random`; None if it was taken over.
        remaining_ms: how long its lease lasts unless renewed, in milliseconds; None if it was taken over.
    """

    def __init__(self, key: str, *, holder: str | None = None, remaining_ms: int | None = None) -> None:
        self.holder = holder
        self.remaining_ms = remaining_ms
        # Not the random part: who knows it owns the lease.
        worker = (holder or "").rpartition(":")[0] or "another worker"
        what = (
            "was taken over by another worker"
            if holder is None
            else f"is leased by {worker} for {-(-(remaining_ms or 0) // 1000)} s more"
        )
        super().__init__(f"conversation {key!r} {what}", key=key, remedy="try later, or let resume wait for it (wait_ms)")


class SessionBusy(SessionStoreError):
    """The agent says that another process is writing to this session. The session ID was kept.

    Attributes:
        session_id: the session that was busy.
    """

    def __init__(self, key: str, *, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(
            f"session {session_id} of conversation {key!r} is in use by another writer",
            key=key,
            remedy="try again when that run has ended",
        )


class SessionElsewhere(SessionStoreError):
    """The live session was made where this worker can't resume it; nothing was run, and the session ID was kept.

    Attributes:
        session_id: the live session.
        place: the redis_sessions.Place that it was made in.
        agent: name of its runtime, or None if that is not recorded.
    """

    def __init__(self, key: str, *, session_id: str, place: Any, agent: str | None = None, differs: str = "place") -> None:
        self.session_id = session_id
        self.place = place
        self.agent = agent
        of_agent = f" of {agent}" if agent else ""
        super().__init__(
            f"session {session_id}{of_agent} of conversation {key!r} was made elsewhere ({differs}): {place}",
            key=key,
            remedy='run the turn there, or pass on_elsewhere="try"',
        )


class NotReplicated(SessionStoreError):
    """A session ID was saved, but too few replicas confirmed in time that they have it: a failover may lose it.

    Attributes:
        replicas: how many had it; None if the server did not say.
    """

    def __init__(self, message: str, *, key: str, replicas: int | None, remedy: str | None) -> None:
        self.replicas = replicas
        super().__init__(message, key=key, remedy=remedy)


class InexactScan(SessionStoreError):
    """A scan may have missed keys, or can't be made at all: slots moved, or the server changed or can't be identified."""


class MissingExtra(SessionStoreError, ImportError):
    """A feature was used whose extra isn't installed. The remedy is the command that installs it."""


class ServerError(SessionStoreError):
    """The embedded server can't be started."""
