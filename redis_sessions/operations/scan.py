"""The key scan: pages of session keys from every primary, side by side, and whether they can have missed any.

SCAN promises that a key which is there all the time is returned at least once, and keeps no state on the server; so a
page may be asked for again. It doesn't promise «once», and its cursor means nothing to another server or after slots have
moved: both are looked for, before the first page and after the last. A slot that went and came back has raised an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from redis_sessions.errors import AccessDenied, InexactScan, SessionStoreError
from redis_sessions.keys import Keys, are_session_ids, is_session_id
from redis_sessions.operations.command import PRIMARIES, Command, Op
from redis_sessions.operations.report import Report, ReportFold
from redis_sessions.operations.scripts import PAGE
from redis_sessions.settings import StoreSettings


class Progress(Protocol):
    """`progress(done, about)` is called as a long operation goes on: how much is done, and how much there is about.

    For a scan both are keys of the whole database, and the first may overtake the second while keys come and go.
    """

    def __call__(self, done: int, about: int, /) -> None: ...


class Page(NamedTuple):
    """Some session keys as a scan found them, in columns.

    Attributes:
        redis_keys: their names in Redis.
        pttls_ms: milliseconds left to live, -1 without a TTL, -2 if expired since, -3 if its slot is on its way.
        values: the first 257 bytes of their values; None of what is no string.
        now_ms: the server's time when they were looked at, milliseconds since 1970.
        node: the primary that has them, as PRIMARIES gave it.
    """

    redis_keys: list[bytes]
    pttls_ms: list[int]
    values: list[bytes | None]
    now_ms: int
    node: object = None


class SessionRow(NamedTuple):
    """A live session.

    Attributes:
        key: the conversation.
        session_id: its live session ID.
        idle_ms: milliseconds since it was last used; None where unknown: without a TTL, or with more than the max age left.
        expires_in_ms: milliseconds it has left; None without a TTL.
        last_used_at_ms: when it was last used, in milliseconds since 1970 by the server's clock; the time at which it was
            looked at where that is unknown.
    """

    key: str
    session_id: str
    idle_ms: int | None
    expires_in_ms: int | None
    last_used_at_ms: int


class Scan:
    """One walk over all session keys of a namespace.

    `exact` is None until the walk has ended; then it says whether no key that was there all along can have been missed.

    Args:
        settings: whose namespace, and how large a page.
        progress: called after every page.
        prefix: which keys instead of those of sessions.
        optional: let a refusal by the server end the walk, and stand in `refused`, instead of being raised.
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
        self._on_its_way = False
        self._looked_at = 0
        self._size = 0

    def next_pages(self) -> Op[list[Page] | None]:
        """The next page of every primary that has more; None when none has. An empty page is no end."""
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
                self.exact = not self._on_its_way and _unmoved(self._before, after)
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
            self._on_its_way = self._on_its_way or -3 in pttls_ms
            self._cursors[node] = cursor
            if cursor == b"0":
                del self._cursors[node]
        self._looked_at += count * len(nodes)
        if self._progress:
            self._progress(min(self._looked_at, self._size) if self._cursors else self._size, self._size)
        return pages

    def _marks(self) -> Op[list[_Mark] | None]:
        infos = yield [Command(("INFO", "server"), node=node, optional=True) for node in self._nodes]
        slots: list[Any] = [_Held(_ALL_SLOTS)]
        if self._nodes != [None]:
            maps = yield [Command(("CLUSTER NODES",), node=node, optional=True) for node in self._nodes]
            slots = [_settled_slots(nodes) for nodes in maps]
        if None in slots or any(isinstance(info, AccessDenied) for info in infos):
            return None
        # A server without INFO is an emulation inside this process (fakeredis): it can't change.
        return [
            _Mark(None if isinstance(info, SessionStoreError) else info["run_id"], held)
            for info, held in zip(infos, slots, strict=True)
        ]


class _Mark(NamedTuple):
    """What must be the same before and after an exact scan: which process answers, for which slots, and since when."""

    run_id: str | None
    held: _Held


class _Held(NamedTuple):
    """The slots of a node. Who takes a slot takes a higher epoch than all others have, so none comes back unnoticed."""

    slots: frozenset[int]
    epoch: str = ""


_ALL_SLOTS = frozenset(range(16_384))


def _unmoved(before: list[_Mark] | None, after: list[_Mark] | None) -> bool:
    return before is not None and before == after and frozenset().union(*(mark.held.slots for mark in before)) == _ALL_SLOTS


def _settled_slots(nodes: Any) -> _Held | None:
    """What the answering node holds; None while it is giving any away or taking any, or is no primary."""
    if isinstance(nodes, SessionStoreError):
        return None
    [myself] = [node for node in nodes.values() if "myself" in node["flags"]]
    if myself["migrations"] or "master" not in myself["flags"]:
        return None
    slots = frozenset(slot for bounds in myself["slots"] for slot in range(int(bounds[0]), int(bounds[-1]) + 1))
    return _Held(slots, myself["epoch"])


def report(settings: StoreSettings, counters: Op[dict[str, int | None]], progress: Progress | None = None) -> Op[Report]:
    """Fold all session keys and the counters into a Report. Deletes nothing."""
    scan = Scan(settings, progress)
    fold = ReportFold(settings)
    while (pages := (yield from scan.next_pages())) is not None:
        for page in pages:
            fold.add_page(page.redis_keys, page.pttls_ms, page.values)
    counts = yield from counters
    return fold.finish(counts, approximate=not scan.exact)


def live_session_ids(settings: StoreSettings) -> Op[frozenset[str]]:
    """Every session ID that a key names. Raises InexactScan unless the scan was exact."""
    scan = Scan(settings)
    found: set[str] = set()
    while (pages := (yield from scan.next_pages())) is not None:
        found.update(row.session_id for page in pages for row in session_rows(settings, page))
    if not scan.exact:
        raise InexactScan(
            "keys may have been missed: cluster slots moved, the server changed, or INFO is not granted to this user",
            remedy="delete no transcript now; try again when the cluster is at rest",
        )
    return frozenset(found)


def session_rows(settings: StoreSettings, page: Page) -> Iterator[SessionRow]:
    """Those of a page that are live sessions of ours: a key of the scheme, a value that can be a session ID."""
    keys = Keys(settings.namespace).conversations(page.redis_keys)
    max_age_ms, now_ms = settings.session_max_age_ms, page.now_ms
    all_valid = are_session_ids(page.values)
    for key, pttl_ms, value in zip(keys, page.pttls_ms, page.values, strict=True):
        if key is None or value is None or pttl_ms < -1 or not (all_valid or is_session_id(value)):
            continue
        idle_ms = max_age_ms - pttl_ms if 0 <= pttl_ms <= max_age_ms else None
        expires_in_ms = pttl_ms if pttl_ms >= 0 else None
        yield SessionRow(key, value.decode("ascii"), idle_ms, expires_in_ms, now_ms - (idle_ms or 0))
