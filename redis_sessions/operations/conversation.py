"""The operations on one conversation or one counter, as generators; `command.py` explains these."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

from redis_sessions.errors import CorruptValue, InvalidSessionID, KeysScattered, SessionStoreError
from redis_sessions.keys import COUNTERS, LEASE_GRACE_MS, PROBES, RECORD_FIELDS, Keys, check_session_id, is_session_id
from redis_sessions.operations import scripts
from redis_sessions.operations.command import Command, Op, Script
from redis_sessions.settings import StoreSettings


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a session beside its ID; None or 0 for what is not. Times are the server's, milliseconds since 1970.

    Attributes:
        agent: name of the runtime.
        started_ms: when its first turn was saved.
        used_ms: when its last turn was saved.
        turns: how many turns were saved.
        context_tokens: size of its context after the last turn, in tokens.
        failures: undecided failures to resume it, in a row.
        complete: False if its last turn was cut short.
    """

    agent: str | None = None
    started_ms: int | None = None
    used_ms: int | None = None
    turns: int = 0
    context_tokens: int | None = None
    failures: int = 0
    complete: bool = True

    @classmethod
    def read(cls, values: Sequence[bytes | None]) -> Self:
        """A record from the values of RECORD_FIELDS; what can't be read is not known."""
        text = {
            name: value.decode("utf-8", "replace")
            for name, value in zip(RECORD_FIELDS, values, strict=False)
            if value is not None
        }
        numbers = {name: int(value) for name, value in text.items() if re.fullmatch("[0-9]{1,18}", value)}
        return cls(
            agent=text.get("agent"),
            started_ms=numbers.get("started_ms"),
            used_ms=numbers.get("used_ms"),
            turns=numbers.get("turns", 0),
            context_tokens=numbers.get("context_tokens"),
            failures=numbers.get("failures", 0),
            complete=text.get("complete") != "0",
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to run one conversation now.

    Attributes:
        key: the conversation.
        token: names this claim, `host:pid:random`; new for every claim.
        session_id: the live session ID that was found, or None.
        unusable: Redis held a value that is not a session ID; it counts as nothing to resume.
        record: what else is known of that session; an empty Record if nothing is.
    """

    key: str
    token: str
    session_id: str | None = None
    unusable: bool = False
    record: Record = field(default=Record(), repr=False)


class Failures(StrEnum):
    """What a save does with the number of undecided failures in a row."""

    keep = "keep"
    add = "add"
    reset = "reset"


class Written(NamedTuple):
    """What became of a script that acts under a lease.

    Attributes:
        mine: whether the lease was ours; otherwise nothing was written.
        uncounted: how many of the counters that it was to increment were not.
    """

    mine: bool
    uncounted: int


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
    """The operations of one namespace. Any number of threads may share it.

    Attributes:
        counts_in_scripts: whether all keys are on one server, so that the script that saves or rejects can also count.

    `together` says whether the keys of a conversation are known to be on one server. If not, the first claim finds out.
    """

    def __init__(self, settings: StoreSettings, *, counts_in_scripts: bool = False, together: bool = True) -> None:
        self.settings = settings
        self.counts_in_scripts = counts_in_scripts
        self.keys = Keys(settings.namespace)
        self._lease_ttl_ms = settings.lease_ms + LEASE_GRACE_MS
        self._together = together

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
        value = b"" if session_id is None else check_session_id(key, session_id)
        [deleted] = yield [Command((value,), key, scripts.DELETE, (self.keys.session_id(key), self.keys.record(key)))]
        return bool(deleted)

    def acquire(self, key: str, token: str | None = None) -> Op[Lease | Held]:
        token = token or new_token()
        fields = RECORD_FIELDS if self.settings.records else ()
        claim = self._leased(scripts.ACQUIRE, key, token, self._lease_ttl_ms, LEASE_GRACE_MS, *fields)
        # Twice, since another worker may have taken over between the claim and the look.
        for last in (False, True):
            [reply] = yield [claim]
            if reply[0] == 0:
                return Held(key, reply[1].decode("utf-8", "backslashreplace")[:200], int(reply[2]))
            if self._together or (yield from self._sees(key, token)):
                self._together = True
                break
            if last:
                yield from self.release(Lease(key, token))
                raise KeysScattered(
                    f"the keys of conversation {key!r} are on several servers, so what answers is a proxy that spreads keys",
                    key=key,
                    remedy='let it hash only what stands in braces (twemproxy: hash_tag: "{}"), or connect to one server',
                )
        raw = reply[1]
        if raw is None:
            return Lease(key, token)
        if not is_session_id(raw):
            return Lease(key, token, unusable=True)
        return Lease(key, token, str(raw, "ascii"), record=Record.read(reply[2:]))

    def _sees(self, key: str, token: str) -> Op[bool]:
        """Whether the token of a claim is in the lease on the server that has the ID.

        It also looks at the servers of many other keys: where one has another server, the counters may have, too.
        """
        lease, routes = self.keys.lease(key), map(self.keys.session_id, (key, *PROBES))
        replies = yield [Command(("EVAL", scripts.READ_BACK, "2", route, lease), key, optional=True) for route in routes]
        seen = [found in (token, token.encode()) for found in replies]
        if not all(seen):
            self.counts_in_scripts = False
        # A refusal doesn't say where the keys are.
        return seen[0] or isinstance(replies[0], SessionStoreError)

    def renew(self, lease: Lease) -> Op[bool]:
        _check_lease(lease)
        [mine] = yield [Command((lease.token, self._lease_ttl_ms), lease.key, scripts.RENEW, (self.keys.lease(lease.key),))]
        return bool(mine)

    def save(
        self,
        lease: Lease,
        session_id: str,
        *,
        keep_lease: bool = False,
        continues: str | None = None,
        failures: Failures = Failures.reset,
        fields: Mapping[str, str | int] | None = None,
        counters: Sequence[str] = (),
    ) -> Op[Written]:
        """Save a session ID, and what is known of it.

        Args:
            lease: under which it is saved.
            session_id: the ID.
            keep_lease: renew the lease instead of releasing it: the turn goes on.
            continues: another ID of the same session, whose record goes on.
            failures: what to do with the number of undecided failures in a row.
            fields: further fields of the record.
            counters: to increment, where `counts_in_scripts`.
        """
        _check_lease(lease)
        value = check_session_id(lease.key, session_id)
        known = [part for name, value in (fields or {}).items() for part in (name, value)] if self.settings.records else []
        command = self._leased(
            scripts.SAVE,
            lease.key,
            lease.token,
            value,
            self.settings.session_max_age_ms,
            self._lease_ttl_ms if keep_lease else "",
            continues or "",
            failures if self.settings.records else "",
            *known,
            counters=counters,
        )
        [reply] = yield [command._replace(tell_again=True)]
        return _written(reply)

    def reject(self, lease: Lease, counters: Sequence[str] = ()) -> Op[Written]:
        _check_lease(lease)
        asked = lease.session_id or ""
        command = self._leased(scripts.REJECT, lease.key, lease.token, asked, self._lease_ttl_ms, counters=counters)
        [reply] = yield [command._replace(tell_again=True)]
        return _written(reply)

    def fail(self, lease: Lease) -> Op[bool]:
        _check_lease(lease)
        if not self.settings.records:
            return (yield from self.release(lease)).mine
        asked = lease.session_id or ""
        command = self._leased(scripts.FAIL, lease.key, lease.token, asked, self.settings.session_max_age_ms)
        [mine] = yield [command._replace(tell_again=True)]
        return bool(mine)

    def release(self, lease: Lease, counters: Sequence[str] = ()) -> Op[Written]:
        _check_lease(lease)
        redis_keys = (self.keys.lease(lease.key), *map(self.keys.counter, counters))
        [reply] = yield [Command((lease.token,), lease.key, scripts.RELEASE, redis_keys, tell_again=True)]
        return _written(reply)

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

    def _leased(
        self, script: Script, key: str, token: str, *args: bytes | str | int, counters: Sequence[str] = ()
    ) -> Command:
        redis_keys = (self.keys.lease(key), self.keys.session_id(key), self.keys.record(key))
        return Command((token, *args), key, script, (*redis_keys, *map(self.keys.counter, counters)))


def _check_lease(lease: object) -> None:
    if not isinstance(lease, Lease):
        held = ", which says that another worker has the conversation" if isinstance(lease, Held) else ""
        raise TypeError(f"a lease must be a Lease, as acquire returns it, not a {type(lease).__name__}{held}")


def _written(reply: list[int]) -> Written:
    mine, uncounted = reply
    return Written(bool(mine), uncounted)


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
