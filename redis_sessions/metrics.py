"""Prometheus metrics: the counters all workers share, and what a key scan tells. `register(store)` exports them.

It needs `pip install 'redis-sessions[prometheus]'`. All workers count in one place, so one exporter tells everything, be it
a worker or `redis-sessions metrics --listen`. Where several do, they all show the same: aggregate with `max`, never `sum`.

- What can't be read now is not shown: with Redis away `redis_sessions_up` is 0 and the counters are absent. Zero would be
  a counter reset, and the last known value would look like workers that have nothing to do.
- The gauges are those of the last key scan, whose age is exported: an age, so that no clocks need to agree. It is scanned
  anew by the first scrape that finds the scan too old, in a thread of its own, never twice at once.
- A scrape waits for Redis no longer than an operation may (the store's `deadline_ms`; on a client that the caller built,
  its own timeouts apply), and for a scan a second. A scan that takes longer goes on, and a later scrape shows it.
- Nothing is sent to Redis by registering, so it may be done before a fork.
- In asyncio: register a SessionStore of the same URL and settings (a scrape blocks, so serve it from a thread, as
  `prometheus_client.start_http_server` does), or leave it to one exporter beside the workers.
- Under PROMETHEUS_MULTIPROC_DIR the default registry is not what a scrape shows: register on the one that has the
  `MultiProcessCollector`. Nothing of this goes through its files, so nothing is added up over processes.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from redis_sessions.errors import InvalidSettings, MissingExtra, SessionStoreError
from redis_sessions.keys import FRESH_STARTS, RESUME_FAILURES, RESUMES
from redis_sessions.report import Report
from redis_sessions.store import SessionStore

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeHistogramMetricFamily, GaugeMetricFamily
    from prometheus_client.samples import Sample
except ImportError:
    raise MissingExtra("metrics need prometheus_client", remedy="pip install 'redis-sessions[prometheus]'") from None

log = logging.getLogger("redis_sessions")

__all__ = ["Collector", "register"]

SCAN_MAX_AGE_MS: Final = 60_000
SCAN_WAIT_MS: Final = 1_000
UP: Final = "redis_sessions_up"
IDLE: Final = "redis_sessions_idle_seconds"
_LABEL: Final = "namespace"

_COUNTERS: Final = {
    RESUME_FAILURES: ("claude_session_resume_failures_total", "Resumes that the agents refused."),
    RESUMES: ("redis_sessions_resumes_total", "Turns that resumed a session."),
    FRESH_STARTS: ("redis_sessions_fresh_starts_total", "Turns that started a session."),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a store saw.

    Attributes:
        namespace: of the store.
        counters: None if they could not be read.
        report: of the last scan that succeeded, None before the first.
        scanned_s: when that ended, on the monotonic clock.
        error: why the counters, or else a newer scan, could not be had.
    """

    namespace: str
    counters: dict[str, int] | None
    report: Report | None
    scanned_s: float
    error: SessionStoreError | None

    @property
    def up(self) -> int:
        return int(self.counters is not None)

    @property
    def age_s(self) -> float | None:
        return None if self.report is None else time.monotonic() - self.scanned_s

    @property
    def next_expiry_s(self) -> float | None:
        if self.report is None or self.report.soonest_expiry_ms is None:
            return None
        return max(0.0, self.report.soonest_expiry_ms / 1000 - (time.monotonic() - self.scanned_s))


def _of_report(value: Callable[[Report], float]) -> Callable[[Look], float | None]:
    return lambda look: None if look.report is None else value(look.report)


_Gauge = tuple[str, str, Callable[[Look], float | None]]
_GAUGES: Final[tuple[_Gauge, ...]] = (
    (UP, "Whether Redis gave the counters to this scrape.", lambda look: look.up),
    ("redis_sessions_live_sessions", "Keys that hold a session ID.", _of_report(lambda report: report.live)),
    ("redis_sessions_keys_without_ttl", "Session keys that will never expire.", _of_report(lambda report: report.no_ttl)),
    (
        "redis_sessions_keys_over_max_age",
        "Session keys with more time left than the exporter's max age.",
        _of_report(lambda report: report.over_max_age),
    ),
    ("redis_sessions_keys_invalid", "Session keys that hold no session ID.", _of_report(lambda report: report.invalid)),
    (
        "redis_sessions_next_expiry_seconds",
        "Time until the next session known to the key scan expires.",
        lambda look: look.next_expiry_s,
    ),
    ("redis_sessions_scan_age_seconds", "Time since the last key scan that succeeded.", lambda look: look.age_s),
    (
        "redis_sessions_scan_duration_seconds",
        "How long the last key scan took.",
        _of_report(lambda report: report.scan_ms / 1000),
    ),
    (
        "redis_sessions_scan_approximate",
        "Whether the last key scan may have missed keys.",
        _of_report(lambda report: report.approximate),
    ),
)


def register(
    *stores: SessionStore,
    registry: CollectorRegistry = REGISTRY,
    scan_max_age_ms: int = SCAN_MAX_AGE_MS,
    scan_wait_ms: int = SCAN_WAIT_MS,
) -> Collector:
    """Export the metrics of one or more stores, each with its namespace as label; `registry.unregister` takes them back.

    Args:
        stores: all that this registry is to export, a namespace each.
        registry: prometheus_client's default one unless given.
        scan_max_age_ms: how old the key scan behind the gauges may get before a scrape has the keys scanned anew.
        scan_wait_ms: how long a scrape waits for a scan that is under way, before it shows the last one.

    Raises InvalidSettings, also for a registry that exports these metrics already.
    """
    collector = Collector(*stores, scan_max_age_ms=scan_max_age_ms, scan_wait_ms=scan_wait_ms)
    try:
        registry.register(collector)
    except ValueError:
        raise InvalidSettings(
            "this registry exports these metrics already", remedy="register all stores in one call, or unregister the first"
        ) from None
    return collector


class Collector:
    """A collector for prometheus_client, on any registry. It takes what `register` does. Raises InvalidSettings likewise."""

    def __init__(
        self, *stores: SessionStore, scan_max_age_ms: int = SCAN_MAX_AGE_MS, scan_wait_ms: int = SCAN_WAIT_MS
    ) -> None:
        if not stores or not all(isinstance(store, SessionStore) for store in stores):
            raise InvalidSettings(
                "metrics are those of a SessionStore",
                remedy="for an AsyncSessionStore make one of the same URL and settings",
            )
        if len({store.settings.namespace for store in stores}) < len(stores):
            raise InvalidSettings("two of these stores have the same namespace", remedy="give one registry to each of them")
        if min(scan_max_age_ms, scan_wait_ms) < 0:
            raise InvalidSettings("scan_max_age_ms or scan_wait_ms is negative", remedy="give milliseconds, or 0")
        self._watches = [Watch(store, scan_max_age_ms, scan_wait_ms) for store in stores]

    def describe(self) -> Iterable[Metric]:
        """The families without samples: what the registry asks for instead of a first collect."""
        return families([])

    def collect(self) -> Iterable[Metric]:
        """The families as of now. Raises nothing because of Redis; the stores are looked at side by side."""
        if len(self._watches) == 1:
            return families([self._watches[0].look()])
        with ThreadPoolExecutor(len(self._watches)) as threads:
            return families(list(threads.map(Watch.look, self._watches)))


class Watch:
    """Looks at one store, and keeps its last key scan. With None for `scan_wait_ms` it waits for every scan to end."""

    def __init__(self, store: SessionStore, scan_max_age_ms: int, scan_wait_ms: int | None) -> None:
        self._store = store
        self._scan_max_age_s = scan_max_age_ms / 1000
        self._scan_wait_s = None if scan_wait_ms is None else scan_wait_ms / 1000
        # One a process: a forked child may have inherited its parent's as somebody held it.
        self._locks: dict[int, threading.Lock] = {}
        self._scan: threading.Thread | None = None
        self._scan_failure: SessionStoreError | None = None
        self._report: tuple[Report, float] | None = None
        self._trouble: dict[str, str | None] = {}

    def look(self) -> Look:
        """Read the counters, and scan if the last scan is too old. With Redis away it returns what it has."""
        counters = None
        try:
            counters = self._store.counters()
        except SessionStoreError as error:
            failure: SessionStoreError | None = error
        else:
            scan = self._scan_if_old()
            if scan is not None:
                scan.join(self._scan_wait_s)
            failure = self._scan_failure
        self._tell("counters", failure if counters is None else None)
        report, scanned_s = self._report or (None, 0.0)
        return Look(
            namespace=self._store.settings.namespace, counters=counters, report=report, scanned_s=scanned_s, error=failure
        )

    @property
    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _scan_if_old(self) -> threading.Thread | None:
        """The thread of a scan that is under way, or was begun here; None if the last one will do."""
        with self._lock:
            # After a fork the parent's is not alive here.
            if self._scan is None or not self._scan.is_alive():
                if self._report is not None and time.monotonic() - self._report[1] < self._scan_max_age_s:
                    return None
                # A daemon: what a scan would have told holds up nobody's way out.
                self._scan = threading.Thread(target=self._scan_now, name="redis-sessions scan", daemon=True)
                self._scan.start()
            return self._scan

    def _scan_now(self) -> None:
        failure = None
        try:
            self._report = (self._store.report(), time.monotonic())
        except SessionStoreError as error:
            failure = error
        self._scan_failure = failure
        self._tell("key scan", failure)

    def _tell(self, what: str, failure: SessionStoreError | None) -> None:
        """Log a trouble when it begins, changes or ends, not at every scrape."""
        now = None if failure is None else str(failure)
        with self._lock:
            before, self._trouble[what] = self._trouble.get(what), now
        if now is not None and now != before:
            log.warning("metrics of namespace %s: no %s: %s", self._store.settings.namespace, what, now)
        elif now is None and before is not None:
            log.warning("metrics of namespace %s: the %s can be had again", self._store.settings.namespace, what)


class Once:
    """A collector of a single look, taken when it is made, which waited for its scan as long as that took.

    Attributes:
        error: why something is missing from it, None if nothing is.
    """

    def __init__(self, store: SessionStore) -> None:
        self._look = Watch(store, 0, None).look()
        self.error = self._look.error

    def collect(self) -> Iterable[Metric]:
        return families([self._look])

    def text(self) -> str:
        """The samples in Prometheus' text format."""
        return generate_latest(self).decode()


def families(looks: Iterable[Look]) -> Iterator[Metric]:
    """What was seen, as families of samples, with what is not known left out."""
    looks = list(looks)
    for counter, (name, text) in _COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=[_LABEL])
        for look in looks:
            if look.counters is not None:
                family.add_metric([look.namespace], look.counters[counter])
        yield family
    for name, text, value_of in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=[_LABEL])
        for look in looks:
            if (value := value_of(look)) is not None:
                gauge.add_metric([look.namespace], value)
        yield gauge
    # Its add_metric wants a sum, which the report doesn't have.
    idle = GaugeHistogramMetricFamily(
        IDLE, "How long the live sessions of the last key scan had been idle.", labels=[_LABEL]
    )
    for look in looks:
        if look.report is not None:
            buckets = look.report.idle_histogram
            bounds = [*(str(bucket.up_to_ms / 1000) for bucket in buckets), "+Inf"]
            counts = [*itertools.accumulate(bucket.count for bucket in buckets)]
            for bound, count in zip(bounds, [*counts, counts[-1]], strict=True):
                idle.samples.append(Sample(f"{IDLE}_bucket", {_LABEL: look.namespace, "le": bound}, count))
    yield idle
