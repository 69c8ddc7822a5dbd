"""Starts real servers for tests: standalone or a cluster, on free ports of the loopback interface. No tests."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import redis

from redis_sessions.server import EmbeddedServer

CLUSTER_DEADLINE_S: Final = 20.0
POLL_S: Final = 0.02
PRIMARIES: Final = 3
SLOTS: Final = 16_384
# The bus port stays at its default, 10 000 above the node's: EmbeddedServer picks ports with that in mind, and takes
# another when either is in use.
CLUSTER_SETTINGS: Final = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    # Where no failover is waited for: a node that gets no processor time for longer is taken for dead.
    "cluster-node-timeout": "5000",
    "repl-diskless-sync-delay": "0",
    # CLUSTER SLOTS leaves out a replica whose offset is 0, as an empty primary's is until its first ping.
    "repl-ping-replica-period": "1",
}


def find_redis_server() -> Path | None:
    """Find the `redis-server` on PATH, if there is one."""
    found = shutil.which("redis-server")
    return None if found is None else Path(found)


@functools.cache
def other_servers() -> dict[str, Path]:
    """Servers besides these two, as redis-6.2: REDIS_SERVERS names their programs, separated as on the PATH."""
    binaries = filter(None, os.environ.get("REDIS_SERVERS", "").split(os.pathsep))
    return {_name_of(Path(binary)): Path(binary) for binary in binaries}


@functools.cache
def _name_of(binary: Path) -> str:
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"(Redis|Valkey) server v=(\d+\.\d+)", version)
    assert found, f"{binary} is not a server: {version}"
    return "-".join(found.groups()).lower()


def is_redis_6(binary: Path | None) -> bool:
    """Whether it is Redis 6: no read-only key patterns, no setting for DEBUG, no EXPIRETIME."""
    return binary is not None and _name_of(binary) == "redis-6.2"


def find_redis_7() -> Path | None:
    """The `redis-server` on PATH, unless it is that old."""
    found = find_redis_server()
    return None if is_redis_6(found) else found


def standalone(binary: Path | None = None) -> EmbeddedServer:
    """One server without a directory, used in a `with`. None: the embedded Valkey."""
    return EmbeddedServer(binary=binary)


def client_of(server: EmbeddedServer) -> redis.Redis:
    """A plain client that decodes replies, to read and write keys."""
    return redis.Redis.from_url(server.url, decode_responses=True)


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = CLUSTER_DEADLINE_S) -> None:
    """Poll a condition that has no event. A Redis error counts as "not yet"; `TimeoutError` names `what`."""
    give_up_at_s = time.monotonic() + deadline_s
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        if time.monotonic() > give_up_at_s:
            msg = f"not within {deadline_s} s: {what}"
            raise TimeoutError(msg)
        time.sleep(POLL_S)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process by SIGSTOP: it keeps its sockets and answers nothing. It always continues afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def exists(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Cluster:
    """Three primaries with an equal share of the slots each, and `replicas` replicas of each. Use it in a `with`.

    Attributes:
        nodes: all servers, the first three of them made primaries. `kill()` and `start()` on one are a crash and its
            return; `stop()` makes it forget the cluster.
    """

    def __init__(
        self, binary: Path | None = None, *, replicas: int = 0, extra: Mapping[str, str] = CLUSTER_SETTINGS
    ) -> None:
        count = PRIMARIES * (1 + replicas)
        self.nodes = [EmbeddedServer(binary=binary, extra=extra) for _ in range(count)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def startup_nodes(self) -> list[tuple[str, int]]:
        """Host and port of every node."""
        return [("127.0.0.1", node.port) for node in self.nodes]

    @property
    def url(self) -> str:
        """`redis+cluster://…` with the three nodes that began as primaries."""
        return "redis+cluster://" + ",".join(f"{host}:{port}" for host, port in self.startup_nodes[:PRIMARIES])

    def start(self) -> None:
        """Start the nodes and return when each serves and knows all others; when that fails nothing is left running."""
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(EmbeddedServer.start, self.nodes))
            with contextlib.ExitStack() as stack:
                self._join([stack.enter_context(redis.Redis.from_url(node.url)) for node in self.nodes])
        except BaseException:
            self.stop()
            raise

    def primary_of(self, slot: int) -> EmbeddedServer:
        """The node that serves a slot, as all that run agree; waits until they do."""
        found: set[int] = set()

        def agreed() -> bool:
            found.clear()
            for node in self.nodes:
                if node.is_running:
                    with redis.Redis.from_url(node.url) as client:
                        if b"cluster_state:ok" not in _send(client, "CLUSTER", "INFO"):
                            return False
                        ranges = _send(client, "CLUSTER", "SLOTS")
                    found.update(int(primary[1]) for first, last, primary, *_ in ranges if first <= slot <= last)
            return len(found) == 1 and any(node.is_running and {node.port} == found for node in self.nodes)

        wait_until(agreed, f"every node names the same primary of slot {slot}")
        return next(node for node in self.nodes if {node.port} == found)

    def slots_of(self, primary: EmbeddedServer) -> set[int]:
        """The slots that a node serves."""
        with redis.Redis.from_url(primary.url) as client:
            ranges = _send(client, "CLUSTER", "SLOTS")
        return {slot for first, last, node, *_ in ranges if node[1] == primary.port for slot in range(first, last + 1)}

    def patience_ms(self, node_timeout_ms: int) -> None:
        """Set how long a node may be silent before its primary's slots go to a replica."""
        for node in self.nodes:
            with redis.Redis.from_url(node.url) as client:
                client.config_set("cluster-node-timeout", node_timeout_ms)

    def settle(self) -> None:
        """Wait until every node runs as a copy in sync, and knows all others."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(redis.Redis.from_url(node.url)) for node in self.nodes]
            copies = len(clients) // PRIMARIES
            wait_until(lambda: all(_serves(client, copies) for client in clients), "every node serves")

    def stop(self) -> None:
        """End every node at once. There is nothing to save, and in order they would wait for each other."""
        for node in self.nodes:
            node.kill()
            node.stop()

    def _join(self, clients: list[redis.Redis]) -> None:
        primaries, replicas = clients[:PRIMARIES], clients[PRIMARIES:]
        for number, client in enumerate(primaries):
            first, end = SLOTS * number // PRIMARIES, SLOTS * (number + 1) // PRIMARIES
            _send(client, "CLUSTER", "ADDSLOTS", *range(first, end))
            _send(client, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        # Each meets each, since gossip alone would take some rounds longer.
        for number, client in enumerate(clients):
            for host, port in self.startup_nodes[:number]:
                _send(client, "CLUSTER", "MEET", host, port)
        wait_until(lambda: all(_known(client) == len(clients) for client in clients), "every node knows all")
        for number, client in enumerate(replicas):
            primary_id = _send(primaries[number % PRIMARIES], "CLUSTER", "MYID")
            _send(client, "CLUSTER", "REPLICATE", primary_id)
        copies = len(clients) // PRIMARIES
        wait_until(lambda: all(_serves(client, copies) for client in clients), "cluster_state:ok on every node")


def _send(client: redis.Redis, *words: str | int | bytes) -> Any:
    return client.execute_command(*words)


def _known(client: redis.Redis) -> int:
    """How many nodes this one has shaken hands with, itself included."""
    lines: bytes = _send(client, "CLUSTER", "NODES")
    return sum(b"handshake" not in line.split()[2] for line in lines.splitlines())


def _serves(client: redis.Redis, copies: int) -> bool:
    """Whether a node would route every command: it holds the cluster for healthy and knows all copies of all slots."""
    info: bytes = _send(client, "CLUSTER", "INFO")
    ranges: list[Any] = _send(client, "CLUSTER", "SLOTS")
    replication: dict[str, Any] = client.info("replication")
    return (
        b"cluster_state:ok" in info
        and [len(nodes) for _, _, *nodes in ranges] == [copies] * PRIMARIES
        and replication.get("master_link_status", "up") == "up"
    )
