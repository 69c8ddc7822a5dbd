"""One dispatch, a look up and a save, in each place to keep session IDs.

`KINDS[kind](target)` is awaited in a worker and returns a function that takes a conversation's number. A killed worker loses
nothing in any of them. A power cut loses up to a second with the store's server, which flushes its append-only file every
second; nothing with SQLite's defaults; with the others, what the system had not written yet.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from redis_sessions.keys import Keys
from tests.benchmarks import bare

_ID: Final = next(bare.session_ids(3))
_SQL_READ: Final = "SELECT session_id FROM session WHERE key = ?"
_SQL_WRITE: Final = "INSERT OR REPLACE INTO session VALUES (?, ?, ?)"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _leased(url: str) -> Callable[[int], object]:
    """Our store with its lease: acquire, then save."""
    from redis_sessions import Lease, SessionStore

    store = SessionStore.from_url(url)

    def dispatch(number: int) -> None:
        lease = store.acquire(bare.conversation(number))
        # Another worker may have drawn the same conversation.
        if isinstance(lease, Lease):
            store.save(lease, _ID)

    dispatch(0)
    return dispatch


async def _ours(url: str) -> Callable[[int], object]:
    """Our store without a lease: get, then set."""
    from redis_sessions import SessionStore

    store = SessionStore.from_url(url)

    def dispatch(number: int) -> None:
        key = bare.conversation(number)
        store.get(key)
        store.set(key, _ID)

    dispatch(0)
    return dispatch


async def _redis_py(url: str) -> Callable[[int], object]:
    client = bare.client(url)

    def dispatch(number: int) -> None:
        key = f"sessions:id:{{{bare.conversation(number)}}}"
        client.get(key)
        client.set(key, _ID, px=bare.MAX_AGE_MS)

    dispatch(0)
    return dispatch


async def _socket(url: str) -> Callable[[int], object]:
    """The same commands, packed by hand."""
    connection = bare.connected(url)
    session_id, px = _ID.encode(), b"%d" % bare.MAX_AGE_MS

    def dispatch(number: int) -> None:
        key = b"sessions:id:{%b}" % bare.conversation(number).encode()
        connection.sendall(bare.packed(b"GET", key))
        connection.recv(100)
        connection.sendall(bare.packed(b"SET", key, session_id, b"PX", px))
        connection.recv(100)

    return dispatch


async def _json_file(path: str) -> Callable[[int], object]:
    """A sessions.json: read it to look up; read, change and replace it under a lock to save."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)

    def dispatch(number: int) -> None:
        key = bare.conversation(number)
        json.loads(Path(path).read_bytes()).get(key)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            sessions = json.loads(Path(path).read_bytes())
            sessions[key] = {"id": _ID, "last_used_at": _now_ms()}
            changed = Path(f"{path}.{os.getpid()}")
            changed.write_text(json.dumps(sessions))
            changed.replace(path)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    return dispatch


async def _sqlite(path: str) -> Callable[[int], object]:
    return _on(_database(path))


def _on(database: sqlite3.Connection) -> Callable[[int], object]:
    def dispatch(number: int) -> None:
        key = bare.conversation(number)
        database.execute(_SQL_READ, (key,)).fetchone()
        database.execute(_SQL_WRITE, (key, _ID, _now_ms()))

    return dispatch


async def _sqlite_unflushed(path: str) -> Callable[[int], object]:
    """Commits reach the disk only with the next checkpoint."""
    database = _database(path)
    database.execute("PRAGMA synchronous=NORMAL")
    return _on(database)


async def _diskcache(path: str) -> Callable[[int], object]:
    cache = importlib.import_module("diskcache").Cache(path)

    def dispatch(number: int) -> None:
        key = bare.conversation(number)
        cache.get(key)
        cache.set(key, _ID, expire=bare.MAX_AGE_MS / 1000)

    return dispatch


async def _openai(url: str) -> Callable[[int], object]:
    """RedisSession of OpenAI Agents, a list of items per conversation: get the last one, add one with the ID."""
    session = importlib.import_module("agents.extensions.memory.redis_session").RedisSession
    client = bare.aclient(url)

    async def dispatch(number: int) -> None:
        history = session(bare.conversation(number), redis_client=client, ttl=bare.MAX_AGE_MS // 1000)
        await history.get_items(limit=1)
        await history.add_items([{"role": "user", "content": _ID}])

    await dispatch(0)
    return dispatch


KINDS: Final = {
    "leased": _leased,
    "ours": _ours,
    "redis-py": _redis_py,
    "socket": _socket,
    "json-file": _json_file,
    "sqlite": _sqlite,
    "sqlite-unflushed": _sqlite_unflushed,
    "diskcache": _diskcache,
    "openai": _openai,
}


def fill_json_file(path: Path, sessions: int) -> None:
    """Write a sessions.json of `sessions` records."""
    rows = zip(range(sessions), bare.session_ids(), bare.ages_ms(), strict=False)
    now_ms = _now_ms()
    records = {
        bare.conversation(number): {"id": session_id, "last_used_at": now_ms - age_ms} for number, session_id, age_ms in rows
    }
    path.write_text(json.dumps(records))


def fill_sqlite(path: Path, sessions: int) -> None:
    """Write a table of `sessions` rows."""
    database = _database(str(path))
    with database:
        database.execute("BEGIN")
        database.executemany(_SQL_WRITE, ((key, session_id, _now_ms()) for key, session_id in _pairs(sessions)))
    database.close()


def fill_diskcache(path: Path, sessions: int) -> None:
    """Write a cache of `sessions` entries."""
    with importlib.import_module("diskcache").Cache(str(path)) as cache, cache.transact():
        for key, session_id in _pairs(sessions):
            cache.set(key, session_id, expire=bare.MAX_AGE_MS / 1000)


def fill_openai(url: str, sessions: int) -> None:
    """Write `sessions` conversations of one item, under the names that RedisSession uses."""
    bare.send_all(
        url,
        (
            bare.packed(b"HSET", f"agents:session:{key}".encode(), b"session_id", key.encode(), b"created_at", b"1")
            + bare.packed(
                b"RPUSH",
                f"agents:session:{key}:messages".encode(),
                json.dumps({"role": "user", "content": session_id}).encode(),
            )
            for key, session_id in _pairs(sessions)
        ),
        replies=2,
    )


def fill_store(url: str, sessions: int) -> None:
    """Write `sessions` sessions as our store does."""
    keys = Keys("sessions")
    px = b"%d" % bare.MAX_AGE_MS
    bare.send_all(
        url,
        (bare.packed(b"SET", keys.session_id(key), session_id.encode(), b"PX", px) for key, session_id in _pairs(sessions)),
    )


def _pairs(sessions: int) -> Any:
    return (
        (bare.conversation(number), session_id)
        for number, session_id in zip(range(sessions), bare.session_ids(), strict=False)
    )


def _database(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(
        "CREATE TABLE IF NOT EXISTS session (key TEXT PRIMARY KEY, session_id TEXT, used_at_ms INTEGER) WITHOUT ROWID"
    )
    return database
