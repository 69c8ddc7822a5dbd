"""Every reply of every operation, spoiled by a proxy in every way: what was acknowledged is there, nothing is mixed up."""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import redis

from redis_sessions import AsyncSessionStore, SessionStore, SessionStoreError, StoreSettings
from redis_sessions.client import pool as pools
from tests.faults.case import add
from tests.faults.case_long import WHOLES
from tests.faults.case_short import STEPS, Acquire, Get, Increment, PeekIt, Set
from tests.faults.ledger import Tally
from tests.faults.proxy import Fault, Proxy, named
from tests.servers import find_redis_server, standalone
from tests.stores import Blocking

WORLDS = 10
COMMON = {"lease_ms": 600_000, "scan_count": 5, "batch_size": 4, "max_turns": 1_000}
# Where a fault makes the client wait, it is not to wait for long; elsewhere a machine that stalls is not to add timeouts.
HASTY = {"socket_timeout_ms": 150, "connect_timeout_ms": 500, "deadline_ms": 5_000}
# Where nothing gets through, an operation takes its whole deadline.
DOOMED = {"socket_timeout_ms": 150, "connect_timeout_ms": 500, "deadline_ms": 400}
PATIENT = {"socket_timeout_ms": 5_000, "connect_timeout_ms": 5_000, "deadline_ms": 15_000}
STANDING = 16
SPOILING = [fault for fault in Fault if fault is not Fault.REPLY_IN_BYTES]
OPERATION_BOUND_S = 30


class World:
    """A server, a proxy before it, a store behind that, and conversations that others read all the time on the same pool."""

    def __init__(self, flavor, loop, stack, directory):
        self.directory = directory
        self._common = {"namespace": f"test-{uuid.uuid4().hex}", **COMMON}
        # One of each kind: the proxy sees both flavors and both servers.
        server = stack.enter_context(standalone(find_redis_server() if flavor == "async" else None))
        self.raw = stack.enter_context(redis.Redis.from_url(server.url))
        self.direct = stack.enter_context(SessionStore.from_url(server.url, StoreSettings(**self._common, **PATIENT)))
        self.proxy = stack.enter_context(Proxy(server.port, loop, late_s=HASTY["socket_timeout_ms"] / 1000 * 1.5))
        self.flavor, self._loop = flavor, loop
        self.hasty, self.doomed, self.patient = map(self.new_store, (HASTY, DOOMED, PATIENT))
        for store in (self.hasty, self.doomed, self.patient):
            stack.callback(store.close)
        self.store = self.patient
        self.standing = {f"standing-{n}": f"STANDING-{n}" for n in range(STANDING)}
        for key, session_id in self.standing.items():
            self.direct.set(key, session_id)
        self._numbers = itertools.count()

    def new_store(self, times):
        """A store behind the proxy."""
        settings = StoreSettings(**self._common, **times)
        if self.flavor == "sync":
            return SessionStore.from_url(self.proxy.url, settings)
        return Blocking(AsyncSessionStore.from_url(self.proxy.url, settings), self._loop)

    def settle(self):
        """Return when the server has done all that it was sent, also what the client has given up meanwhile."""
        self.proxy.settle()
        self.raw.ping()
        self.raw.ping()  # the first may have been read together with what it is to come after

    def case(self, kind):
        """A new case, ready; the next command connects, and the scripts are not loaded."""
        case = kind(self, next(self._numbers))
        case.prepare()
        self.raw.script_flush()
        dropped = self.store.client.connection_pool.disconnect(inuse_connections=False)
        if self.flavor == "async":
            self._loop.run(dropped)
        return case

    def read_back(self, tally, harms, times=1):
        """Read standing conversations; each must hold its own ID."""
        for key in random.choices(list(self.standing), k=times):
            tally.operations += 1
            try:
                found = self.store.get(key)
            except SessionStoreError:
                tally.refused += 1
                continue
            except Exception as error:  # noqa: BLE001 - that none comes is what is tested
                tally.untyped += 1
                harms.append(f"get {key}: {error!r}")
                continue
            if found != self.standing[key]:
                tally.wrong += 1
                harms.append(f"{key} holds {found}")


def of_case(command):
    return not any(b"standing-" in word for word in command)


def of_case_connected(command):
    return of_case(command) and command[0] != b"HELLO"


def spoil(world, kind, fault, tally, harms, *, every, times=1, match=of_case):
    """Spoil the replies of one operation, one after the other, while others read. How many of the calls were answered."""
    over = threading.Event()

    def read():
        while not over.wait(0.05):
            world.read_back(others, harms)

    others = Tally(fault.row)
    reader = threading.Thread(target=read)
    reader.start()
    answers = 0
    try:
        for position in positions(world, kind, fault, harms, match, every=every):
            case = world.case(kind)
            order = world.proxy.inject(fault, position, match, times=times)
            answered = call(world, case, tally, harms)
            world.proxy.calm()
            if order.fired.is_set():
                tally.injected += 1
                answers += answered
            world.read_back(tally, harms, 2)
            case.clean()
    finally:
        over.set()
        reader.join()
    add(tally, others)
    return answers


def positions(world, kind, fault, harms, match, *, every):
    """Which replies to spoil: each, or a choice.

    Of a run of the same command, as of a scan's pages, the choice is the first, a middle, the last; and of all these every
    second, which the other flavor makes up for.
    """
    case = world.case(kind)
    world.proxy.commands.clear()
    call(world, case, Tally(fault.row), harms)
    commands = [command for command in list(world.proxy.commands) if match(command)]
    case.clean()
    if every:
        return range(len(commands))
    found, start = [], 0
    for _, run in itertools.groupby(command[0] for command in commands):
        size = len(list(run))
        found += sorted({start, start + size // 2, start + size - 1})
        start += size
    return found[(list(Fault).index(fault) + (world.flavor == "sync")) % 2 :: 2]


def call(world, case, tally, harms):
    """Whether the operation was answered; what it left behind is looked at either way."""
    tally.operations += 1
    reply = refusal = None
    began_s = time.monotonic()
    try:
        reply = case.act()
    except SessionStoreError as error:
        refusal = error
        tally.refused += 1
    except Exception as error:  # noqa: BLE001 - that none comes is what is tested
        tally.untyped += 1
        harms.append(f"{case.key}: {error!r}")
        return False
    took_s = time.monotonic() - began_s
    if took_s > OPERATION_BOUND_S:
        harms.append(f"{case.key} took {took_s} s")
    world.settle()
    if refusal is None:
        case.answered(reply)
    else:
        case.refused(refusal)
    for harm, what in case.harms:
        setattr(tally, harm, getattr(tally, harm) + 1)
        harms.append(what)
    return refusal is None


@pytest.fixture(scope="module", params=["sync", "async"])
def worlds(request, loop, tmp_path_factory):
    with ExitStack() as stack:
        worlds = queue.SimpleQueue()
        for _ in range(WORLDS):
            worlds.put(World(request.param, loop, stack, tmp_path_factory.mktemp("files")))
        yield worlds


def spoil_all(worlds, total, fault, *, store, **options):
    """Spoil every operation of one of the world's stores, chosen by name.

    Returns, of the operations that ride out one fault, how many calls were disturbed and how many of these were answered.
    """

    def one(kind):
        tally, harms = Tally(fault.row), []
        world = worlds.get()
        world.store = getattr(world, store)
        try:
            answers = spoil(world, kind, fault, tally, harms, **options)
        finally:
            worlds.put(world)
        return kind, tally, harms, answers

    with ThreadPoolExecutor(WORLDS) as pool:
        done = list(pool.map(one, [*WHOLES, *STEPS]))
    for _, tally, _, _ in done:
        add(total, tally)
    assert not [what for _, _, harms, _ in done for what in harms]
    total.check()
    ridden = [(tally.injected, answers) for kind, tally, _, answers in done if kind.rides_out]
    return tuple(map(sum, zip(*ridden, strict=True)))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("fault", Fault)
def test_every_operation(fault, worlds, ledger, every):
    calls, answers = spoil_all(worlds, ledger(fault.row), fault, store="hasty" if fault.hangs else "patient", every=every)
    # One fault is ridden out. Where timeouts are short, a machine that stalls may add others; without a second try, only
    # what the fault has hit after it was answered would be.
    assert answers >= calls * (0.5 if fault.hangs else 1)


@pytest.mark.parametrize(
    ("fault", "every"),
    [
        *((fault, False) for fault in (Fault.REPLY_DROPPED, Fault.REQUEST_LOST)),
        *(pytest.param(fault, True, marks=[pytest.mark.long, pytest.mark.timeout(1800)]) for fault in SPOILING),
    ],
)
def test_every_operation_with_every_try_spoiled(fault, worlds, ledger, every):
    """From some command on all are spoiled, so that sending again is of no use: what isn't known isn't claimed."""
    row = f"{fault.row}, again and again"
    options = {"every": every, "times": 1_000, "match": of_case_connected}
    calls, answers = spoil_all(worlds, ledger(row), fault, store="doomed", **options)
    assert calls > len([*WHOLES, *STEPS]) / 2
    assert answers <= 0.1 * calls


@pytest.mark.parametrize("fault", [Fault.REPLY_DROPPED, Fault.REPLY_LATE, Fault.REPLY_HALVED_OPEN, Fault.REQUEST_LOST])
def test_a_health_check(fault, worlds, ledger, monkeypatch):
    """A PING goes before each command of this store, as after a pause: its reply is nobody's, and INCR doesn't go twice."""
    monkeypatch.setattr(pools, "FRESH_S", -1)
    monkeypatch.setattr(pools, "PING_AFTER_S", -1)
    tally, harms, world = ledger("health check spoiled"), [], worlds.get()
    usual, world.store = world.store, world.new_store(HASTY if fault.hangs else PATIENT)
    try:
        for kind in (Get, PeekIt, Set, Acquire, Increment):
            world.read_back(tally, harms)  # so that it is connected
            case = kind(world, 0)
            case.prepare()
            order = world.proxy.inject(fault, 0, named("PING"))
            call(world, case, tally, harms)
            assert order.fired.wait(OPERATION_BOUND_S)
            tally.injected += 1
            world.read_back(tally, harms, 2)
            case.clean()
    finally:
        world.proxy.calm()
        world.store.close()
        world.store = usual
        worlds.put(world)
    assert not harms
    tally.check()
