"""Reads all session keys into a Report, or into the set of their session IDs. Deletes nothing."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from pydantic import BaseModel

from redis_sessions.errors import InexactScan
from redis_sessions.keys import Keys, is_session_id
from redis_sessions.operations.command import Op
from redis_sessions.operations.conversation import Operations
from redis_sessions.operations.records import RecordFold, RecordSummary
from redis_sessions.operations.scan import INEXACT, Page, Progress, Scan, agreed, session_rows
from redis_sessions.operations.text import safe
from redis_sessions.settings import DAY_MS, StoreSettings

MAX_EXAMPLES = 20

_HOUR_MS = DAY_MS // 24
_BUCKETS_MS = (
    *(minutes * 60_000 for minutes in (1, 5, 15, 30)),
    *(hours * _HOUR_MS for hours in (1, 3, 6, 12, 24, 48)),
    *(days * DAY_MS for days in (4, 7, 14, 30, 90, 365)),
)


class InvalidExample(BaseModel, frozen=True, defer_build=True):
    """A key that doesn't hold a valid session ID.

    Attributes:
        key: its name in Redis, backslash-escaped if it is not printable text.
        reason: "wrong type", "no valid session ID" or "name outside the key scheme".
    """

    key: str
    reason: str


class IdleBucket(BaseModel, frozen=True, defer_build=True):
    """Sessions that were idle for about the same time.

    Attributes:
        up_to_ms: they were idle for at most that many milliseconds, and for more than `up_to_ms` of the bucket before.
        count: their number; those of the buckets before are not included.
    """

    up_to_ms: int
    count: int


class Report(BaseModel, frozen=True, defer_build=True):
    """The state of a namespace, read by a key scan that deletes nothing.

    Attributes:
        live: keys that hold a valid session ID.
        no_ttl: keys that never expire; `set` never writes one.
        over_max_age: keys with more time left than the max age; how long they are idle is unknown. The max age is the one
            that the settings were given, or else the namespace's.
        invalid: keys without a valid session ID: wrong type, wrong text, or a name outside the key scheme.
        invalid_examples: the first 20 of them.
        soonest_expiry_ms: milliseconds until the next session expires, None if none will.
        idle_histogram: idle times of the live sessions that have one, by their TTLs, in ascending buckets.
        counters: every counter of redis_sessions.keys.COUNTERS by its name; None for one that is not an integer.
        near_scheme: keys that begin as session keys do but have no braces (`sessions:id:chat:7`): no store reads them.
        near_examples: the first 20 of them.
        approximate: keys may have been missed: cluster slots moved, the server changed during the scan, or it can't be
            proven that one server has all keys, because INFO is denied or a proxy stands in between.
        scan_ms: how long the scan took, in milliseconds.
        records: what the sessions' records say, if it was asked for.
    """

    live: int
    no_ttl: int
    over_max_age: int
    invalid: int
    invalid_examples: tuple[InvalidExample, ...]
    soonest_expiry_ms: int | None
    idle_histogram: tuple[IdleBucket, ...]
    counters: dict[str, int | None]
    near_scheme: int
    near_examples: tuple[str, ...]
    approximate: bool
    scan_ms: int
    records: RecordSummary | None = None


def report(settings: StoreSettings, progress: Progress | None = None, *, records: bool = False) -> Op[Report]:
    """Aggregate all session keys, the counters and, if asked to, the records into a Report."""
    scan = Scan(settings, progress, records=records)
    settings = yield from agreed(settings)
    fold = ReportFold(settings, records=records)
    yield from scan.each(fold.add_page)
    counts = yield from Operations(settings).counters()
    return fold.finish(counts, approximate=not scan.exact, near=scan.near, near_examples=scan.near_examples)


def live_session_ids(settings: StoreSettings) -> Op[frozenset[str]]:
    """The session IDs of all session keys. Raises InexactScan unless the scan was exact."""
    scan = Scan(settings)
    found: set[str] = set()
    yield from scan.each(lambda page: found.update(row.session_id for row in session_rows(settings, page)))
    if not scan.exact:
        remedy = "delete no transcript now; try again when the cluster is at rest, by the URL of the server itself"
        raise InexactScan(INEXACT, remedy=remedy)
    return frozenset(found)


class ReportFold:
    """Aggregates pages of scanned keys into a Report. Its memory does not grow with the number of keys."""

    def __init__(self, settings: StoreSettings, *, records: bool = False) -> None:
        self._records = RecordFold() if records else None
        self._keys = Keys(settings.namespace)
        self._max_age_ms = settings.session_max_age_ms
        self._bounds = [bound for bound in _BUCKETS_MS if bound < self._max_age_ms] + [self._max_age_ms]
        self._histogram = [0] * len(self._bounds)
        self._live = self._no_ttl = self._over_max_age = self._invalid = 0
        self._examples: list[InvalidExample] = []
        self._soonest_ms: int | None = None
        self._began_s = time.monotonic()

    def add_page(self, page: Page) -> None:
        """Count the keys of a page; those that have expired since they were listed don't count."""
        pttls_ms = page.pttls_ms
        # Which conversations they are is of no interest here, only whether they are some.
        names: Sequence[object] = page.redis_keys if page.is_plain(self._keys) else page.conversations(self._keys)
        if self._records:
            known = zip(names, pttls_ms, page.records, strict=True)
            self._records.add(record for name, pttl_ms, record in known if name is not None and pttl_ms >= -1)
        if None in names:
            rows = list(zip(names, page.redis_keys, pttls_ms, page.values, strict=True))
            pttls_ms = [pttl_ms for name, _, pttl_ms, _ in rows if name is not None]
            for name, redis_key, pttl_ms, value in rows:
                if name is None and pttl_ms >= -1:
                    self._add_invalid(redis_key, pttl_ms, value)
        # Counted from the sorted list, at a tenth of the cost of a look at each.
        ascending = sorted(pttls_ms)
        expired, timed, over = (bisect_left(ascending, edge) for edge in (-1, 0, self._max_age_ms + 1))
        self._no_ttl += timed - expired
        self._over_max_age += len(ascending) - over
        self._live += len(ascending) - expired
        if timed < len(ascending) and (self._soonest_ms is None or ascending[timed] < self._soonest_ms):
            self._soonest_ms = ascending[timed]
        upper = over
        for bucket, bound in enumerate(self._bounds):
            lower = bisect_left(ascending, self._max_age_ms - bound, timed, upper)
            self._histogram[bucket] += upper - lower
            upper = lower

    def finish(
        self,
        counters: dict[str, int | None],
        *,
        approximate: bool,
        near: int = 0,
        near_examples: Sequence[bytes] = (),
    ) -> Report:
        """The report on all that was added."""
        return Report(
            live=self._live,
            no_ttl=self._no_ttl,
            over_max_age=self._over_max_age,
            invalid=self._invalid,
            invalid_examples=tuple(self._examples),
            soonest_expiry_ms=self._soonest_ms,
            idle_histogram=tuple(
                IdleBucket(up_to_ms=bound, count=count) for bound, count in zip(self._bounds, self._histogram, strict=True)
            ),
            counters=counters,
            near_scheme=near,
            near_examples=tuple(map(_name, near_examples)),
            approximate=approximate,
            scan_ms=round((time.monotonic() - self._began_s) * 1000),
            records=self._records.finish() if self._records else None,
        )

    def _add_invalid(self, redis_key: bytes, pttl_ms: int, value: bytes | None) -> None:
        self._invalid += 1
        self._no_ttl += pttl_ms == -1
        self._over_max_age += pttl_ms > self._max_age_ms
        if len(self._examples) < MAX_EXAMPLES:
            wrong_value = "wrong type" if value is None else "no valid session ID"
            reason = "name outside the key scheme" if value is not None and is_session_id(value) else wrong_value
            self._examples.append(InvalidExample(key=_name(redis_key), reason=reason))


def _name(redis_key: bytes) -> str:
    return safe(redis_key.decode("utf-8", "backslashreplace"))
