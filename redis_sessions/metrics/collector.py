"""The collector: what a scrape shows of one or more stores."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar

from redis_sessions.client.execute import side_by_side
from redis_sessions.errors import CorruptValue, InvalidSettings, MissingExtra, SessionStoreError
from redis_sessions.forks import forgetful, process_id
from redis_sessions.keys import FRESH_STARTS, GAVE_UP, RESUME_FAILURES, RESUMES, ROTATIONS
from redis_sessions.operations.records import Bucket
from redis_sessions.operations.report import Report
from redis_sessions.operations.scan import LeaseRow
from redis_sessions.store import SessionStore

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeHistogramMetricFamily, GaugeMetricFamily
    from prometheus_client.samples import Sample
except ImportError:
    raise MissingExtra("metrics need prometheus_client", remedy="pip install 'redis-sessions[prometheus]'") from None

log = logging.getLogger("redis_sessions")
T = TypeVar("T")

SCAN_MAX_AGE_MS: Final = 60_000
SCAN_WAIT_MS: Final = 1_000
# Who runs what changes quickly. Where a list of leases takes long, it takes a twentieth of the time.
LEASES_MAX_AGE_S: Final = 5.0
LEASES_REST: Final = 20
# How long closing waits for the current page of a running scan.
CLOSE_WAIT_S: Final = 1.0
UP: Final = "redis_sessions_up"
LIVE: Final = "redis_sessions_live_sessions"
_LABEL: Final = "namespace"

# Counter, name of the metric, and help text.
_COUNTERS: Final = (
    (RESUME_FAILURES, "claude_session_resume_failures_total", "Resumes that the agents refused."),
    (RESUME_FAILURES, "redis_sessions_resume_failures_total", "Same as claude_session_resume_failures_total."),
    (RESUMES, "redis_sessions_resumes_total", "Turns that resumed a session."),
    (FRESH_STARTS, "redis_sessions_fresh_starts_total", "Turns that started a session."),
    (ROTATIONS, "redis_sessions_rotations_total", "Turns that started a session because the old one had reached a limit."),
    (GAVE_UP, "redis_sessions_gave_up_total", "Turns that started a session because of failures to resume the old one."),
)


def _next_expiry_s(report: Report, age_s: float) -> float | None:
    return None if report.soonest_expiry_ms is None else max(0.0, report.soonest_expiry_ms / 1000 - age_s)


# Name, help text, and value by the last report and its age in seconds.
_Gauge = tuple[str, str, Callable[[Report, float], float | None]]
_GAUGES: Final[tuple[_Gauge, ...]] = (
    ("live_sessions", "Keys that hold a session ID.", lambda report, _: report.live),
    ("keys_without_ttl", "Session keys that will never expire.", lambda report, _: report.no_ttl),
    ("keys_over_max_age", "Session keys with more than the exporter's max age left.", lambda report, _: report.over_max_age),
    ("keys_invalid", "Session keys that do not hold a session ID.", lambda report, _: report.invalid),
    ("next_expiry_seconds", "Time until the next session known to the key scan expires.", _next_expiry_s),
    ("scan_age_seconds", "Time since the last key scan that succeeded.", lambda _, age_s: age_s),
    ("scan_duration_seconds", "How long the last key scan took.", lambda report, _: report.scan_ms / 1000),
    ("scan_approximate", "Whether the last key scan may have missed keys.", lambda report, _: report.approximate),
)


class LastScan(NamedTuple, Generic[T]):
    """The result of a scan that succeeded."""

    found: T
    ended_s: float  # on the monotonic clock
    took_s: float

    @property
    def age_s(self) -> float:
        """Seconds since it ended."""
        return time.monotonic() - self.ended_s


class Reading(NamedTuple):
    """What is known of a store at one time."""

    namespace: str
    counters: dict[str, int | None] | None  # None if they could not be read
    report: LastScan[Report] | None  # of the last key scan that succeeded, None before the first
    leases: LastScan[tuple[LeaseRow, ...]] | None  # the same of the leases that are held
    error: SessionStoreError | None  # why the counters, or else a newer scan, could not be had


class ForkSafeLock:
    """One lock per process; a child never inherits a held one."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(process_id(), threading.Lock()).acquire()

    def __exit__(self, *_: object) -> None:
        self._locks[process_id()].release()


class _Closed(Exception):
    """Ends a scan whose result nobody needs any more."""


@dataclass(eq=False)
class RepeatedScan(Generic[T]):
    """A scan that is repeated now and then: how, its last result, and why there is no newer one."""

    what: str  # in messages
    run: Callable[[], T]
    last: LastScan[T] | None = None
    error: SessionStoreError | None = None

    def is_older_than(self, max_age_s: float) -> bool:
        """Whether the last result has reached that age, or there is none."""
        return self.last is None or self.last.age_s >= max_age_s


@dataclass(eq=False)
class StoreMonitor:
    """Reads one store, and keeps the results of its last scans."""

    store: SessionStore
    scan_max_age_ms: int
    scan_wait_ms: int | None  # None: until the scan ends
    # Scans that share it run one after the other: side by side, each page would wait for all others, and workers with it.
    scanning: ForkSafeLock
    _lock: ForkSafeLock = field(default_factory=ForkSafeLock)
    _closed: bool = False
    _scan: threading.Thread | None = None
    _logged: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._report = RepeatedScan("key scan", lambda: self.store.report(self._stop_if_closed, records=True))
        self._leases = RepeatedScan("list of leases", self._list_leases)
        forgetful.add(self)

    def forget(self) -> None:
        """Forget the parent's thread, which in a child of a fork without hooks seems to be alive for ever."""
        self._scan = None

    def read(self) -> Reading:
        """Read the counters, and scan if the last scan is too old. If Redis is away, return what is known."""
        process_id()
        counters, namespace = None, self.store.settings.namespace
        error: SessionStoreError | None = None
        try:
            counters = self.store.counters()
        except SessionStoreError as failure:
            error = failure
        else:
            if scan := self._scan_if_old():
                scan.join(None if self.scan_wait_ms is None else self.scan_wait_ms / 1000)
            if None in counters.values():
                what = f"a counter of namespace {namespace} is not an integer"
                error = CorruptValue(what, remedy="redis-sessions doctor shows how to fix it")
        self._log("counters", error)
        error = error or self._report.error or self._leases.error
        return Reading(namespace, counters, self._report.last, self._leases.last, error)

    def close(self) -> None:
        """Let a running scan end with its current page, log no more problems, and start no further scan."""
        process_id()
        self._closed = True
        with self._lock:
            scan = self._scan
        if scan is not None:
            scan.join(CLOSE_WAIT_S)

    def _scan_if_old(self) -> threading.Thread | None:
        """The thread of the scans, already running or started here; None if the last ones are new enough."""
        with self._lock:
            if self._scan is None or not self._scan.is_alive():
                if self._closed or not self._due():
                    return None
                # A daemon, so that a scan does not keep the process from ending.
                self._scan = threading.Thread(target=self._scan_now, name="redis-sessions scan", daemon=True)
                self._scan.start()
            return self._scan

    def _due(self) -> list[RepeatedScan[Any]]:
        """The scans to repeat. That of the leases is repeated more often, but not all the time where it takes long."""
        max_age_s, took_s = self.scan_max_age_ms / 1000, self._leases.last.took_s if self._leases.last else 0.0
        leases_max_age_s = min(max_age_s, max(LEASES_MAX_AGE_S, took_s * LEASES_REST))
        due = ((self._leases, leases_max_age_s), (self._report, max_age_s))
        return [scan for scan, max_age_s in due if scan.is_older_than(max_age_s)]

    def _scan_now(self) -> None:
        for scan in self._due():
            error = None
            try:
                with self.scanning:
                    self._stop_if_closed()
                    began_s = time.monotonic()
                    found = scan.run()
                    scan.last = LastScan(found, time.monotonic(), time.monotonic() - began_s)
            except SessionStoreError as failure:
                error = failure
            except Exception:
                # A client that is closed while it is being used may raise anything.
                if not self._closed:
                    raise
            scan.error = error
            self._log(scan.what, error)

    def _list_leases(self) -> tuple[LeaseRow, ...]:
        rows = {}
        for row in self.store.leases():
            self._stop_if_closed()
            rows[row.key] = row
        return tuple(rows.values())

    def _stop_if_closed(self, *_: int) -> None:
        if self._closed:
            raise _Closed

    def _log(self, what: str, error: SessionStoreError | None) -> None:
        """Log a problem when it begins, changes or ends, not at every scrape."""
        now = None if error is None else str(error)
        with self._lock:
            before, self._logged[what] = self._logged.get(what), now
        if not self._closed and now != before:
            state = f"the {what} can be read again" if now is None else f"no {what}: {now}"
            log.warning("metrics of namespace %s: %s", self.store.settings.namespace, state)


# What was registered where, for as long as anything uses it: a registry asks for the names of a family once.
_registered: weakref.WeakKeyDictionary[CollectorRegistry, weakref.ref[Collector]] = weakref.WeakKeyDictionary()
_registering = ForkSafeLock()


def register(
    *stores: SessionStore,
    registry: CollectorRegistry = REGISTRY,
    scan_max_age_ms: int = SCAN_MAX_AGE_MS,
    scan_wait_ms: int | None = SCAN_WAIT_MS,
) -> Collector:
    """Export the metrics of one or more stores, each with its namespace as label.

    Further stores that are registered later on the same registry join the earlier ones: the same collector is returned for
    all of them, and `registry.unregister` removes them all.

    Args:
        stores: each of its own namespace.
        registry: default: the default registry of prometheus_client.
        scan_max_age_ms: how old the key scan behind the gauges may get before a scrape starts a new one.
        scan_wait_ms: how long a scrape waits for a running scan before it shows the last one; None: until it ends.

    Raises InvalidSettings, also for a registry that exports these metrics already.
    """
    collector = Collector(*stores, scan_max_age_ms=scan_max_age_ms, scan_wait_ms=scan_wait_ms)
    with _registering:
        try:
            registry.register(collector)
        except ValueError:
            before = _registered.get(registry, lambda: None)()
            if before is None:
                remedy = "unregister their collector, or use another registry"
                raise InvalidSettings("this registry exports these metrics already", remedy=remedy) from None
            before.add(*stores, scan_max_age_ms=scan_max_age_ms, scan_wait_ms=scan_wait_ms)
            return before
        _registered[registry] = weakref.ref(collector)
    return collector


class Collector:
    """A collector for prometheus_client, for one registry or many: it keeps what it knows of its stores itself.

    A program that makes a registry for each scrape, as under PROMETHEUS_MULTIPROC_DIR, should make one Collector and
    register that. It takes what `register` does. Raises InvalidSettings in the same cases.
    """

    def __init__(
        self, *stores: SessionStore, scan_max_age_ms: int = SCAN_MAX_AGE_MS, scan_wait_ms: int | None = SCAN_WAIT_MS
    ) -> None:
        self._monitors: list[StoreMonitor] = []
        self._locks: dict[int, ForkSafeLock] = {}
        self.add(*stores, scan_max_age_ms=scan_max_age_ms, scan_wait_ms=scan_wait_ms)

    def add(
        self, *stores: SessionStore, scan_max_age_ms: int = SCAN_MAX_AGE_MS, scan_wait_ms: int | None = SCAN_WAIT_MS
    ) -> None:
        """Export further stores. Raises InvalidSettings, and then exports none of them."""
        if not stores or not all(isinstance(store, SessionStore) for store in stores):
            remedy = "for an AsyncSessionStore make one of the same URL and settings"
            raise InvalidSettings("metrics need a SessionStore", remedy=remedy)
        namespaces = [store.settings.namespace for store in (*(each.store for each in self._monitors), *stores)]
        for namespace in namespaces:
            if namespaces.count(namespace) > 1:
                remedy = "give each of the two stores its own registry"
                raise InvalidSettings(f"namespace {namespace} is exported here already", remedy=remedy)
        if min(scan_max_age_ms, scan_wait_ms or 0) < 0:
            raise InvalidSettings("scan_max_age_ms or scan_wait_ms is negative", remedy="give milliseconds, or 0")
        for store in stores:
            scanning = self._locks.setdefault(id(store.client), ForkSafeLock())
            self._monitors.append(StoreMonitor(store, scan_max_age_ms, scan_wait_ms, scanning))

    def read(self) -> list[Reading]:
        """Read the stores, side by side. Raises nothing because of Redis."""
        # This thread only waits, so that an interrupt leaves at once, not when the others have ended.
        calls: list[Callable[[], Any]] = [lambda: None, *(monitor.read for monitor in self._monitors)]
        return side_by_side(calls)[1:]

    def describe(self) -> Iterable[Metric]:
        """The families without samples: what the registry asks for instead of a first collect."""
        return families([])

    def collect(self) -> Iterable[Metric]:
        """The current families. Raises nothing because of Redis."""
        return families(self.read())

    def close(self) -> None:
        """End running scans, before the stores are closed; what was read stays."""
        for monitor in self._monitors:
            monitor.close()


class Snapshot:
    """A collector that reads each store once, when it is made, and waits for the scans as long as they take."""

    def __init__(self, *stores: SessionStore) -> None:
        with closing(Collector(*stores, scan_max_age_ms=0, scan_wait_ms=None)) as collector:
            self._readings = collector.read()
        # Why something is missing from it.
        self.errors = [reading.error for reading in self._readings if reading.error is not None]

    def collect(self) -> Iterable[Metric]:
        return families(self._readings)

    def text(self) -> str:
        """The samples in Prometheus' text format."""
        return generate_latest(self).decode()


def families(readings: Sequence[Reading]) -> Iterator[Metric]:
    """What was read, as families of samples; what is not known is left out."""
    reports = [(each.namespace, each.report.found, each.report.age_s) for each in readings if each.report]
    counted = [(each.namespace, each.counters) for each in readings if each.counters is not None]
    for counter, name, text in _COUNTERS:
        yield _family(CounterMetricFamily, name, text, ((namespace, counts[counter]) for namespace, counts in counted))
    up = ((each.namespace, each.counters is not None) for each in readings)
    yield _family(GaugeMetricFamily, UP, "Whether Redis returned the counters to this scrape.", up)
    for name, text, value_of in _GAUGES:
        values = ((namespace, value_of(report, age_s)) for namespace, report, age_s in reports)
        yield _family(GaugeMetricFamily, f"redis_sessions_{name}", text, values)
    leases = ((each.namespace, len(each.leases.found)) for each in readings if each.leases)
    yield _family(GaugeMetricFamily, "redis_sessions_leases_held", "Conversations that a worker runs now.", leases)
    known = [(namespace, report.records) for namespace, report, _ in reports if report.records]
    agents = GaugeMetricFamily(f"{LIVE}_by_agent", "Keys that hold a session ID, by agent.", labels=[_LABEL, "agent"])
    for namespace, records in known:
        for agent, number in records.agents.items():
            agents.add_metric([namespace, agent], number)
    yield agents
    idle = (
        (namespace, [(each.up_to_ms / 1000, each.count) for each in report.idle_histogram])
        for namespace, report, _ in reports
    )
    yield _histogram("idle_seconds", "How long the live sessions of the last key scan had been idle.", idle)
    turns = ((namespace, _pairs(records.turns)) for namespace, records in known)
    yield _histogram("turns", "How many turns the live sessions have had.", turns)
    tokens = ((namespace, _pairs(records.context_tokens)) for namespace, records in known)
    yield _histogram("context_tokens", "Size of the contexts of live sessions, where it is known.", tokens)


def _pairs(buckets: Iterable[Bucket]) -> list[tuple[float, int]]:
    return [(math.inf if each.up_to is None else each.up_to, each.count) for each in buckets]


def _histogram(name: str, text: str, values: Iterable[tuple[str, list[tuple[float, int]]]]) -> Metric:
    """A histogram of what there is now, from counts by upper bound in each namespace."""
    family = GaugeHistogramMetricFamily(f"redis_sessions_{name}", text, labels=[_LABEL])
    for namespace, counts in values:
        totals = [*itertools.accumulate(number for _, number in counts)]
        bounds = [bound for bound, _ in counts]
        if not math.isinf(bounds[-1]):
            bounds, totals = [*bounds, math.inf], [*totals, totals[-1]]
        for bound, total in zip(bounds, totals, strict=True):
            # Its add_metric needs a sum, which is not known.
            le = "+Inf" if math.isinf(bound) else str(float(bound))
            family.samples.append(Sample(f"{family.name}_bucket", {_LABEL: namespace, "le": le}, total))
    return family


def _family(kind: Any, name: str, text: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    family: Any = kind(name, text, labels=[_LABEL])
    for namespace, value in values:
        if value is not None:
            family.add_metric([namespace], value)
    return family  # type: ignore[no-any-return]
