"""Registering metrics: once or several times, and for several namespaces."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from redis_sessions import AsyncSessionStore, InvalidSettings, SessionStore, StoreSettings
from redis_sessions.metrics.collector import Collector, Snapshot
from tests import test_metrics
from tests.test_metrics import FAILURES, LIVE, UP, a_store, register, scrape

registry, server = test_metrics.registry, test_metrics.server


def test_invalid_arguments(valkey, namespace, registry):
    with a_store(valkey, namespace) as store:
        for stores in ((), (store, store), (AsyncSessionStore.from_url("redis://h"),), (valkey.raw,)):
            with pytest.raises(InvalidSettings):
                register(*stores, registry=registry)
        with pytest.raises(InvalidSettings):
            register(store, registry=registry, scan_max_age_ms=-1)
        with pytest.raises(InvalidSettings):
            register(store, registry=registry, scan_wait_ms=-1)
        collector = register(store, registry=registry)
        with pytest.raises(InvalidSettings, match="already"):
            register(store, registry=registry)
        registry.unregister(collector)
        register(store, registry=registry)
        assert scrape(registry)[UP] == 1


# Several namespaces


def by_namespace(registry, name):
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == name]
    values = {sample.labels["namespace"]: sample.value for sample in samples}
    assert len(values) == len(samples)
    return values


def test_registering_one_after_the_other(server, registry):
    """As by independent parts of a program."""
    with ExitStack() as stack:
        stores = [stack.enter_context(a_store(server, name)) for name in ("a", "b", "c")]
        for store, count in zip(stores, (1, 2, 3), strict=True):
            for number in range(count):
                store.set(f"k{number}", "ID-1")
            store.increment_resume_failures()
        collectors = {register(store, registry=registry) for store in stores[:2]}
        assert by_namespace(registry, LIVE) == {"a": 1, "b": 2}
        collectors.add(register(stores[2], registry=registry))
        assert by_namespace(registry, LIVE) == {"a": 1, "b": 2, "c": 3}
        assert by_namespace(registry, FAILURES) == dict.fromkeys("abc", 1)
        text = generate_latest(registry).decode()
        families = list(text_string_to_metric_families(text))
        for kind in ("HELP", "TYPE"):
            names = re.findall(f"^# {kind} (\\S+)", text, re.MULTILINE)
            assert len(names) == len(set(names)) == len(families)
        with pytest.raises(InvalidSettings, match="namespace b"):
            register(stores[1], registry=registry)
        with a_store(server, "b") as same, pytest.raises(InvalidSettings, match="namespace b"):
            register(same, registry=registry)
        assert by_namespace(registry, UP) == dict.fromkeys("abc", 1)
        [collector] = collectors
        registry.unregister(collector)
        assert scrape(registry) == {}
        register(stores[1], registry=registry)
        assert by_namespace(registry, UP) == {"b": 1}


def test_a_bad_store_among_good_ones_registers_none(server, registry):
    with a_store(server, "a") as store, a_store(server, "b") as other:
        register(store, registry=registry)
        for bad in ((other, store), (other, None)):
            with pytest.raises(InvalidSettings):
                register(*bad, registry=registry)
        assert by_namespace(registry, UP) == {"a": 1}


def test_names_that_another_collector_exports(server, registry):
    class Other:
        def describe(self):
            return [family for family in Collector(store).describe() if family.name == LIVE]

        def collect(self):
            return []

    with a_store(server) as store:
        registry.register(Other())
        with pytest.raises(InvalidSettings, match="already"):
            register(store, registry=registry)


def test_registering_in_many_threads_at_once(server, registry):
    with ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        first = stack.enter_context(a_store(server, "n0"))
        stores = [first, *(first.for_namespace(f"n{number}") for number in range(1, 8))]
        assert len(set(threads.map(lambda store: register(store, registry=registry), stores))) == 1
        assert by_namespace(registry, UP) == {f"n{number}": 1 for number in range(8)}


class Counted(SessionStore):
    """A store that counts how many scans run at once."""

    now, most, lock = 0, 0, threading.Lock()

    def report(self, progress=None, **options):
        with Counted.lock:
            Counted.now += 1
            Counted.most = max(Counted.most, Counted.now)
        try:
            return super().report(progress, **options)
        finally:
            with Counted.lock:
                Counted.now -= 1


def test_stores_of_one_client_scan_one_after_the_other(server, registry):
    with a_store(server, "n0", kind=Counted, scan_count=1) as first:
        for number in range(300):
            first.set(f"k{number}", "ID-1")
        stores = [first, *(first.for_namespace(f"n{number}") for number in range(1, 6))]
        assert {type(store) for store in stores} == {Counted}
        assert {store.client for store in stores} == {first.client}
        register(*stores, registry=registry)
        assert by_namespace(registry, LIVE) == {f"n{number}": 300 * (number == 0) for number in range(6)}
        assert Counted.most == 1
        with pytest.raises(InvalidSettings):
            first.for_namespace("not a namespace")


def test_a_snapshot_reports_errors_by_store(server):
    with a_store(server, "a") as store, SessionStore.from_url("unix:///nowhere/s", StoreSettings(namespace="b")) as away:
        once = Snapshot(store, away)
        assert f'{UP}{{namespace="a"}} 1.0' in once.text()
        assert f'{UP}{{namespace="b"}} 0.0' in once.text()
        assert ["/nowhere/s" in str(error) for error in once.errors] == [True]
