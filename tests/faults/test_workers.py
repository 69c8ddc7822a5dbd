"""Workers stopped or killed at each point of a turn: the next one gets its turn, and loses nothing to a late one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product

import pytest

from redis_sessions import Lease, SessionStore, StoreSettings, Turn
from redis_sessions.keys import COUNTERS, LEASE_GRACE_MS, Keys
from redis_sessions.settings import DAY_MS

SERVERS = ("valkey", "redis")
LEASE_MS = 1_500
POINTS = ("claimed", "run", "ran")
SUCCESSORS = ("nobody", "nobody, but the lease was broken", "runs on", "went without saving", "saved", "saved, then set")
SHORT_MS = DAY_MS // 2


class Worker:
    """A worker process that is given one order per line. `close` ends it in any state."""

    def __init__(self, url, settings):
        command = [sys.executable, "-m", "tests.faults.worker", url, settings.model_dump_json()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, key, *, gives, stop_at):
        """Let it begin a turn that gives this ID; what it says once it is at that point, `read` returns."""
        self._write(json.dumps({"key": key, "gives": gives, "stop_at": stop_at}))

    def read(self):
        return json.loads(self.process.stdout.readline())

    def stop(self):
        os.kill(self.process.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def wake(self):
        """Let it go on; returns how its turn ended."""
        self._write("")
        os.kill(self.process.pid, signal.SIGCONT)
        return self.read()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()

    def _write(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


class Scene:
    """One server, one namespace: a store, what stands in Redis, and workers."""

    def __init__(self, place, namespace, stack, lease_ms):
        self.settings = StoreSettings(namespace=namespace, lease_ms=lease_ms)
        self.raw, self.keys, self.url = place.raw, Keys(namespace), place.url
        self.store = stack.enter_context(SessionStore.from_url(place.url, self.settings))
        self.stack = stack
        stack.callback(self._clear)

    def worker(self):
        worker = Worker(self.url, self.settings)
        self.stack.callback(worker.close)
        return worker

    def counted(self):
        return [int(self.raw.get(self.keys.counter(name)) or 0) for name in COUNTERS]

    def _clear(self):
        for key in self.raw.scan_iter(f"{self.settings.namespace}:*"):
            self.raw.delete(key)


@pytest.fixture(params=SERVERS)
def scene(request, places, namespace):
    with ExitStack() as stack:
        yield lambda lease_ms: Scene(places.get(request.param), namespace, stack, lease_ms)


def test_after_a_kill_the_next_worker_waits_for_the_lease_and_no_longer(scene, ledger):
    tally, scene = ledger("worker killed with a lease"), scene(LEASE_MS)
    victims = {point: scene.worker() for point in POINTS}
    for point, victim in victims.items():
        scene.store.set(point, "R")
        victim.begin(point, gives="E", stop_at=point)
    for point, victim in victims.items():
        assert victim.read() == {"at": point, "asked": None if point == "claimed" else "R"}
        victim.kill()
    tally.injected += len(victims)

    def next_one(key):
        asked_at_s = time.monotonic()
        allowed_at_s = asked_at_s + (scene.raw.pttl(scene.keys.lease(key)) - LEASE_GRACE_MS) / 1000
        ran = []
        result = scene.store.resume(key, lambda asked: ran.append(time.monotonic()) or Turn(asked, None), wait_ms=30_000)
        return result, ran, asked_at_s, allowed_at_s

    with ThreadPoolExecutor(len(victims)) as pool:
        for result, ran, asked_at_s, allowed_at_s in pool.map(next_one, victims):
            assert (result.how, result.previous, result.saved) == ("resumed", "R", True)
            [ran_at_s] = ran
            tally.operations += 1
            tally.double_runs += ran_at_s < allowed_at_s - 0.005  # PTTL is rounded
            assert ran_at_s < asked_at_s + LEASE_MS / 1000 + 10  # far above what it takes: "not forever"
    tally.check()


def test_a_kill_after_the_save_loses_nothing(scene, ledger):
    tally, scene = ledger("worker killed after its save"), scene(LEASE_MS)
    worker = scene.worker()
    scene.store.set("a", "R")
    worker.begin("a", gives="E", stop_at="saved")
    assert worker.read() == {"at": "saved", "asked": "R"}
    worker.kill()
    result = scene.store.resume("a", lambda asked: Turn(asked, None))
    tally.injected, tally.operations = 1, 1
    tally.lost += result.previous != "E" or scene.counted() != [0, 2, 0, 0, 0]
    tally.check()


def test_a_worker_stopped_past_its_lease_takes_nothing_from_its_successor(scene, ledger):
    """At every point of the turn, for every fate of the successor, with the same ID and with another."""
    tally = ledger("worker stopped past its lease")
    scene = scene(60)  # renewed every 20 ms, so that on waking the renewal is due at once
    worker = scene.worker()
    for number, (point, successor, gives) in enumerate(product(POINTS, SUCCESSORS, ("R", "E"))):
        key = f"conversation {number}"
        scene.store.set(key, "R")
        worker.begin(key, gives=gives, stop_at=point)
        assert worker.read() == {"at": point, "asked": None if point == "claimed" else "R"}
        worker.stop()
        before = meanwhile(scene, key, successor, gives)
        end = worker.wake()
        tally.injected += 1
        tally.operations += 1
        after = stands(scene, key)
        if successor == "nobody":
            assert (end["saved"], end["reason"], end["log"]) == (True, None, [])
            tally.lost += after[0] != gives.encode() or after[1] <= SHORT_MS
        else:
            assert not end["saved"], (point, successor, gives)
            assert "another worker took the conversation over" in end["reason"]
            assert any("took the conversation over" in line for line in end["log"])
            assert after[1] <= SHORT_MS
            tally.lost += (after[0], after[2]) != (before[0], before[2])
            tally.reported += 1
    tally.check()


def meanwhile(scene, key, successor, gives):
    """The lease lapses or is broken, and a successor may come; returns what stands then, the ID with a shortened TTL."""
    if successor == "nobody, but the lease was broken":
        scene.raw.pexpire(scene.keys.lease(key), LEASE_GRACE_MS + 60_000)  # which may have lapsed on a busy machine
        assert scene.store.break_lease(key)
    else:
        scene.raw.pexpire(scene.keys.lease(key), LEASE_GRACE_MS - 1)
    if not successor.startswith("nobody"):
        lease = scene.store.acquire(key)
        assert isinstance(lease, Lease)
        # Its own lease is to hold until the end of the scene.
        scene.raw.pexpire(scene.keys.lease(key), LEASE_GRACE_MS + 60_000)
        if successor.startswith("saved"):
            assert scene.store.save(lease, gives)
        if successor == "saved, then set":
            scene.store.set(key, gives)
        if successor == "went without saving":
            scene.store.release(lease)
    scene.raw.pexpire(scene.keys.session_id(key), SHORT_MS)
    return stands(scene, key)


def stands(scene, key):
    redis_key = scene.keys.session_id(key)
    return scene.raw.get(redis_key), scene.raw.pttl(redis_key), scene.raw.get(scene.keys.lease(key))
