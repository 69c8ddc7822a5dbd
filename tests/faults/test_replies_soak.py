"""Many threads or tasks on one store, faults by chance: each key has one writer, who knows what its key may hold."""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from redis_sessions import AsyncSessionStore, Lease, SessionStore, SessionStoreError, StoreSettings, Turn
from redis_sessions.keys import Keys
from tests.faults.case import add
from tests.faults.ledger import Tally
from tests.faults.proxy import Fault, Proxy
from tests.servers import find_redis_server, standalone
from tests.stores import Blocking

WORKERS = 6
KEYS_EACH = 4
PROBABILITY = 0.05
FAULTS_AT_LEAST = 20


class Writer:
    """The only writer of its keys. `ids` has all that a key may hold: one, unless the outcome of a write is unknown."""

    def __init__(self, name, store, proxy, raw, namespace, seed):
        self.name, self.store, self.proxy, self.tally = name, store, proxy, Tally(name)
        self.raw, self.redis_keys = raw, Keys(namespace)
        self.dice = random.Random(seed)
        self.ids = {f"{name}-{n}": {None} for n in [*range(KEYS_EACH), "turns"]}
        # Claims that are held, or whose fate is unknown: the next one of that key repeats the token.
        self.tokens = {}
        self.turns = f"{name}-turns"
        self.counted, self.uncertain = [], 0
        self.harms = []
        self.serial = 0

    def step(self):
        """One random operation."""
        key = self.dice.choice(list(self.ids))
        reads, writes = [self.get, self.peek], [self.set, self.delete, self.turn, self.count]
        # `resume` names its claims itself, so one whose fate is unknown can't be repeated: it has a key to itself.
        action = self.dice.choice([*reads, self.resume] if key == self.turns else [*reads, *writes])
        self.tally.operations += 1
        try:
            action(key)
        except SessionStoreError:
            self.tally.refused += 1
            self.proxy.settle()  # what was given up may be on its way; after that it is done or lost
        except Exception as error:  # noqa: BLE001 - that none comes is what is tested
            self.tally.untyped += 1
            self.harms.append(f"{action.__name__} {key}: {error!r}")

    def fresh(self, key):
        self.serial += 1
        return f"{key}.{self.serial}"

    def get(self, key):
        self.saw(key, self.store.get(key))

    def peek(self, key):
        peek = self.store.peek(key)
        self.saw(key, peek and peek.session_id)

    def saw(self, key, found):
        """A reply: once it is known to be allowed, it is the only one."""
        if found not in self.ids[key]:
            # An ID of this key that it once held was lost; one that names another key strayed.
            own = found is None or found.rpartition(".")[0] == key
            self.harm("lost" if own else "wrong", f"{key} holds {found}, not one of {self.ids[key]}")
        self.ids[key] = {found}

    def harm(self, name, what):
        setattr(self.tally, name, getattr(self.tally, name) + 1)
        self.harms.append(what)

    def set(self, key):
        session_id = self.fresh(key)
        self.ids[key].add(session_id)
        self.store.set(key, session_id)
        self.ids[key] = {session_id}

    def delete(self, key):
        asked = self.dice.choice([None, *filter(None, self.ids[key])])
        before = set(self.ids[key])
        self.ids[key].add(None)
        self.store.delete(key, asked)
        self.ids[key] = {None} if asked is None else (before - {asked}) | ({None} if asked in before else set())

    def turn(self, key):
        """A lease is taken, renewed, and released in one of three ways; an uncertain claim is repeated with its token."""
        token = self.tokens.setdefault(key, f"{self.name}:1:{self.fresh(key)}")
        claim = self.store.acquire(key, token)
        if not isinstance(claim, Lease):
            self.harm("wrong", f"{key} is its writer's, yet {claim}")
            return
        self.saw(key, claim.session_id)
        if not self.store.renew(claim):
            self.harm("wrong", f"the lease of {key} is its writer's")
        how = self.dice.randrange(3)
        if how == 0:
            session_id = self.fresh(key)
            self.ids[key].add(session_id)
            if not self.store.save(claim, session_id):
                self.harm("lost", f"{session_id} was not saved")
            self.ids[key] = {session_id}
        elif how == 1:
            self.ids[key].add(None)
            if not self.store.reject(claim):
                self.harm("wrong", f"the lease of {key} is its writer's")
            self.ids[key] = {None}
            self.store.release(claim)
        else:
            self.store.release(claim)
        del self.tokens[key]

    def resume(self, key):
        """A whole turn, with a lease or without."""
        asked, session_id = [], self.fresh(key)

        def run(resumed):
            asked.append(resumed)
            if not resumed or self.dice.random() < 0.7:
                return Turn(session_id, key)
            self.uncertain += 1  # whether it was counted is unknown
            raise RuntimeError("No conversation found")

        before = set(self.ids[key])
        self.ids[key] |= {session_id, None}
        result = self.store.resume(key, run, lease=self.dice.random() < 0.7)
        if len(set(asked)) < len(asked):
            self.harm("double_runs", f"{key} ran {asked}")
        if result.value != key or (asked[0] not in before and "store unavailable" not in (result.reason or "")):
            self.harm("wrong", f"{key} resumed {asked}, not one of {before}, and gave {result.value}")
        if result.saved:
            self.ids[key] = {session_id}

    def count(self, _):
        self.uncertain += 1
        self.counted.append(self.store.increment_resume_failures())
        self.uncertain -= 1

    def at_the_end(self):
        """What Redis holds, seen past the proxy, with its whole time."""
        for key in self.ids:
            redis_key = self.redis_keys.session_id(key)
            found = self.raw.get(redis_key)
            self.saw(key, found and found.decode())
            if found and self.raw.pttl(redis_key) < 86_000_000:
                self.harm("lost", f"{key} has not its whole time")


@pytest.mark.parametrize("flavor", ["sync", "async"])
@pytest.mark.parametrize("seconds", [2, pytest.param(120, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_many_at_once_while_any_reply_may_be_spoiled(flavor, seconds, loop, ledger):
    tally, seed = ledger("any of these, by chance"), random.randrange(10**6)
    settings = StoreSettings(
        namespace=f"test-{uuid.uuid4().hex}",
        socket_timeout_ms=150,
        connect_timeout_ms=500,
        deadline_ms=2_000,
        lease_ms=1_000,
    )
    with (
        standalone(find_redis_server() if flavor == "async" else None) as server,
        redis.Redis.from_url(server.url) as raw,
        Proxy(server.port, loop, late_s=0.2) as proxy,
    ):
        if flavor == "sync":
            store = SessionStore.from_url(proxy.url, settings)
        else:
            store = Blocking(AsyncSessionStore.from_url(proxy.url, settings), loop)
        writers = [Writer(f"writer{n}", store, proxy, raw, settings.namespace, seed + n) for n in range(WORKERS)]
        over = threading.Event()

        def work(writer):
            while not over.is_set():
                writer.step()

        try:
            proxy.inject_by_chance(PROBABILITY, Fault, seed)
            with ThreadPoolExecutor(WORKERS) as pool:
                working = [pool.submit(work, writer) for writer in writers]
                end_s = time.monotonic() + seconds
                while time.monotonic() < end_s or sum(proxy.injected.values()) < FAULTS_AT_LEAST:
                    over.wait(0.05)
                over.set()
            for future in working:
                future.result()
        finally:
            store.close()
        proxy.settle()
        raw.ping()
        for writer in writers:
            writer.at_the_end()
        total = int(raw.get(Keys(settings.namespace).counter("resume_failures_total")) or 0)
    tally.injected = sum(proxy.injected.values())
    for writer in writers:
        add(tally, writer.tally)
    counted = [count for writer in writers for count in writer.counted]
    if len(set(counted)) < len(counted) or not len(counted) <= total <= len(counted) + sum(w.uncertain for w in writers):
        tally.lost += 1
    assert not [what for writer in writers for what in writer.harms], f"seed {seed}"
    tally.check()
