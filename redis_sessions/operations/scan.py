"""The key scan: pages of session keys from every primary in parallel, and whether the scan can have missed any.

SCAN guarantees that a key which exists all the time is returned at least once, and keeps no state on the server, so a page
may be requested again. It doesn't guarantee exactly once, and its cursor means nothing to another server or after slots have
moved. Both are checked before the first page and after the last; a slot that moved away and back has raised an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

from redis_sessions.errors import AccessDenied, SessionStoreError
from redis_sessions.keys import Keys, are_session_ids, is_session_id
from redis_sessions.operations.command import PRIMARIES, Command, Op
from redis_sessions.operations.scripts import PAGE
from redis_sessions.settings import StoreSettings


class Progress(Protocol):
    """`progress(done, about)` is called while a long operation runs: how much is done, of about how much.

    For a scan both are keys of the whole database; `about` is their number when the scan began.
    """

    def __call__(self, done: int, about: int, /) -> None: ...


class Page(NamedTuple):
    """Some session keys as a scan found them, in columns."""

    redis_keys: list[bytes]
    pttls_ms: list[int]  # time left to live, -1 without a TTL, -2 if expired since, -3 if its slot is being migrated
    values: list[bytes | None]  # their first 257 bytes; None for one that is not a string
    now_ms: int  # the server's time when they were read, milliseconds since 1970
    node: object = None  # the primary that has them, as PRIMARIES gave it

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
        idle_ms: milliseconds since it was last used; None where unknown: without a TTL, or with more than the max age left.
        expires_in_ms: milliseconds it has left; None without a TTL.
        last_used_at_ms: when it was last used, in milliseconds since 1970 by the server's clock; if that is unknown, the
            time at which it was read.
    """

    key: str
    session_id: str
    idle_ms: int | None
    expires_in_ms: int | None
    last_used_at_ms: int


class Scan:
    """One scan of all session keys of a namespace.

    `exact` is None until the scan has ended; then it is True if no key that existed all the time can have been missed.

    Args:
        settings: give the namespace and the size of a page.
        progress: called after every page.
        prefix: scan keys with this prefix instead of session keys.
        optional: if the server refuses a command, end the scan and put the error into `refused` instead of raising it.
    """

    def __init__(
        self,
        settings: StoreSettings,
        progress: Progress | None = None,
        *,
        prefix: bytes | None = None,
        optional: bool = False,
    ) -> None:
        self.exact: bool | None = None
        self.refused: SessionStoreError | None = None
        self._settings = settings
        self._prefix = prefix or Keys(settings.namespace).prefix
        self._optional = optional
        self._progress = progress
        self._cursors: dict[Any, bytes | str] | None = None
        self._nodes: list[Any] = []
        self._before: list[_Mark] | None = None
        self._migrating = False
        self._looked_at = 0
        self._size = 0

    def next_pages(self) -> Op[list[Page] | None]:
        """The next page of every primary that has more, possibly empty; None at the end."""
        if self._cursors is None:
            [self._nodes] = yield [PRIMARIES]
            self._cursors = dict.fromkeys(self._nodes, "0")
            self._before = yield from self._marks()
            if self._progress:
                sizes = yield [Command(("DBSIZE",), node=node, optional=self._optional) for node in self._nodes]
                self._size = sum(size for size in sizes if isinstance(size, int))
        if not self._cursors:
            if self.exact is None:
                after = yield from self._marks()
                self.exact = not self._migrating and _unmoved(self._before, after)
            return None
        count = self._settings.scan_count
        nodes = list(self._cursors)
        alone = int(nodes == [None])
        replies = yield [
            Command((self._cursors[node], self._prefix, count, alone), script=PAGE, node=node, optional=self._optional)
            for node in nodes
        ]
        for reply in replies:
            if isinstance(reply, SessionStoreError):
                self.refused = reply
                return None
        pages: list[Page] = []
        for node, (cursor, now_ms, redis_keys, pttls_ms, values) in zip(nodes, replies, strict=True):
            pages.append(Page(redis_keys, pttls_ms, values, now_ms, node))
            self._migrating = self._migrating or -3 in pttls_ms
            self._cursors[node] = cursor
            if cursor == b"0":
                del self._cursors[node]
        self._looked_at += count * len(nodes)
        if self._progress:
            self._progress(min(self._looked_at, self._size) if self._cursors else self._size, self._size)
        return pages

    def _marks(self) -> Op[list[_Mark] | None]:
        infos = yield [Command(("INFO", "server"), node=node, optional=True) for node in self._nodes]
        slots: list[tuple[frozenset[int], str] | None] = [(_ALL_SLOTS, "")]
        if self._nodes != [None]:
            maps = yield [Command(("CLUSTER NODES",), node=node, optional=True) for node in self._nodes]
            slots = [_settled_slots(nodes) for nodes in maps]
        if any(isinstance(info, AccessDenied) for info in infos):
            return None
        # A server without INFO is an emulation inside this process (fakeredis): it can't change.
        run_ids = [None if isinstance(info, SessionStoreError) else info["run_id"] for info in infos]
        marks = [(run_id, *owned) for run_id, owned in zip(run_ids, slots, strict=True) if owned]
        return marks if len(marks) == len(slots) else None


# What must be the same before and after an exact scan: which process answers, for which slots, and since which epoch: a node
# that takes a slot also takes the highest epoch, so that a slot's return is noticed.
_Mark: TypeAlias = tuple[str | None, frozenset[int], str]
_ALL_SLOTS = frozenset(range(16_384))


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
    for key, pttl_ms, value in zip(names, page.pttls_ms, page.values, strict=True):
        if key is not None and value is not None and pttl_ms >= -1:
            idle_ms = max_age_ms - pttl_ms if 0 <= pttl_ms <= max_age_ms else None
            expires_in_ms = pttl_ms if pttl_ms >= 0 else None
            yield SessionRow(key, value.decode("ascii"), idle_ms, expires_in_ms, now_ms - (idle_ms or 0))
