"""The operations on one conversation or one counter, as generators; `command.py` explains these."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from posixpath import commonprefix
from typing import Any, Final, NamedTuple, Self

from redis_sessions.errors import (
    CorruptValue,
    InvalidSessionID,
    InvalidSettings,
    KeysScattered,
    NotReplicated,
    SessionStoreError,
    is_away,
)
from redis_sessions.forks import process_id
from redis_sessions.keys import COUNTERS, LEASE_GRACE_MS, PROBES, RECORD_FIELDS, Keys, check_session_id, is_session_id
from redis_sessions.operations import scripts
from redis_sessions.operations.command import Command, Op, Resent, Script
from redis_sessions.operations.text import exact_duration
from redis_sessions.settings import StoreSettings

log = logging.getLogger("redis_sessions")

_MAX_PLACE_CHARS: Final = 4096
_MAX_TOKEN_CHARS: Final = 200
_SHARED: Final = re.compile(r"([0-9]{1,4}):")
_MAX_AGE: Final = "max_age_ms"
# How soon a store that could not reach the namespace's settings asks for them again, as each time may delay a save.
_SETTINGS_PAUSE_S: Final = 60
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is made and can be resumed: None for what is not known, or doesn't matter.

    Text that is not valid Unicode, such as a path that is not UTF-8, is backslash-escaped. Raises TypeError for what is not
    a str, and InvalidSettings for a text with a NUL in it or of more than 4096 characters.

    Attributes:
        host: name of the host.
        home: path of the directory where the agent keeps its sessions.
        directory: path of the agent's working directory.
    """

    host: str | None = None
    home: str | None = None
    directory: str | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise TypeError(f"{name} of a Place must be a str or None, not {type(value).__name__}: pass str({name})")
            if value is not None and ("\0" in value or len(value) > _MAX_PLACE_CHARS):
                raise InvalidSettings(
                    f"{name} of a Place has a NUL or more than {_MAX_PLACE_CHARS} characters",
                    remedy="pass the name of a host, or a path",
                )
            # An empty text names no place, and would be read back as None.
            object.__setattr__(self, name, value.encode("utf-8", "backslashreplace").decode() if value else None)

    def __str__(self) -> str:
        known = [f"{name} {value!r}" for name in self.__slots__ if (value := getattr(self, name))]
        return ", ".join(known) or "nothing is known of it"


class Record(NamedTuple):
    """What is known of a session; None or 0 for what is not. Times are the server's, milliseconds since 1970.

    Attributes:
        session_id: the session that it is about.
        agent: name of the runtime whose session it is.
        host, home, directory: the place of its last turn; see Place.
        started_ms: when its first turn was saved.
        used_ms: when its last turn was saved; of a session that was read with its TTL, also by `set` or without a lease.
        turns: how many turns were saved.
        context_tokens: size of its context after the last turn, in tokens.
        failures: undecided failures to resume it, in a row.
        complete: False if its last turn was cut short.
    """

    session_id: str | None = None
    agent: str | None = None
    host: str | None = None
    home: str | None = None
    directory: str | None = None
    started_ms: int | None = None
    used_ms: int | None = None
    turns: int = 0
    context_tokens: int | None = None
    failures: int = 0
    complete: bool = True

    @classmethod
    def read(cls, values: Sequence[Any], pttl_ms: int = -1) -> Self:
        """A record from the values of RECORD_FIELDS; what can't be read is not known.

        Behind them the record's own TTL may stand, and `pttl_ms` is that of the session ID then, both in milliseconds: what
        the ID has more, it was given by a save that left the record as it was.
        """
        if not any(values):
            return cls()
        session_id, who, directory, started, lasted, turns, tokens, failures, cut_short, *left_ms = values
        later_ms = max(0, pttl_ms - left_ms[0]) if left_ms and left_ms[0] >= 0 else 0
        agent = host = home = where = None
        if who:
            agent, host, home = (part or None for part in [*_text(who).split("\0", 2), "", ""][:3])
        if directory:
            where = _whole(_text(directory), home or "") or None
        started_ms, lasted_ms = _figure(started), _figure(lasted)
        return cls(
            _text(session_id) or None,
            agent,
            host,
            home,
            where,
            started_ms,
            None if started_ms is None or lasted_ms is None else started_ms + lasted_ms + later_ms,
            _figure(turns) or 0,
            _figure(tokens),
            _figure(failures) or 0,
            cut_short != b"1",
        )

    @property
    def place(self) -> Place:
        """The place of its last turn."""
        return Place(self.host, self.home, self.directory)

    def was_in(self, place: Place) -> bool:
        """Whether that was exactly this place."""
        return (self.host, self.home, self.directory) == (place.host, place.home, place.directory)


def _text(raw: bytes | None) -> str:
    return raw.decode("utf-8", "replace") if raw else ""


def _figure(digits: bytes | None) -> int | None:
    return int(digits) if digits and len(digits) <= 18 and digits.isdigit() else None


def _whole(directory: str, home: str) -> str:
    """A directory as it stands in a record, with what it shares with the home put back."""
    shared = _SHARED.match(directory)
    return home[: int(shared[1])] + directory[shared.end() :] if shared else directory


def _packed(agent: str | None, place: Place) -> dict[str, str]:
    """Agent and place as fields of a record."""
    who = "\0".join((agent or "", place.host or "", place.home or "")).rstrip("\0")
    directory, home = place.directory or "", place.home or ""
    shared = len(commonprefix((home, directory)))
    if shared > 3 or _SHARED.match(directory):
        directory = f"{shared}:{directory[shared:]}"
    return {"w": who, "d": directory}


class Lease(NamedTuple):
    """The right of one worker to run one conversation now.

    Attributes:
        key: the conversation.
        token: names this claim, `host:pid:random`; new for every claim.
        session_id: the live session ID that was found, or None.
        unusable: Redis held a value that is not a session ID; it counts as nothing to resume.
        values: of the session's record, as Redis holds them.
        now_ms: the server's time of the claim, milliseconds since 1970, where `max_lifetime_ms` is set.
    """

    key: str
    token: str
    session_id: str | None = None
    unusable: bool = False
    values: tuple[bytes | None, ...] = ()
    now_ms: int | None = None

    def __repr__(self) -> str:
        return f"Lease(key={self.key!r}, token={self.token!r}, session_id={self.session_id!r}, unusable={self.unusable})"

    @property
    def record(self) -> Record:
        """What else is known of that session; an empty Record if nothing is."""
        return Record.read(self.values)


# In place of an ID that a session continues: it begins now, even if there is a record of its ID.
BEGINS: Final = "-"


class Failures(StrEnum):
    """What a save does with the number of undecided failures in a row."""

    keep = "keep"
    add = "add"
    reset = "reset"


class Written(NamedTuple):
    """What became of a save, or of a script that acts under a lease.

    Attributes:
        mine: whether the lease was ours; otherwise nothing was written.
        uncounted: how many of the counters that it was to increment were not.
        lacking: the error to raise if too few replicas have what was saved.
        resent: whether an earlier sending may have been carried out: where the lease was not ours, it may have been ours
            then, and the counters incremented.
    """

    mine: bool
    uncounted: int = 0
    lacking: NotReplicated | None = None
    resent: bool = False


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
    """A live session ID, how long it has left, and what else is known of the session.

    Attributes:
        session_id: the ID.
        expires_in_ms: milliseconds until it expires unless it is saved again; None if it never does.
        record: None if there is none of this session.
    """

    session_id: str
    expires_in_ms: int | None
    record: Record | None = None


class Operations:
    """The operations of one namespace. Any number of threads may share it.

    Attributes:
        counts_in_scripts: whether all keys are on one server, so that the script that saves or rejects can also count.

    `together` says whether the keys of a conversation are known to be on one server. If not, the first claim finds out.
    `reply_s` is how long the client waits for a reply, where that is not the settings' to say.
    """

    def __init__(
        self,
        settings: StoreSettings,
        *,
        counts_in_scripts: bool = False,
        together: bool = True,
        reply_s: float | None = None,
    ) -> None:
        self.settings = settings
        self.counts_in_scripts = counts_in_scripts
        self.keys = Keys(settings.namespace)
        # As they are sent.
        self._max_age_ms = str(settings.session_max_age_ms)
        self._lease_ttl_ms = str(settings.lease_ms + LEASE_GRACE_MS)
        # Whether a claim asks for the time and for the record, and the lock's times, as arguments of a script.
        wants_now = settings.max_lifetime_ms is not None
        self._claiming = (self._lease_ttl_ms, str(LEASE_GRACE_MS), str(int(wants_now)), str(int(settings.records)))
        self._together = together
        # When a save is to compare the max age with that of the namespace: from the first on, until that was done.
        self._compare_at_s = 0.0
        # A reply must come before the client gives up on the connection.
        reply_ms = settings.socket_timeout_ms if reply_s is None else min(settings.socket_timeout_ms, reply_s * 1000)
        self._replicas_ms = max(1, int(reply_ms / 2))

    def get(self, key: str) -> Op[str | None]:
        [raw] = yield [Command(("GET", self.keys.session_id(key)), key)]
        return _found(key, raw)

    def peek(self, key: str) -> Op[Peek | None]:
        redis_key = self.keys.session_id(key)
        asked: list[tuple[bytes | str, ...]] = [("GET", redis_key), ("PTTL", redis_key)]
        if self.settings.records:
            asked += [("PTTL", self.keys.record(key)), ("HMGET", self.keys.record(key), *RECORD_FIELDS)]
        # Not a script: a user that may only read could not run it. Optional, as a record of another type is none.
        raw, pttl_ms, *known = yield [Command(command, key, optional=True) for command in asked]
        for reply in (raw, pttl_ms, *known):
            if isinstance(reply, SessionStoreError) and not (reply in known and isinstance(reply, CorruptValue)):
                raise reply
        session_id = _found(key, raw)
        # Below -1, it expired between the two.
        if session_id is None or pttl_ms < -1:
            return None
        record = Record.read([*known[1], known[0]], pttl_ms) if known and isinstance(known[1], list) else Record()
        return Peek(session_id, pttl_ms if pttl_ms >= 0 else None, record if record.session_id == session_id else None)

    def set(self, key: str, session_id: str) -> Op[Written]:
        value = check_session_id(key, session_id)
        command = Command(("SET", self.keys.session_id(key), value, "PX", self._max_age_ms), key)
        lacking = None
        if self.settings.replicas:
            _, lacking, _ = yield from self._replicated(key, command)
        else:
            yield [command]
        if self.compares_max_age():
            yield from self.compare_max_age()
        return Written(mine=True, lacking=lacking)

    @staticmethod
    def acknowledged(save: Op[Written]) -> Op[bool]:
        """Carry out a save: whether it was ours. Raises NotReplicated if too few replicas have it."""
        written = yield from save
        if written.lacking is not None:
            raise written.lacking
        return written.mine

    def _replicated(self, key: str, command: Command) -> Op[tuple[Any, NotReplicated | None, bool]]:
        """Send a command that saves, and wait for the replicas that the settings ask for.

        Returns its reply, the error to raise if too few have it, and whether it was sent more than once.
        """
        needed = self.settings.replicas
        # Not WAITAOF: a replica says only once a second what it has synced (Redis 8.0, Valkey 9.1), so a save took 1 s.
        replies = yield [command._replace(followed_by=("WAIT", str(needed), str(self._replicas_ms)))]
        [[reply, had]], resent = replies, isinstance(replies, Resent)
        if isinstance(had, SessionStoreError):
            why = f"the session ID is saved, but whether replicas have it is not known: {had.message}"
            return reply, NotReplicated(why, key=key, replicas=None, remedy=had.remedy), resent
        if had >= needed:
            return reply, None, resent
        why = f"the session ID is saved, but after {self._replicas_ms} ms {had} replicas have it, not {needed}"
        remedy = "look at the replicas (INFO replication), or save it once more"
        return reply, NotReplicated(why, key=key, replicas=had, remedy=remedy), resent

    def delete(self, key: str, session_id: str | None = None) -> Op[bool]:
        value = b"" if session_id is None else check_session_id(key, session_id)
        [deleted] = yield [Command((value,), key, scripts.DELETE, (self.keys.session_id(key), self.keys.record(key)))]
        return bool(deleted)

    def acquire(self, key: str, token: str | None = None) -> Op[Lease | Held]:
        token = token or new_token()
        claim = Command((token, *self._claiming), key, scripts.ACQUIRE, self.keys.leased(key))
        # Twice, since another worker may have taken over between the claim and the look.
        for last in (False, True):
            [reply] = yield [claim]
            if reply[0] == 0:
                return _held(key, reply[1], int(reply[2]))
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
        _, raw, now_ms, *values = reply
        if raw is None:
            return Lease(key, token)
        if not is_session_id(raw):
            return Lease(key, token, unusable=True)
        return Lease(key, token, str(raw, "ascii"), values=tuple(values), now_ms=None if now_ms is None else int(now_ms))

    def _sees(self, key: str, token: str) -> Op[bool]:
        """Whether the token of a claim is seen by the other keys of its conversation, and by all keys of others or none.

        A proxy that hashes whole keys is found out by the probes, whatever the luck of the first conversation. Where a probe
        has another server, the counters may have, too. And it asks for the max age, which spares the first save a round trip
        of its own where both have the same.
        """
        lease, of_each = self.keys.lease(key), [self.keys.leased(name) for name in (key, *PROBES)]
        looks = [
            Command(("EVAL", scripts.READ_BACK, "2", route, lease), key, optional=True) for keys in of_each for route in keys
        ]
        max_age = Command(("HGET", self.keys.settings(), _MAX_AGE), optional=True, even_away=True)
        [raw, *replies] = yield [max_age, *looks]
        if isinstance(raw, bytes | str) and _max_age(raw) == self.settings.session_max_age_ms:
            self._compare_at_s = _NEVER
        # A refusal doesn't say where the keys are.
        seen = [None if isinstance(found, SessionStoreError) else found in (token, token.encode()) for found in replies]
        if not all(seen):
            self.counts_in_scripts = False
        per_name = [{*seen[first : first + 3]} - {None} for first in range(0, len(seen), 3)]
        return per_name[0] <= {True} and all(len(each) <= 1 for each in per_name)

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
        agent: str | None = None,
        place: Place | None = None,
        context_tokens: int | None = None,
        complete: bool = True,
        counters: Sequence[str] = (),
        compare: bool = True,
        again: bool = False,
    ) -> Op[Written]:
        """Save a session ID, and what is known of it.

        Args:
            lease: under which it is saved.
            session_id: the ID.
            keep_lease: renew the lease instead of releasing it: the turn goes on.
            continues: another ID of the same session, whose record goes on; BEGINS if not even that of this ID does.
            failures: what to do with the number of undecided failures in a row.
            agent: the runtime, for the record. Without it and `place`, what the record has of both stays.
            place: where the turn ran, for the record.
            context_tokens: size of the context, for the record.
            complete: False if the turn was cut short or goes on.
            counters: to increment, where `counts_in_scripts`.
            compare: False leaves `compare_max_age` to the caller, who then knows of an interrupt that the save was done.
            again: whether the same save was begun before, and may have been carried out.
        """
        _check_lease(lease)
        value = check_session_id(lease.key, session_id)
        known: list[str] = []
        if self.settings.records:
            if agent or place:
                # An empty one takes the place of what the record has of another place.
                packed = _packed(agent, place or Place())
                known += [part for pair in packed.items() if pair[1] or any(lease.values[1:3]) for part in pair]
            known += () if context_tokens is None else ("c", str(context_tokens))
            known += () if complete else ("i", "1")
        args = (
            value,
            self._max_age_ms,
            self._lease_ttl_ms if keep_lease else "",
            continues or "",
            failures if self.settings.records else "",
            *known,
        )
        command = self._leased(scripts.SAVE, lease, *args, counters=counters)
        if again:
            command = command._replace(again=True)
        lacking = None
        # On the path of every turn, no generator in between where no replicas are waited for.
        if self.settings.replicas:
            (mine, uncounted), lacking, resent = yield from self._replicated(lease.key, command)
        else:
            replies = yield [command]
            [[mine, uncounted]], resent = replies, isinstance(replies, Resent)
        if mine and compare and self.compares_max_age():
            yield from self.compare_max_age()
        return Written(bool(mine), uncounted, lacking if mine else None, again or resent)

    def max_age_ms(self) -> Op[int | None]:
        """The max age that the namespace's workers have agreed on; None if it is not known, or this user may not read it."""
        [raw] = yield [Command(("HGET", self.keys.settings(), _MAX_AGE), optional=True)]
        return None if raw is None or isinstance(raw, SessionStoreError) else _max_age(raw)

    def compares_max_age(self) -> bool:
        """Whether `compare_max_age` is due: after this store's first save, and again after it has failed."""
        return self._compare_at_s < _NEVER and time.monotonic() >= self._compare_at_s

    def compare_max_age(self) -> Op[None]:
        """Write the max age for all workers, or warn that it is not that of the others.

        Whatever becomes of it, the save before it was carried out and must not fail.
        """
        self._compare_at_s = _NEVER
        mine_ms, redis_key, args = self.settings.session_max_age_ms, self.keys.settings(), (_MAX_AGE, self._max_age_ms)
        [raw] = yield [Command(args, None, scripts.SETTINGS, (redis_key,), resend=False, optional=True, even_away=True)]
        if isinstance(raw, SessionStoreError):
            if is_away(raw):
                self._compare_at_s = time.monotonic() + _SETTINGS_PAUSE_S
            log.warning("%s: the max age was not compared with that of other workers: %s", redis_key.decode(), raw)
        elif (theirs_ms := _max_age(raw)) != mine_ms:
            log.warning(
                "namespace %s: this worker's max age is %s, that of the namespace %s: give both the same, by "
                "session_max_age_ms here, or for the namespace by retime",
                self.settings.namespace,
                exact_duration(mine_ms),
                "is not a number" if theirs_ms is None else exact_duration(theirs_ms),
            )

    def reject(self, lease: Lease, counters: Sequence[str] = ()) -> Op[Written]:
        _check_lease(lease)
        asked = lease.session_id or ""
        return _written((yield [self._leased(scripts.REJECT, lease, asked, self._lease_ttl_ms, counters=counters)]))

    def fail(self, lease: Lease, *, again: bool = False, once: bool = False) -> Op[Written]:
        """Count an undecided failure and release the lease. `again`, `once`: see `release`."""
        _check_lease(lease)
        if not self.settings.records:
            return (yield from self.release(lease, again=again, once=once))
        command = self._leased(scripts.FAIL, lease, lease.session_id or "", self._max_age_ms)
        return (yield from _ended(command._replace(again=again), once=once))

    def release(self, lease: Lease, counters: Sequence[str] = (), *, again: bool = False, once: bool = False) -> Op[Written]:
        """Release a lease.

        Args:
            lease: which.
            counters: to increment, where `counts_in_scripts`.
            again: whether that was begun before, also by a save, and may have been carried out.
            once: whether to try only once, at a server that was away a moment ago.
        """
        _check_lease(lease)
        redis_keys = (self.keys.lease(lease.key), *map(self.keys.counter, counters))
        command = Command((lease.token,), lease.key, scripts.RELEASE, redis_keys, tell_again=True, again=again)
        return (yield from _ended(command, once=once))

    def break_lease(self, key: str) -> Op[Held | None]:
        redis_key = self.keys.lease(key)
        [holder, pttl_ms] = yield [Command(("GET", redis_key), key), Command(("PTTL", redis_key), key)]
        remaining_ms = self.settings.lease_ms if pttl_ms == -1 else pttl_ms - LEASE_GRACE_MS
        if holder is None or remaining_ms <= 0:
            return None
        # By its holder: a claim that comes between the two is not the one that was to be broken.
        args = (holder, new_token(), str(LEASE_GRACE_MS))
        [broken] = yield [Command(args, key, scripts.BREAK, (redis_key,), tell_again=True)]
        return _held(key, holder, remaining_ms) if broken else None

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

    def _leased(self, script: Script, lease: Lease, *args: bytes | str, counters: Sequence[str] = ()) -> Command:
        redis_keys = self.keys.leased(lease.key)
        if counters:
            redis_keys += tuple(map(self.keys.counter, counters))
        return Command((lease.token, *args), lease.key, script, redis_keys, tell_again=True)


def _held(key: str, holder: bytes, remaining_ms: int) -> Held:
    return Held(key, holder.decode("utf-8", "backslashreplace")[:_MAX_TOKEN_CHARS], remaining_ms)


def _max_age(raw: bytes | str) -> int | None:
    return _figure(raw if isinstance(raw, bytes) else raw.encode()) or None


def _check_lease(lease: object) -> None:
    if not isinstance(lease, Lease):
        held = ", which says that another worker has the conversation" if isinstance(lease, Held) else ""
        raise TypeError(f"a lease must be a Lease, as acquire returns it, not a {type(lease).__name__}{held}")


def _ended(command: Command, *, once: bool) -> Op[Written]:
    """Send a script that releases the lease."""
    replies = yield [command._replace(resend=False, optional=True, even_away=True) if once else command]
    if isinstance(replies[0], SessionStoreError):
        raise replies[0]
    return _written(replies, again=command.again)


def _written(replies: list[list[int]], *, again: bool = False) -> Written:
    [[mine, uncounted]] = replies
    return Written(bool(mine), uncounted, resent=again or isinstance(replies, Resent))


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


def checked_token(token: str) -> str:
    """A token that a caller gives for a claim. Raises TypeError, and InvalidSettings if it can't be read back whole."""
    if not isinstance(token, str):
        raise TypeError(f"a token must be a str, not {type(token).__name__}: pass str(token), or that of a Lease")
    if not (0 < len(token) <= _MAX_TOKEN_CHARS and token.isascii() and token.isprintable()):
        raise InvalidSettings(
            f"must have 1 to {_MAX_TOKEN_CHARS} printable ASCII characters",
            setting="token",
            remedy="pass the text of a UUID, that of an earlier Lease, or None for a new one",
        )
    return token


def new_token() -> str:
    """A token that names one claim, `host:pid:random`: host, process and 64 random bits."""
    return f"{_host()}:{process_id()}:{os.urandom(8).hex()}"


@cache
def _host() -> str:
    """The host's name, without what would make a token hard to read or to split."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())[:64]
