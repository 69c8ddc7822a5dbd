"""What became of the sweep: keys in, a Report out. A pure fold; memory does not grow with the number of keys."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from redis_sessions.keys import Keys, are_session_ids, is_session_id
from redis_sessions.settings import DAY_MS, StoreSettings

MAX_EXAMPLES = 20

_HOUR_MS = DAY_MS // 24
_BUCKETS_MS = (
    *(minutes * 60_000 for minutes in (1, 5, 15, 30)),
    *(hours * _HOUR_MS for hours in (1, 3, 6, 12, 24, 48)),
    *(days * DAY_MS for days in (4, 7, 14, 30, 90, 365)),
)


class InvalidExample(BaseModel):
    """A key that holds no valid session ID.

    Attributes:
        key: its name in Redis, backslash-escaped if it is no printable text.
        reason: "wrong type", "no valid session ID" or "name outside the key scheme".
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    key: str
    reason: str


class IdleBucket(BaseModel):
    """Sessions that were idle for about the same time.

    Attributes:
        up_to_ms: they were idle for at most that many milliseconds, and longer than the bucket before says.
        count: how many they are; those of the buckets before are not among them.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    up_to_ms: int
    count: int


class Report(BaseModel):
    """The state of a namespace, read by a key scan that deletes nothing.

    Attributes:
        live: keys that hold a valid session ID.
        no_ttl: keys that never expire; `set` never writes one.
        over_max_age: keys with more time left than the reader's max age; how long they are idle is unknown.
        invalid: keys with no valid session ID: wrong type, wrong text, or a name outside the key scheme.
        invalid_examples: the first 20 of them.
        soonest_expiry_ms: milliseconds until the next session expires, None if none will.
        idle_histogram: idle times of the live sessions that have one, in ascending buckets.
        counters: `resume_failures_total`, `resumes_total`, `fresh_starts_total`; None for one that holds no integer.
        approximate: keys may have been missed, since cluster slots moved or the server changed during the scan.
        scan_ms: how long the scan took, in milliseconds.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    live: int
    no_ttl: int
    over_max_age: int
    invalid: int
    invalid_examples: tuple[InvalidExample, ...]
    soonest_expiry_ms: int | None
    idle_histogram: tuple[IdleBucket, ...]
    counters: dict[str, int | None]
    approximate: bool
    scan_ms: int


class ReportFold:
    """Takes keys one at a time or by the page; `finish` gives the Report."""

    def __init__(self, settings: StoreSettings) -> None:
        self._keys = Keys(settings.namespace)
        self._max_age_ms = settings.session_max_age_ms
        self._bounds = [bound for bound in _BUCKETS_MS if bound < self._max_age_ms] + [self._max_age_ms]
        self._histogram = [0] * len(self._bounds)
        self._live = self._no_ttl = self._over_max_age = self._invalid = 0
        self._examples: list[InvalidExample] = []
        self._soonest_ms: int | None = None
        self._began_s = time.monotonic()

    def add(self, redis_key: bytes, pttl_ms: int, value: bytes | None) -> None:
        """Count one key: its name in Redis, milliseconds left (-1 without a TTL), its value (None if no string)."""
        if pttl_ms < -1:
            return  # it expired between being listed and being looked at
        if pttl_ms == -1:
            self._no_ttl += 1
        elif pttl_ms > self._max_age_ms:
            self._over_max_age += 1
        reason = self._trouble(redis_key, value)
        if reason is not None:
            self._invalid += 1
            if len(self._examples) < MAX_EXAMPLES:
                self._examples.append(InvalidExample(key=_printable(redis_key), reason=reason))
            return
        self._live += 1
        if pttl_ms >= 0:
            if self._soonest_ms is None or pttl_ms < self._soonest_ms:
                self._soonest_ms = pttl_ms
            if pttl_ms <= self._max_age_ms:
                self._histogram[bisect_left(self._bounds, self._max_age_ms - pttl_ms)] += 1

    def add_page(self, redis_keys: Sequence[bytes], pttls_ms: Sequence[int], values: Sequence[bytes | None]) -> None:
        """Same as `add` of each. A page without anything odd is counted as a whole, at a tenth of the cost."""
        if not (are_session_ids(values) and self._keys.are_plain(redis_keys)):
            for row in zip(redis_keys, pttls_ms, values, strict=True):
                self.add(*row)
            return
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

    def finish(self, counters: dict[str, int | None], *, approximate: bool) -> Report:
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
            approximate=approximate,
            scan_ms=round((time.monotonic() - self._began_s) * 1000),
        )

    def _trouble(self, redis_key: bytes, value: bytes | None) -> str | None:
        if value is None:
            return "wrong type"
        if not is_session_id(value):
            return "no valid session ID"
        if self._keys.conversation(redis_key) is None:
            return "name outside the key scheme"
        return None


def _printable(redis_key: bytes) -> str:
    text = redis_key.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()
