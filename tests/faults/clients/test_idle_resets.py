"""Idle connections that something between client and server forgets: no turn loses its context, no count is lost."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from contextlib import ExitStack, closing
from typing import Any
from unittest.mock import patch

import pytest
import redis

from redis_sessions import AsyncSessionStore, SessionStore, Turn
from redis_sessions.client import pool as pools
from redis_sessions.client import sentinel
from redis_sessions.client.exchange import awaited
from redis_sessions.server import EmbeddedServer
from tests.faults.middlebox import Forget, Middlebox
from tests.sentinels import SERVICE, Watcher, _valkey_binary
from tests.servers import Cluster, wait_until
from tests.stores import opened
from tests.tls.certificates import Certificates, free_port

KINDS = pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore], ids=["sync", "async"])
IDLE = 8
ROW = "idle connections reset or forgotten by a middlebox"


@pytest.fixture(scope="module")
def worlds():
    """URLs behind middleboxes, and these: of a server, a cluster, and a server that Sentinel watches."""
    with ExitStack() as stack:
        made: dict[str, Any] = {}

        def get(name):
            if name not in made:
                made[name] = make(name)
            return made[name]

        def make(name):
            if name == "cluster":
                cluster = stack.enter_context(Cluster())
                boxes = [stack.enter_context(Middlebox(node.port)) for node in cluster.nodes]
                for node, box in zip(cluster.nodes, boxes, strict=True):
                    with redis.Redis.from_url(node.url) as raw:
                        raw.config_set("cluster-announce-port", box.port)
                cluster.settle()
                return "redis+cluster://" + ",".join(f"127.0.0.1:{box.port}" for box in boxes), boxes
            server = stack.enter_context(EmbeddedServer())
            box = stack.enter_context(Middlebox(server.port))
            if name == "server":
                return f"{box.url}/0", [box]
            watcher = stack.enter_context(closing(_Closing(Watcher(_valkey_binary())))).watcher
            with watcher.client() as raw:
                raw.execute_command("SENTINEL MONITOR", SERVICE, "127.0.0.1", box.port, 1)
            door = stack.enter_context(Middlebox(watcher.port))
            return f"redis+sentinel://127.0.0.1:{door.port}/{SERVICE}/0", [box, door]

        yield get


class _Closing:
    def __init__(self, watcher):
        self.watcher, self.close = watcher, watcher.stop


def fill(store, loop):
    """Leave IDLE connections idle in each pool of a store, all of them new."""
    client = store.client
    if isinstance(client, redis.asyncio.RedisCluster):
        loop.run(_fill_nodes(client))
    elif isinstance(client, redis.asyncio.Redis):
        loop.run(_afill(client.connection_pool))
    else:
        nodes = client.get_primaries() if isinstance(client, redis.RedisCluster) else [None]
        for one in [client if node is None else client.get_redis_connection(node) for node in nodes]:
            _fill(one.connection_pool)


def _fill(pool):
    pool.disconnect()
    for connection in [pool.get_connection() for _ in range(IDLE)]:
        pool.release(connection)


async def _afill(pool):
    await pool.disconnect()
    for connection in [await pool.get_connection() for _ in range(IDLE)]:
        await pool.release(connection)


async def _fill_nodes(client):
    for node in client.get_primaries():
        await node.disconnect()
        for connection in [node.acquire_connection() for _ in range(IDLE)]:
            await connection.send_command("PING")
            assert await connection.read_response(timeout=30) == b"PONG"
            node.release(connection)


@KINDS
@pytest.mark.parametrize(
    ("name", "how"),
    [*(("server", how) for how in Forget), ("cluster", Forget.RESET_LATER), ("sentinel", Forget.RESET_LATER)],
    ids=lambda part: getattr(part, "name", part),
)
def test_no_turn_loses_its_context_and_no_count_is_lost(name, how, kind, worlds, loop, namespace, ledger, monkeypatch):
    """Silent ones are found by a PING, or by one call's time limit, and then all at once."""
    monkeypatch.setattr(pools, "FRESH_S", 0.0)
    url, boxes = worlds(name)
    tally = ledger(ROW)
    with opened(kind, url, loop, namespace=namespace, socket_timeout_ms=1_000) as store:
        store.set("k", "LIVE")

        def forgotten():
            fill(store, loop)
            for box in boxes:
                box.forget(how)
            tally.injected += 1
            tally.operations += 1
            return sum(box.resets for box in boxes)

        before = forgotten()
        result = store.resume("k", lambda session_id: Turn(session_id or "FRESH"))
        tally.lost += (result.how, result.session_id, result.saved) != ("resumed", "LIVE", True)
        if name == "server":  # Sentinel has connections of its own to the primary, and a cluster is asked for its slots
            assert sum(box.resets for box in boxes) - before <= 1
        for n in range(1, 4):
            forgotten()
            tally.lost += store.increment_resume_failures() != n
        store.delete("k")
    tally.check()


@KINDS
@pytest.mark.parametrize("name", ["server", "cluster", "sentinel"])
def test_what_the_caller_is_handling_says_nothing_of_its_calls(name, kind, worlds, loop, namespace, monkeypatch):
    """They keep their connections, and those that lie idle; Sentinel is not asked for each."""
    monkeypatch.setattr(sentinel, "TRUST_S", 60.0)
    url, boxes = worlds(name)
    with opened(kind, url, loop, namespace=namespace) as store:
        store.resume("k", lambda _: Turn("LIVE"))
        store.report()
        with store.lease("k"):  # every script is known from here on
            pass
        fill(store, loop)
        store.report()  # by the newest connections, so that the middleboxes have accepted all
        pool = getattr(store.client, "connection_pool", None)
        if name == "sentinel":  # which comes through the middlebox, too, and again after its connections were reset
            with redis.Redis.from_url(boxes[0].url) as raw:
                wait_until(lambda: sum("sentinel" in each["name"] for each in raw.client_list()) == 2, "Sentinel is there")
        with ExitStack() as stack:
            asked = stack.enter_context(patch.object(pool, "get_master_address")) if name == "sentinel" else None
            before = [box.accepted for box in boxes]
            if kind is SessionStore:
                _call_in_a_handler(store)
            else:
                loop.run(_acall_in_a_handler(store._store))
            with pytest.raises(ConnectionResetError), store.lease("k"):
                raise ConnectionResetError
            assert [box.accepted for box in boxes] == before
            assert asked is None or not asked.called
        store.delete("k")


def _call_in_a_handler(store):
    try:
        raise ConnectionResetError
    except ConnectionResetError:
        assert store.get("k") == "LIVE"
        assert store.resume("k", lambda session_id: Turn(session_id or "FRESH")).session_id == "LIVE"
        assert store.report().live == 1


async def _acall_in_a_handler(store):
    async def run(session_id):
        return Turn(session_id or "FRESH")

    try:
        raise ConnectionResetError
    except ConnectionResetError:
        assert await store.get("k") == "LIVE"
        assert (await store.resume("k", run)).session_id == "LIVE"
        assert (await store.report()).live == 1


@KINDS
def test_an_error_of_the_call_itself_counts_in_a_handler_too(kind, worlds, loop, namespace):
    """Its connection has a reply unread. And nothing keeps the exceptions of a caller."""
    with opened(kind, worlds("server")[0], loop, namespace=namespace) as store:
        store.set("k", "LIVE")
        pool = store.client.connection_pool

        async def interrupted():
            try:
                raise KeyError
            except KeyError:
                connection = await awaited(pool.get_connection())
                try:
                    await awaited(connection.send_command("PING"))
                    raise KeyboardInterrupt
                except KeyboardInterrupt:
                    await awaited(pool.release(connection))
            return connection

        connection = loop.run(interrupted())
        assert not connection.is_connected
        assert connection.lent_under is None
        assert store.get("k") == "LIVE"
        store.delete("k")


@KINDS
@pytest.mark.parametrize("calls", [1, 2], ids=["read with the last one", "not read yet"])
def test_a_reply_too_many_is_nobodys(kind, calls, worlds, loop, namespace):
    """What a proxy sends unasked for. The sync client sees what came together with the last reply."""
    if kind is SessionStore and calls == 2:
        pytest.skip("only a system call could tell")
    with opened(kind, worlds("server")[0], loop, namespace=namespace) as store:
        store.set("k", "LIVE")
        pool = store.client.connection_pool

        async def received(connection, replies):
            if kind is SessionStore:
                connection._sock.settimeout(30)
                wait_until(lambda: connection._sock.recv(99, socket.MSG_PEEK) == replies, "all is there")
            while kind is AsyncSessionStore and connection._reader._buffer != replies:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0)

        async def read_too_little():
            connection = await awaited(pool.get_connection())
            ping, stray = connection.pack_command("PING")[0], connection.pack_command("ECHO", "stray")[0]
            await awaited(connection.send_packed_command([ping + stray] if calls == 1 else [ping]))
            await received(connection, b"+PONG\r\n$5\r\nstray\r\n" if calls == 1 else b"+PONG\r\n")
            await awaited(connection.read_response())
            if calls == 2:
                await awaited(connection.send_packed_command([stray]))
                await received(connection, b"$5\r\nstray\r\n")
            await awaited(pool.release(connection))

        loop.run(read_too_little())
        assert store.get("k") == "LIVE"
        store.delete("k")


def stunnel(directory, port, certificates):
    """A proxy that speaks TLS and closes what was idle for a second: its port, its command, the URL."""
    listens = free_port()
    (directory / "stunnel.conf").write_text(
        f"foreground = yes\npid =\n[redis]\naccept = 127.0.0.1:{listens}\nconnect = 127.0.0.1:{port}\nTIMEOUTidle = 1\n"
        f"cert = {certificates.directory}/server.pem\nkey = {certificates.directory}/server.key\n"
    )
    return ["stunnel4", directory / "stunnel.conf"], f"rediss://127.0.0.1:{listens}/0{certificates.options('')}", listens


def haproxy(directory, port, _):
    """A load balancer that resets what was idle for a second."""
    listens = free_port()
    (directory / "haproxy.conf").write_text(
        "defaults\n mode tcp\n timeout connect 1s\n timeout client 1s\n timeout server 1s\n option nolinger\n"
        f"listen redis\n bind 127.0.0.1:{listens}\n server one 127.0.0.1:{port}\n"
    )
    return ["haproxy", "-f", directory / "haproxy.conf"], f"redis://127.0.0.1:{listens}/0", listens


@pytest.mark.parametrize("proxy", [stunnel, haproxy])
def test_behind_a_real_one(proxy, tmp_path, loop, namespace, ledger):
    program = "stunnel4" if proxy is stunnel else "haproxy"
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on the PATH")
    tally = ledger(ROW)
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        command, url, port = proxy(tmp_path, server.port, Certificates(tmp_path) if proxy is stunnel else None)
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(running.wait)
        stack.callback(running.terminate)
        raw = stack.enter_context(redis.Redis.from_url(server.url))
        behind = redis.Redis(port=port, ssl=proxy is stunnel, ssl_cert_reqs="none", ssl_check_hostname=False)
        wait_until(behind.ping, f"{program} passes on")
        behind.close()
        stores = [
            stack.enter_context(opened(kind, url, loop, namespace=namespace)) for kind in (SessionStore, AsyncSessionStore)
        ]
        for store in stores:
            store.set("k", "LIVE")
            fill(store, loop)
        wait_until(lambda: raw.info("clients")["connected_clients"] == 1, f"{program} closes what is idle")
        for store in stores:
            tally.injected += 1
            tally.operations += 1
            result = store.resume("k", lambda session_id: Turn(session_id or "FRESH"))
            tally.lost += (result.how, result.saved) != ("resumed", True)
    tally.check()
