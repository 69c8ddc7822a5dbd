"""Metrics in processes that fork, that use the multiprocess mode, and that end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest
from prometheus_client import CollectorRegistry

from redis_sessions import SessionStore
from redis_sessions.metrics import Collector
from tests import test_metrics
from tests.forks import FORKS, alone, harm_of, in_child
from tests.servers import wait_until
from tests.test_metrics import AGE, FAILURES, LIVE, UP, Slow, a_store, calls, register, scrape

registry, server = test_metrics.registry, test_metrics.server


def python(program, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_only_metrics_need_prometheus_client():
    program = """
import sys
sys.modules["prometheus_client"] = None
import redis_sessions.cli.app
try:
    import redis_sessions.metrics
except redis_sessions.SessionStoreError as error:
    print(type(error).__name__, error.remedy)
"""
    assert python(program) == "MissingExtra pip install 'redis-sessions[prometheus]'\n"


def test_a_fork_while_the_parent_scans(server):
    """The child can scrape, although it inherits a held lock and a scan that runs in the parent."""
    program = """
import os, signal, sys, threading, warnings
from prometheus_client import generate_latest
from redis_sessions import SessionStore
from redis_sessions.metrics import register

class Held(SessionStore):
    def report(self, progress=None, **options):
        if os.getpid() == parent:
            began.set()
            go.wait()
        return super().report(progress, **options)

def live():
    return b'redis_sessions_live_sessions{namespace="sessions"} 1.0' in generate_latest()

warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
parent, began, go = os.getpid(), threading.Event(), threading.Event()
store = Held.from_url(sys.argv[1])
store.set("a", "ID-1")
collector = register(store, scan_wait_ms=60_000)
scrape = threading.Thread(target=generate_latest)
scrape.start()
began.wait()
with collector._monitors[0]._lock:
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # one that hangs must not outlive the test
        os._exit(int(not live()))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go.set()
scrape.join()
print(live())
"""
    assert python(program, server.url) == "0\nTrue\n"


@pytest.mark.parametrize("fork", FORKS)
@alone
def test_a_child_waits_for_no_scan_of_its_parents(server, registry, fork):
    """After a fork without hooks its thread seems to be alive."""

    class Scan(threading.Thread):
        def is_alive(self):
            return True

        def join(self, timeout=None):
            raise AssertionError

    with a_store(server) as store:
        store.set("a", "ID-1")
        collector = register(store, registry=registry, scan_wait_ms=60_000)
        collector._monitors[0]._scan = Scan()

        def child():
            harm = scrape(registry).get(LIVE) != 1
            collector._monitors[0].close()
            return harm

        assert harm_of(in_child(child, FORKS[fork])) == 0
        collector._monitors[0]._scan = None


def test_multiprocess_mode(server, tmp_path):
    program = """
import sys
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from redis_sessions import SessionStore
from redis_sessions.metrics import register

Counter("of_the_program", "Its own.").inc()
registry = CollectorRegistry()
MultiProcessCollector(registry)
with SessionStore.from_url(sys.argv[1]) as store:
    store.increment_resume_failures()
    register(store, registry=registry)
    print(generate_latest(registry).decode())
"""
    shown = python(program, server.url, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert "of_the_program_total 1.0" in shown
    assert re.findall(rf"^{FAILURES}\{{.*", shown, re.MULTILINE) == [f'{FAILURES}{{namespace="sessions"}} 1.0']


def test_a_registry_made_for_each_scrape(server, monkeypatch):
    """As in prometheus_client's examples for the multiprocess mode: the collector keeps its scan."""
    monkeypatch.setattr("redis_sessions.metrics.collector.LEASES_MAX_AGE_S", 60)
    with a_store(server) as store:
        store.set("a", "ID-1")
        collector = Collector(store, scan_wait_ms=60_000)
        for _ in range(3):
            registry = CollectorRegistry()
            registry.register(collector)
            assert scrape(registry)[LIVE] == 1
        assert calls(store, "scan") == 2  # of the session keys and of the leases


# The end


def test_close_ends_a_scan_and_logs_nothing(server, registry, caplog, monkeypatch):
    monkeypatch.setattr("redis_sessions.metrics.collector.CLOSE_WAIT_S", 20)
    began = threading.Event()

    class Endless(SessionStore):
        def report(self, progress=None, **options):
            while True:
                super().report(progress, **options)
                began.set()

    with a_store(server, kind=Endless) as store:
        collector = register(store, registry=registry, scan_wait_ms=0)
        assert AGE not in scrape(registry)
        began.wait()
        scan = collector._monitors[0]._scan
        collector.close()
        assert not scan.is_alive()
        store.client.connection_pool.connection_kwargs["port"] = 1
        store.client.connection_pool.disconnect()
        assert scrape(registry)[UP] == 0
    assert caplog.records == []


def test_a_scan_that_fails_on_a_closed_client_logs_nothing(server, registry, caplog, capfd):
    class Failing(Slow):
        def report(self, progress=None, **options):
            super().report(**options)
            raise TypeError

    with a_store(server, kind=Failing) as store:
        collector = register(store, registry=registry, scan_wait_ms=0)
        scrape(registry)
        wait_until(lambda: store.began, "it scans")
        closing = threading.Thread(target=collector.close)
        closing.start()
        wait_until(lambda: collector._monitors[0]._closed, "it is being closed")
        store.go.set()
        closing.join()
        store.began[0].join()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_process_that_ends_while_it_scans_a_cluster(places):
    """Daemon threads are ended last, and print nothing to stderr until then."""
    program = """
import atexit, sys, threading
from redis_sessions import SessionStore
from redis_sessions.metrics import Collector

class Endless(SessionStore):
    def report(self, progress=None, **options):
        while True:
            super().report(progress, **options)
            scanned.set()

def once_more():  # when the standard library's pools are shut down
    scanned.clear()
    while scan.is_alive() and not scanned.wait(0.05):
        pass
    print("still scans" if scan.is_alive() else "scans no more")

atexit.register(once_more)
scanned = threading.Event()
collector = Collector(Endless.from_url(sys.argv[1]), scan_wait_ms=0)
list(collector.collect())
scan = collector._monitors[0]._scan
scanned.wait()
"""
    assert python(program, places.get("cluster").url) == "still scans\n"
