"""What can go wrong, by type.

Every error says which conversation key it is about, where there is one, and what to do next. None carries a password,
a URL or the text of a server's reply: those are for logs that somebody else keeps.
"""

from __future__ import annotations

from typing import TypeGuard


class SessionStoreError(Exception):
    """Base of every error this package raises on purpose.

    Attributes:
        message: what happened, one line.
        key: the conversation key, or None where the error is about no single one.
        remedy: what to do next, or None.
    """

    def __init__(self, message: str, *, key: str | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.key = key
        self.remedy = remedy
        super().__init__(message if remedy is None else f"{message}: {remedy}")


class InvalidKey(SessionStoreError, ValueError):
    """A conversation key that is empty, longer than 512 UTF-8 bytes, or no text at all."""


class InvalidSessionID(SessionStoreError, ValueError):
    """Text that can't be a session ID, offered by a caller or found in Redis. `key` names the conversation."""


class InvalidSettings(SessionStoreError):
    """A setting, a settings file or a URL that can't be used. The message names the field, and the file if there is one."""


class LegacyFileError(SessionStoreError):
    """A sessions.json that can't be read as one; nothing of it was written.

    Attributes:
        line, column: where, counted from 1; None where the trouble has no place (a missing file).
    """

    def __init__(
        self, message: str, *, line: int | None = None, column: int | None = None, remedy: str | None = None
    ) -> None:
        self.line = line
        self.column = column
        super().__init__(message, remedy=remedy)


class FileNotWritten(SessionStoreError):
    """A file could not be written; what was there before still is."""


class StoreUnavailable(SessionStoreError):
    """Redis can't be reached, or answers that it can't serve now (loading, failing over, out of memory)."""


class AccessDenied(StoreUnavailable):
    """Redis was reached and refuses this user: a wrong password, or a command its ACL doesn't grant. Never retried."""


def is_away(fact: object) -> TypeGuard[StoreUnavailable]:
    """Whether this is the error of a server that could not be reached, as opposed to one that refuses the user."""
    return isinstance(fact, StoreUnavailable) and not isinstance(fact, AccessDenied)


class CorruptValue(SessionStoreError):
    """A key of ours holds something this package never writes, such as a list where a string belongs."""


class LeaseHeld(SessionStoreError):
    """Another worker runs this conversation now, or took it over while this one ran.

    Attributes:
        holder: the token of the claim that holds it, `host:pid:random`; None if it was taken over.
        remaining_ms: how long its lease lasts unless renewed, in milliseconds; None if it was taken over.
    """

    def __init__(self, key: str, *, holder: str | None = None, remaining_ms: int | None = None) -> None:
        self.holder = holder
        self.remaining_ms = remaining_ms
        what = "was taken over by another worker" if holder is None else f"is leased by {holder} for {remaining_ms} ms more"
        super().__init__(f"conversation {key!r} {what}", key=key, remedy="try later, or wait for it with wait_ms")


class SessionBusy(SessionStoreError):
    """The agent says that somebody else is writing to this session. The session ID was kept.

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


class InexactScan(SessionStoreError):
    """A scan that may have missed keys where only an exact one will do: slots moved, or the server changed under it."""


class MissingExtra(SessionStoreError, ImportError):
    """Something was asked for whose extra isn't installed. The remedy is the command that does it."""


class ServerError(SessionStoreError):
    """The embedded server can't be started."""
