"""The operations on one conversation or one counter, as generators; `command.py` explains these."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis_sessions.errors import CorruptValue, InvalidSessionID, SessionStoreError
from redis_sessions.keys import COUNTERS, LEASE_GRACE_MS, Keys, check_session_id, is_session_id
from redis_sessions.operations import scripts
from redis_sessions.operations.command import Command, Op, Script
from redis_sessions.settings import StoreSettings


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to run one conversation now.

    Attributes:
        key: the conversation.
        token: names this claim, `host:pid:random`; new for every claim.
        session_id: the live session ID that was found, or None.
        unusable: Redis held a value that is not a session ID; it counts as nothing to resume.
    """

    key: str
    token: str
    session_id: str | None = None
    unusable: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """The answer to a claim on a conversation that another worker runs now.

    Attributes:
        key: the conversation.
        holder: the token of the claim that holds it.
        remaining_ms: milliseconds that its lease lasts unless renewed.
    """

    key: str
    holder: str
    remaining_ms: int


class Peek(NamedTuple):
    """A live session ID, and how long it has left.

    Attributes:
        session_id: the ID.
        expires_in_ms: milliseconds until it expires unless it is saved again; None if it never does.
    """

    session_id: str
    expires_in_ms: int | None


class Operations:
    """The operations of one namespace. Immutable, so any number of threads may share it."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.keys = Keys(settings.namespace)
        self._lease_ttl_ms = settings.lease_ms + LEASE_GRACE_MS

    def get(self, key: str) -> Op[str | None]:
        [raw] = yield [Command(("GET", self.keys.session_id(key)), key)]
        return _found(key, raw)

    def peek(self, key: str) -> Op[Peek | None]:
        redis_key = self.keys.session_id(key)
        [raw, pttl_ms] = yield [Command(("GET", redis_key), key), Command(("PTTL", redis_key), key)]
        session_id = _found(key, raw)
        # Below -1, it expired between the two.
        return None if session_id is None or pttl_ms < -1 else Peek(session_id, pttl_ms if pttl_ms >= 0 else None)

    def set(self, key: str, session_id: str) -> Op[None]:
        value = check_session_id(key, session_id)
        yield [Command(("SET", self.keys.session_id(key), value, "PX", self.settings.session_max_age_ms), key)]

    def delete(self, key: str, session_id: str | None = None) -> Op[bool]:
        redis_key = self.keys.session_id(key)
        if session_id is None:
            [deleted] = yield [Command(("DEL", redis_key), key)]
        else:
            value = check_session_id(key, session_id)
            [deleted] = yield [Command((value,), key, scripts.DELETE_IF, (redis_key,))]
        return bool(deleted)

    def acquire(self, key: str, token: str | None = None) -> Op[Lease | Held]:
        token = token or new_token()
        [reply] = yield [self._leased(scripts.ACQUIRE, key, token, self._lease_ttl_ms, LEASE_GRACE_MS)]
        if reply[0] == 0:
            return Held(key, reply[1].decode("utf-8", "backslashreplace")[:200], int(reply[2]))
        raw = reply[1]
        if raw is None:
            return Lease(key, token)
        return Lease(key, token, str(raw, "ascii")) if is_session_id(raw) else Lease(key, token, unusable=True)

    def renew(self, lease: Lease) -> Op[bool]:
        _check_lease(lease)
        [mine] = yield [Command((lease.token, self._lease_ttl_ms), lease.key, scripts.RENEW, (self.keys.lease(lease.key),))]
        return bool(mine)

    def save(self, lease: Lease, session_id: str) -> Op[bool]:
        _check_lease(lease)
        value = check_session_id(lease.key, session_id)
        command = self._leased(scripts.SAVE, lease.key, lease.token, value, self.settings.session_max_age_ms)
        [saved] = yield [command._replace(tell_again=True)]
        return bool(saved)

    def reject(self, lease: Lease) -> Op[bool]:
        _check_lease(lease)
        asked = lease.session_id or ""
        [mine] = yield [self._leased(scripts.REJECT, lease.key, lease.token, asked, self._lease_ttl_ms)]
        return bool(mine)

    def release(self, lease: Lease) -> Op[bool]:
        _check_lease(lease)
        command = Command((lease.token,), lease.key, scripts.DELETE_IF, (self.keys.lease(lease.key),), tell_again=True)
        [released] = yield [command]
        return bool(released)

    def increment(self, name: str) -> Op[int]:
        # Not sent again after a lost reply, because it might count twice: losing one is better.
        [count] = yield [Command(("INCR", self.keys.counter(name)), resend=False, optional=True)]
        return int(self._checked(name, count))

    def counters(self) -> Op[dict[str, int | None]]:
        replies = yield [Command(("GET", self.keys.counter(name)), optional=True) for name in COUNTERS]
        return {name: _count(raw) for name, raw in zip(COUNTERS, replies, strict=True)}

    def counter(self, name: str) -> Op[int]:
        [raw] = yield [Command(("GET", self.keys.counter(name)), optional=True)]
        return int(self._checked(name, _count(raw)))

    def _checked(self, name: str, count: Any) -> Any:
        """A counter as it was read. Raises CorruptValue, which names it, if it is not an integer."""
        if count is None or isinstance(count, CorruptValue):
            redis_key = self.keys.counter(name).decode()
            raise CorruptValue(f"counter {redis_key} is not an integer", remedy=f"redis-cli SET {redis_key} 0")
        if isinstance(count, SessionStoreError):
            raise count
        return count

    def _leased(self, script: Script, key: str, token: str, *args: bytes | str | int) -> Command:
        return Command((token, *args), key, script, (self.keys.lease(key), self.keys.session_id(key)))


def _check_lease(lease: object) -> None:
    if not isinstance(lease, Lease):
        held = ", which says that another worker has the conversation" if isinstance(lease, Held) else ""
        raise TypeError(f"a lease must be a Lease, as acquire returns it, not a {type(lease).__name__}{held}")


def _count(raw: bytes | SessionStoreError | None) -> int | None:
    """A counter's value; None if it is not an integer. Raises the error that is there instead of a reply."""
    if isinstance(raw, SessionStoreError):
        if isinstance(raw, CorruptValue):
            return None
        raise raw
    try:
        return 0 if raw is None else int(raw)
    except ValueError:
        return None


def _found(key: str, raw: bytes | None) -> str | None:
    if raw is None:
        return None
    if not is_session_id(raw):
        raise InvalidSessionID(
            f"Redis holds a value for conversation {key!r} that is not a session ID",
            key=key,
            remedy="delete the conversation, or set a valid session ID",
        )
    return str(raw, "ascii")


def new_token() -> str:
    """A token that names one claim: host, process and 64 random bits."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
