"""The key scan: pages of session keys from every primary in parallel, and whether the scan can have missed any.

SCAN guarantees that a key which exists all the time is returned at least once, and keeps no state on the server, so a page
may be requested again. It doesn't guarantee exactly once, and its cursor means nothing to another server or after slots have
moved. Both are checked before the first page and after the last; a slot that moved away and back has raised an epoch.

Where one server is proven to have all keys, a script reads a page. Elsewhere it takes two round trips, of SCAN and of single
commands for each key: on a cluster no script may touch a key that it didn't declare, since slots may move meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from redis_sessions.errors import (
    ONE_NODE,
    AccessDenied,
    CommandRefused,
    CorruptValue,
    InexactScan,
    SessionStoreError,
    StoreUnavailable,
    is_away,
)
from redis_sessions.keys import (
    COUNTERS,
    LEASE_GRACE_MS,
    PROBES,
    RECORD_FIELDS,
    RESUME_FAILURES,
    Keys,
    are_session_ids,
    is_session_id,
)
from redis_sessions.operations.command import EMULATED, PRIMARIES, Command, Op
from redis_sessions.operations.conversation import Operations, Record
from redis_sessions.operations.scripts import PAGE, RUN_ID
from redis_sessions.settings import NAMESPACE, StoreSettings

U = TypeVar("U")
MAX_NEAR: Final = 20
INEXACT: Final = (
    "keys may have been missed: slots moved, the server changed, INFO is denied, or a proxy spreads keys over servers"
)
_LOOK_PAGES: Final = 20
_OF_A_STORE: Final = re.compile(rb"(%b):(?:id|record|lease):\{" % NAMESPACE.encode())


class Progress(Protocol):
    """`progress(done, about)` is called while a long operation runs: how much is done, of about how much.

    For a scan both are keys of the whole database; `about` is their number when the scan began.
    """

    def __call__(self, done: int, about: int, /) -> None: ...


def check_progress(progress: object) -> None:
    """Raise TypeError for what can't be called, before anything is done."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function that takes two numbers, not {type(progress).__name__}")


class Page(NamedTuple):
    """Some session keys as a scan found them, in columns."""

    redis_keys: list[bytes]
    pttls_ms: list[int]  # time left to live, -1 without a TTL, -2 if expired since, -3 if its slot is being migrated
    values: list[bytes | None]  # their first 257 bytes; None for one that is not a string
    now_ms: int  # the server's time when they were read, milliseconds since 1970
    node: object = None  # the primary that has them, as PRIMARIES gave it; None where there is only one server
    records: Sequence[Sequence[Any] | None] = ()  # what `Record.read` takes, TTL included, or None; empty if not asked for
    near: int = 0  # number of other keys that begin as session keys do, up to the brace
    near_examples: Sequence[bytes] = ()  # the first 20 of them

    def is_plain(self, keys: Keys) -> bool:
        """Whether `conversations` would certainly return no None; it costs a third."""
        return keys.are_plain(self.redis_keys) and are_session_ids(self.values)

    def conversations(self, keys: Keys) -> list[str | None]:
        """The conversation of each key; None unless the key is one of the scheme and its value can be a session ID.

        This alone decides which scanned keys are sessions of ours. Whether they have expired since is not looked at.
        """
        names = keys.conversations(self.redis_keys)
        if are_session_ids(self.values):
            return names
        return [
            None if value is None or not is_session_id(value) else name
            for name, value in zip(names, self.values, strict=True)
        ]


class SessionRow(NamedTuple):
    """A live session.

    Attributes:
        key: the conversation.
        session_id: its live session ID.
        idle_ms: milliseconds since it was last used: by its record, or else by the time it has left of the max age. None
            where that is unknown, too: without a TTL, or with more than the max age left.
        expires_in_ms: milliseconds it has left; None without a TTL.
        last_used_at_ms: when it was last used, in milliseconds since 1970 by the server's clock; if that is unknown, the
            time at which it was read.
        record: what else is known of it; None if nothing is, or if no records were asked for.
    """

    key: str
    session_id: str
    idle_ms: int | None
    expires_in_ms: int | None
    last_used_at_ms: int
    record: Record | None = None


class LeaseRow(NamedTuple):
    """A conversation that a worker runs now.

    Attributes:
        key: the conversation.
        holder: the token of the claim that holds it, `host:pid:random`; backslash-escaped if it is not text.
        remaining_ms: milliseconds that its lease lasts unless renewed.
    """

    key: str
    holder: str
    remaining_ms: int

    @property
    def worker(self) -> tuple[str | None, int | None]:
        """Host and process of the worker; None if the token doesn't say. The rest of it is a secret: it owns the lease."""
        host, _, rest = self.holder.partition(":")
        pid, _, secret = rest.partition(":")
        return (host, int(pid)) if host and secret and pid.isascii() and pid.isdigit() else (None, None)


class Scan:
    """One scan of all session keys of a namespace, or of all its leases.

    Attributes:
        exact: None until the scan has ended; then True if no key that existed all the time can have been missed.
        near: how many keys begin as session keys do, up to the brace; so far, and some may have been counted twice.
        near_examples: the first 20 of them.

    Args:
        settings: give the namespace and the size of a page.
        progress: called after every page.
        records: read the record of each session, too.
        leases: scan lease keys instead of session keys.
    """

    def __init__(
        self, settings: StoreSettings, progress: Progress | None = None, *, records: bool = False, leases: bool = False
    ) -> None:
        check_progress(progress)
        self.exact: bool | None = None
        self.near = 0
        self.near_examples: list[bytes] = []
        self._keys = Keys(settings.namespace)
        self._count = settings.scan_count
        self._prefix = self._keys.lease_prefix if leases else self._keys.prefix
        # Session keys without their brace are counted, too.
        self._looser = b"" if leases else self._prefix[:-1]
        self._records = records
        self._progress = progress
        self._nodes: list[Any] = []
        self._ahead: list[Page] = []  # read, and not used yet
        self._cursors: dict[Any, bytes | str] = {}  # of those that have more
        self._before: list[_Mark] | None = None
        self._migrating = False
        self._looked_at = 0
        self._size = 0

    @property
    def by_script(self) -> bool:
        """Whether one server is proven to have all keys; known after the first page."""
        return self._nodes == [None] and self._before is not None

    def each(self, use: Callable[[Page], object]) -> Op[None]:
        """Pass every page to `use`. Raises as `next_of` does."""
        while (yield from self.next_of(use)) is not None:
            pass

    def next_of(self, use: Callable[[Page], U]) -> Op[list[U] | None]:
        """What `use` makes of the next pages; None at the end.

        It is called while the server reads the pages after them, where the client can do that. Raises what `use` raises, and
        what `next_pages` does.
        """
        made: list[U] = []
        failures: list[Exception] = []

        def use_them() -> None:
            try:
                while self._ahead:
                    made.append(use(self._ahead.pop(0)))
            except Exception as error:  # noqa: BLE001 - raised below: here it would be taken for the connection's
                failures.append(error)

        pages = yield from self.next_pages(use_them)
        use_them()
        if failures:
            raise failures.pop(0)
        self._ahead += pages or ()
        return made if made or pages else None

    def next_pages(self, meanwhile: Callable[[], None] | None = None) -> Op[list[Page] | None]:
        """The next page of every primary that has more, possibly empty; None at the end.

        `meanwhile` is as in Command.

        Raises StoreUnavailable where it would see one node of a cluster, InexactScan where a proxy lets it see nothing.
        """
        if not self._nodes:
            [self._nodes] = yield [PRIMARIES]
            self._before = yield from self._marks()
            self._cursors = dict.fromkeys(self._nodes, "0")
            if self._progress:
                sizes = yield [Command(("DBSIZE",), node=node, optional=True) for node in self._nodes]
                self._size = sum(size for size in sizes if isinstance(size, int))
        if not self._cursors:
            if self.exact is None:
                self.exact = not self._migrating and _unmoved(self._before, (yield from self._marks()))
            return None
        read = yield from self._by_script(meanwhile) if self.by_script else self._by_commands()
        for cursor, page in read:
            self.near += page.near
            self.near_examples += page.near_examples[: MAX_NEAR - len(self.near_examples)]
            self._migrating = self._migrating or -3 in page.pttls_ms
            self._cursors[page.node] = cursor
            if cursor == b"0":
                del self._cursors[page.node]
        self._looked_at += self._count * len(read)
        if self._progress:
            self._progress(min(self._looked_at, self._size) if self._cursors else self._size, self._size)
        return [page for _, page in read]

    def _by_script(self, meanwhile: Callable[[], None] | None) -> Op[list[tuple[bytes, Page]]]:
        fields = (self._keys.record_prefix, *RECORD_FIELDS) if self._records else (b"",)
        args = (self._cursors[None], self._prefix, str(self._count), self._looser, *fields)
        [reply] = yield [Command(args, script=PAGE, optional=True, meanwhile=meanwhile)]
        cursor, now_ms, redis_keys, pttls_ms, values, records, near, near_examples = _accepted(reply)
        return [(cursor, Page(redis_keys, pttls_ms, values, now_ms, None, records, near, near_examples))]

    def _by_commands(self) -> Op[list[tuple[bytes, Page]]]:
        listed = yield from _listed(self._cursors, (self._looser or self._prefix) + b"*", self._count)
        found = [[key for key in some if key.startswith(self._prefix) and key.endswith(b"}")] for *_, some in listed]
        asked = [
            Command((), node=node, batch=list(self._reads(redis_keys)))
            for node, redis_keys in zip(self._cursors, found, strict=True)
            if redis_keys
        ]
        replies = iter((yield asked) if asked else ())
        pages = []
        for node, redis_keys, (cursor, now_ms, some) in zip(self._cursors, found, listed, strict=True):
            pttls_ms, values, records = self._columns(next(replies) if redis_keys else [])
            near = sorted(set(some).difference(redis_keys)) if self._looser else []
            page = Page(redis_keys, pttls_ms, values, now_ms, node, records, len(near), near[:MAX_NEAR])
            pages.append((cursor, page))
        return pages

    def _reads(self, redis_keys: list[bytes]) -> Iterator[tuple[bytes | str, ...]]:
        for redis_key in redis_keys:
            yield "PTTL", redis_key
            yield "GETRANGE", redis_key, "0", "256"
            if self._records:
                record = self._keys.record_of(redis_key)
                yield "PTTL", record
                yield "HMGET", record, *RECORD_FIELDS

    def _columns(self, replies: list[Any]) -> tuple[list[int], list[bytes | None], list[Any]]:
        """The TTLs, the values and the records that were read."""
        for reply in replies:
            if isinstance(reply, SessionStoreError) and not (is_away(reply) or isinstance(reply, CorruptValue)):
                raise reply
        width = 4 if self._records else 2
        read = list(zip(replies[::width], replies[1::width], strict=True))
        pttls_ms = [pttl_ms if isinstance(pttl_ms, int) and not is_away(value) else -3 for pttl_ms, value in read]
        values = [value if isinstance(value, bytes) else None for _, value in read]
        known = zip(replies[2::width], replies[3::width], values, strict=True) if self._records else ()
        records = [
            [*found, left_ms] if isinstance(left_ms, int) and isinstance(found, list) and found[0] == value else None
            for left_ms, found, value in known
        ]
        return pttls_ms, values, records

    def _marks(self) -> Op[list[_Mark] | None]:
        if self._nodes == [None]:
            run_id = yield from sole_server(self._keys)
            return [(run_id, _ALL_SLOTS, "")] if run_id else None
        infos = yield [Command(("INFO", "server"), node=node, optional=True) for node in self._nodes]
        maps = yield [Command(("CLUSTER NODES",), node=node, optional=True) for node in self._nodes]
        marks = [
            (info["run_id"], *owned)
            for info, nodes in zip(infos, maps, strict=True)
            if not isinstance(info, SessionStoreError) and (owned := _settled_slots(nodes))
        ]
        return marks if len(marks) == len(maps) else None


def _listed(cursors: dict[Any, bytes | str], pattern: bytes, count: int) -> Op[list[tuple[bytes, int, list[bytes]]]]:
    """The next cursor of each node, its time in milliseconds, and the names of some keys."""
    replies = yield [
        Command(words, node=node, optional=True)
        for node, cursor in cursors.items()
        # Never SCAN alone: redis-py's cluster client would alter its reply.
        for words in (("TIME",), ("SCAN", cursor, "MATCH", pattern, "COUNT", str(count)))
    ]
    listed = []
    for node, time, scan in zip(cursors, replies[::2], replies[1::2], strict=True):
        for reply in (time, scan):
            if isinstance(reply, CommandRefused) and node is None:
                raise _unidentified()
            _accepted(reply)
        (seconds, microseconds), (cursor, redis_keys) = time, scan
        listed.append((b"%d" % cursor, int(seconds) * 1000 + int(microseconds) // 1000, redis_keys))
    return listed


# What must be the same before and after an exact scan: which process answers, for which slots, and since which epoch: a node
# that takes a slot also takes the highest epoch, so that a slot's return is noticed.
_Mark: TypeAlias = tuple[str, frozenset[int], str]
_ALL_SLOTS = frozenset(range(16_384))


def agreed(settings: StoreSettings) -> Op[StoreSettings]:
    """These settings; with the namespace's own max age if it is known and they were given none."""
    if "session_max_age_ms" in settings.model_fields_set:
        return settings
    return settings.with_max_age((yield from Operations(settings).max_age_ms()))


def sole_server(keys: Keys) -> Op[str | None]:
    """The run ID of the one server that has all keys, where there is no cluster; None if it isn't proven that there is one.

    It is proven if INFO answers, and scripts sent by many different keys all run in the very process that answered: a proxy
    that spreads keys over servers would send some of them elsewhere.

    Raises StoreUnavailable for one node of a cluster, InexactScan for a proxy that hangs up on INFO.
    """
    [emulated] = yield [EMULATED]
    if emulated:
        return "emulated"
    info = yield from answered(keys, "INFO", "server")
    if is_away(info):
        raise _unidentified()
    if isinstance(info, SessionStoreError) or "run_id" not in info:
        return None
    if "cluster" in (info.get("redis_mode"), info.get("server_mode")):
        raise StoreUnavailable("this is one node of a cluster, with a part of its keys", remedy=ONE_NODE)
    run_id = info["run_id"]
    # A user with read-only keys may declare keys by EVAL_RO alone, which Redis 6.2 lacks.
    for command in ("EVAL", "EVAL_RO"):
        found = yield [Command((command, RUN_ID, "1", keys.session_id(probe)), optional=True) for probe in PROBES]
        if all(each in (run_id, str(run_id).encode()) for each in found):
            return str(run_id)
        if not all(isinstance(each, AccessDenied) for each in found):
            break
    return None


def answered(keys: Keys, *words: bytes | str) -> Op[Any]:
    """The reply to a command that a proxy may hang up on: then an error that `is_away`, and a refusal is its reply, too.

    Raises StoreUnavailable if it is the server that can't be reached.
    """
    asked = Command(words, resend=False, optional=True, even_away=True)
    [reply] = yield [asked]
    if is_away(reply):
        # Raises what keeps the server away.
        yield [Command(("GET", keys.counter(RESUME_FAILURES)), optional=True)]
        [reply] = yield [asked]
    return reply


def _unidentified() -> InexactScan:
    return InexactScan(
        "what answers refuses INFO or SCAN, as a proxy that spreads keys over servers does",
        remedy="give the URL of the server itself; where there are several, of one after the other",
    )


def _accepted(reply: Any) -> Any:
    """A reply that is no refusal. Raised here, where a caller's generator can catch it, and not by the client."""
    if isinstance(reply, SessionStoreError):
        raise reply
    return reply


def _unmoved(before: list[_Mark] | None, after: list[_Mark] | None) -> bool:
    return before is not None and before == after and frozenset().union(*(slots for _, slots, _ in before)) == _ALL_SLOTS


def _settled_slots(nodes: Any) -> tuple[frozenset[int], str] | None:
    """The slots and the epoch of the node that answered; None while it imports or exports any, or is not a primary."""
    if isinstance(nodes, SessionStoreError):
        return None
    [myself] = [node for node in nodes.values() if "myself" in node["flags"]]
    if myself["migrations"] or "master" not in myself["flags"]:
        return None
    slots = frozenset(slot for bounds in myself["slots"] for slot in range(int(bounds[0]), int(bounds[-1]) + 1))
    return slots, myself["epoch"]


def session_rows(settings: StoreSettings, page: Page) -> Iterator[SessionRow]:
    """The live sessions of a page."""
    max_age_ms, now_ms = settings.session_max_age_ms, page.now_ms
    names = page.conversations(Keys(settings.namespace))
    records = page.records or [None] * len(names)
    for key, pttl_ms, value, fields in zip(names, page.pttls_ms, page.values, records, strict=True):
        if key is not None and value is not None and pttl_ms >= -1:
            record = Record.read(fields, pttl_ms) if fields else None
            idle_ms = max_age_ms - pttl_ms if 0 <= pttl_ms <= max_age_ms else None
            if record and record.used_ms is not None:
                idle_ms = max(0, now_ms - record.used_ms)
            expires_in_ms = pttl_ms if pttl_ms >= 0 else None
            yield SessionRow(key, value.decode("ascii"), idle_ms, expires_in_ms, now_ms - (idle_ms or 0), record)


def lease_rows(settings: StoreSettings, page: Page) -> Iterator[LeaseRow]:
    """The held leases of a page of a scan of leases."""
    keys = Keys(settings.namespace)
    for redis_key, pttl_ms, value in zip(page.redis_keys, page.pttls_ms, page.values, strict=True):
        key = keys.leased_conversation(redis_key)
        if key is not None and value is not None and pttl_ms > LEASE_GRACE_MS:
            yield LeaseRow(key, value.decode("utf-8", "backslashreplace")[:200], pttl_ms - LEASE_GRACE_MS)


def near_namespaces(settings: StoreSettings) -> Op[tuple[str, ...]]:
    """The namespaces of the session keys on a server, for one that turned out empty; none if it is not.

    Looks at 20 pages of each primary at most. Those with similar names come first.
    """
    keys = Keys(settings.namespace)
    others = (keys.settings(), *map(keys.counter, COUNTERS))
    there = yield [Command(("PTTL", redis_key), optional=True) for redis_key in others]
    if any(isinstance(pttl_ms, int) and pttl_ms > -2 for pttl_ms in there):
        return ()
    [nodes] = yield [PRIMARIES]
    cursors: dict[Any, bytes | str] = dict.fromkeys(nodes, "0")
    found: set[str] = set()
    for _ in range(_LOOK_PAGES):
        listed = yield from _listed(cursors, b"*:*:{*}", settings.scan_count)
        matches = (_OF_A_STORE.match(redis_key) for *_, redis_keys in listed for redis_key in redis_keys)
        found.update(match[1].decode("ascii") for match in matches if match)
        cursors = {node: cursor for node, (cursor, *_) in zip(cursors, listed, strict=True) if cursor != b"0"}
        if settings.namespace in found:
            return ()
        if not cursors:
            break
    return tuple(sorted(found, key=lambda name: (-SequenceMatcher(None, settings.namespace, name).ratio(), name))[:MAX_NEAR])
