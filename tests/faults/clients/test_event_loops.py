"""A store made once, used from several event loops: it works, or says what to do."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from redis_sessions import AsyncSessionStore
from tests.faults.clients.own_keys import aread


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:Unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning")
def test_one_after_the_other(place, settings, ledger):
    tally = ledger("used from a second event loop")
    store = AsyncSessionStore.from_url(place.url, settings)
    for n in range(10):
        tally.wrong += asyncio.run(aread(store, f"loop{n}", 3))
        tally.injected += 1
        tally.operations += 9
    del store
    gc.collect()  # what the closed loops left open, while its warnings are ignored
    tally.check()


def test_several_at_once(place, settings, ledger):
    tally = ledger("used from a second event loop")
    store = AsyncSessionStore.from_url(place.url, settings)

    async def work(n: int) -> int:
        try:
            return await aread(store, f"loop{n}", 30)
        finally:
            await store.aclose()

    with ThreadPoolExecutor(6) as pool:
        tally.wrong += sum(pool.map(lambda n: asyncio.run(work(n)), range(6)))
    tally.injected += 6
    tally.operations += 6 * 90
    tally.check()


def test_a_callers_client_works_or_raises_a_typed_error(valkey, clean, namespace, ledger):
    """In a process of its own, since redis-py leaves much open then."""
    tally = ledger("used from a second event loop")
    command = [sys.executable, "-W", "ignore", "-c", SECOND_LOOP, clean(valkey).url, namespace]
    outcomes = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    tally.injected = tally.operations = len(outcomes)
    tally.refused = len(outcomes) - outcomes.count("ID")
    tally.untyped = len(set(outcomes) - {"ID", "SessionStoreError", "StoreUnavailable"})
    tally.check()


SECOND_LOOP = """
import asyncio, sys
import redis.asyncio
from redis_sessions import AsyncSessionStore, StoreSettings

url, namespace = sys.argv[1:]
store = AsyncSessionStore(redis.asyncio.Redis.from_url(url), StoreSettings(namespace=namespace))
asyncio.run(store.set("a", "ID"))
for _ in range(5):
    try:
        print(asyncio.run(store.get("a")))
    except BaseException as error:
        print(type(error).__name__)
"""
