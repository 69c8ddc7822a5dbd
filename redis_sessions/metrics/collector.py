"""The collector: what a scrape shows of one or more stores."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from redis_sessions.client.execute import side_by_side
from redis_sessions.errors import InvalidSettings, MissingExtra
from redis_sessions.keys import FRESH_STARTS, RESUME_FAILURES, RESUMES
from redis_sessions.metrics.watch import Look, Turns, Watch
from redis_sessions.operations.report import Report
from redis_sessions.store import SessionStore

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeHistogramMetricFamily, GaugeMetricFamily
    from prometheus_client.samples import Sample
except ImportError:
    raise MissingExtra("metrics need prometheus_client", remedy="pip install 'redis-sessions[prometheus]'") from None

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


# What was registered where, for as long as anybody has it: a registry asks for the names of a family once.
_registered: weakref.WeakKeyDictionary[CollectorRegistry, weakref.ref[Collector]] = weakref.WeakKeyDictionary()
_registering = Turns()


def register(
    *stores: SessionStore,
    registry: CollectorRegistry = REGISTRY,
    scan_max_age_ms: int = SCAN_MAX_AGE_MS,
    scan_wait_ms: int = SCAN_WAIT_MS,
) -> Collector:
    """Export the metrics of one or more stores, each with its namespace as label.

    Further stores of the same registry, registered later, join those before: the collector that is returned is theirs as
    well. `registry.unregister` takes all of them back.

    Args:
        stores: a namespace each.
        registry: prometheus_client's default one unless given.
        scan_max_age_ms: how old the key scan behind the gauges may get before a scrape has the keys scanned anew.
        scan_wait_ms: how long a scrape waits for a scan that is under way, before it shows the last one.

    Raises InvalidSettings, also for a registry that exports these metrics already.
    """
    collector = Collector(*stores, scan_max_age_ms=scan_max_age_ms, scan_wait_ms=scan_wait_ms)
    with _registering.mine():
        try:
            registry.register(collector)
        except ValueError:
            before = _registered.get(registry, lambda: None)()
            if before is None:
                raise InvalidSettings(
                    "this registry exports these metrics already", remedy="unregister what exports them, or take another"
                ) from None
            before.add(*stores, scan_max_age_ms=scan_max_age_ms, scan_wait_ms=scan_wait_ms)
            return before
        _registered[registry] = weakref.ref(collector)
    return collector


class Collector:
    """A collector for prometheus_client, on any registry, or on many: what it knows of its stores is its own.

    Where a program makes a registry for each scrape, as under PROMETHEUS_MULTIPROC_DIR, let it make one Collector, and
    register that. It takes what `register` does. Raises InvalidSettings likewise.
    """

    def __init__(
        self, *stores: SessionStore, scan_max_age_ms: int = SCAN_MAX_AGE_MS, scan_wait_ms: int = SCAN_WAIT_MS
    ) -> None:
        self._watches: tuple[Watch, ...] = ()
        self._turns: dict[Any, Turns] = {}
        self.add(*stores, scan_max_age_ms=scan_max_age_ms, scan_wait_ms=scan_wait_ms)

    def add(self, *stores: SessionStore, scan_max_age_ms: int = SCAN_MAX_AGE_MS, scan_wait_ms: int = SCAN_WAIT_MS) -> None:
        """Export further stores. Raises InvalidSettings, and then exports none of them."""
        if not stores or not all(isinstance(store, SessionStore) for store in stores):
            raise InvalidSettings(
                "metrics are those of a SessionStore",
                remedy="for an AsyncSessionStore make one of the same URL and settings",
            )
        namespaces = [watch.namespace for watch in self._watches] + [store.settings.namespace for store in stores]
        for namespace in namespaces:
            if namespaces.count(namespace) > 1:
                raise InvalidSettings(
                    f"namespace {namespace} is exported here already", remedy="give one registry to each of the two stores"
                )
        if min(scan_max_age_ms, scan_wait_ms) < 0:
            raise InvalidSettings("scan_max_age_ms or scan_wait_ms is negative", remedy="give milliseconds, or 0")
        self._watches += tuple(_watches(stores, self._turns, scan_max_age_ms, scan_wait_ms))

    def describe(self) -> Iterable[Metric]:
        """The families without samples: what the registry asks for instead of a first collect."""
        return families([])

    def collect(self) -> Iterable[Metric]:
        """The families as of now. Raises nothing because of Redis; the stores are looked at side by side."""
        return families(side_by_side([watch.look for watch in self._watches]))

    def close(self) -> None:
        """End the scans that are under way, for who is about to close the stores; what was seen stays."""
        for watch in self._watches:
            watch.close()


def _watches(
    stores: Iterable[SessionStore], turns: dict[Any, Turns], scan_max_age_ms: int, scan_wait_ms: int | None
) -> Iterator[Watch]:
    """A watch for each store; those of one client scan in turn. `turns` are by client, and are added to."""
    for store in stores:
        yield Watch(store, scan_max_age_ms, scan_wait_ms, turns.setdefault(id(store.client), Turns()))


class Once:
    """A collector of a single look at each store, taken when it is made, which waited for the scans as long as they took.

    Attributes:
        errors: why something is missing from it.
    """

    def __init__(self, *stores: SessionStore) -> None:
        self._looks: Sequence[Look] = side_by_side([watch.look for watch in _watches(stores, {}, 0, None)])
        self.errors = [look.error for look in self._looks if look.error is not None]

    def collect(self) -> Iterable[Metric]:
        return families(self._looks)

    def text(self) -> str:
        """The samples in Prometheus' text format."""
        return generate_latest(self).decode()


def families(looks: Iterable[Look]) -> Iterator[Metric]:
    """What was seen, as families of samples, with what is not known left out."""
    looks = list(looks)
    for counter, (name, text) in _COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=[_LABEL])
        for look in looks:
            if look.counters is not None and (count := look.counters[counter]) is not None:
                family.add_metric([look.namespace], count)
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
