"""Starts a primary, its replicas and three sentinels, which replace the primary by a replica when it is down. No tests."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, Final, Self

import redis

from redis_sessions.server import FREE_PORTS, LIFELINE, PORT_ATTEMPTS, EmbeddedServer, _valkey_binary
from tests.servers import wait_until

SERVICE: Final = "main"
QUORUM: Final = 2
NOBODY: Final = 1  # a port
# A primary that lost its replicas, as one that was replaced while it was stopped, then takes no writes that would be lost.
SERVER_SETTINGS: Final = {
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "min-replicas-to-write": "1",
    "min-replicas-max-lag": "10",
}
WATCH_SETTINGS: Final = ("failover-timeout", 5000, "parallel-syncs", 1)
DOWN_AFTER_MS: Final = (1000, 1200, 1400)  # at once, they would vote each for itself, and try again ten seconds later


class Watcher:
    """One sentinel process."""

    def __init__(self, binary: Path) -> None:
        self.port = 0
        self._directory = Path(tempfile.mkdtemp(prefix="sentinel-"))
        try:
            self._process = self._launch(binary)
        except BaseException:
            shutil.rmtree(self._directory)
            raise
        watch = ["/bin/sh", "-c", LIFELINE, "lifeline", str(self.pid), str(self._directory)]
        self._lifeline = Popen(watch, stdin=PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._lifeline.communicate(b"\n")
        shutil.rmtree(self._directory)

    def _launch(self, binary: Path) -> Popen[bytes]:
        """Start it on a free port: a process that loses a race for one ends at once."""
        config = self._directory / "sentinel.conf"
        for self.port in random.sample(FREE_PORTS, PORT_ATTEMPTS):
            config.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self._directory}\n")
            process = Popen([binary, config, "--sentinel"], stdin=DEVNULL, stdout=DEVNULL, start_new_session=True)
            try:
                with self.client() as client:
                    wait_until(
                        lambda process=process: process.poll() is not None or bool(client.ping()), "a sentinel answers"
                    )
                    if process.poll() is None and int(client.info("server")["process_id"]) == process.pid:
                        return process
            except BaseException:
                process.kill()
                process.wait()
                raise
            process.kill()
            process.wait()
        msg = "no free port for a sentinel"
        raise RuntimeError(msg)


class Watched:
    """A primary with replicas, under three sentinels that find it down after a good second. Use it in a `with`.

    Attributes:
        servers: all servers; `primary()` is the one that is the primary now.
        watchers: the sentinels.
    """

    def __init__(self, binary: Path | None = None, *, replicas: int = 1, extra: Mapping[str, str] = SERVER_SETTINGS) -> None:
        self.servers = [EmbeddedServer(binary=binary, extra=extra) for _ in range(1 + replicas)]
        self.watchers: list[Watcher] = []
        self._binary = binary or _valkey_binary()

    def __enter__(self) -> Self:
        try:
            self.rejoin(self.servers[0])
            self._watch()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """`redis+sentinel://…` with the three sentinels."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{watcher.port}' for watcher in self.watchers)}/{SERVICE}/0"

    def stop(self) -> None:
        """End every process at once."""
        for watcher in self.watchers:
            watcher.stop()
        for server in self.servers:
            server.kill()
            server.stop()

    def primary(self, *, besides: EmbeddedServer | None = None) -> EmbeddedServer:
        """The server that every sentinel names and that says so itself; waits until it is so, and not `besides`."""
        found: list[EmbeddedServer] = []

        def agreed() -> bool:
            states = [self.state(watcher) for watcher in self.watchers]
            settled = all(state["flags"] in ("master", {"master"}) for state in states)
            named = {int(state["port"]) for state in states}
            found[:] = [server for server in self.servers if {server.port} == named and server is not besides]
            return settled and bool(found) and role(found[0]) == "master"

        wait_until(agreed, "the sentinels agree on a primary that is one")
        return found[0]

    def rejoin(self, primary: EmbeddedServer) -> None:
        """Make all others replicas of this one, start those that are down, and wait until all are in sync."""
        with ExitStack() as stack:
            for server in self.servers:
                server.start()
            raw, *others = [stack.enter_context(redis.Redis.from_url(server.url)) for server in self._first(primary)]
            for client in (raw, *others):
                client.config_set("min-replicas-to-write", SERVER_SETTINGS["min-replicas-to-write"])
            for client in others:
                client.replicaof("127.0.0.1", primary.port)
            offset = raw.info("replication")["master_repl_offset"]
            for client in others:
                wait_until(lambda client=client: _has(client, primary.port, offset), "the replica is in sync")
            # The primary counts a replica as good from its first acknowledgement on.
            good = len(others)
            wait_until(lambda: raw.info("replication")["min_slaves_good_slaves"] == good, "the replicas count as good")

    def _first(self, primary: EmbeddedServer) -> list[EmbeddedServer]:
        return sorted(self.servers, key=lambda server: server is not primary)

    def cut_off(self, primary: EmbeddedServer) -> None:
        """Cut the primary's replicas off; it still accepts writes. `rejoin` undoes that."""
        for server in self.servers:
            with redis.Redis.from_url(server.url) as client:
                client.config_set("min-replicas-to-write", 0)
                if server is not primary:
                    client.replicaof("127.0.0.1", NOBODY)

    def state(self, watcher: Watcher) -> dict[str, Any]:
        """What a sentinel says of the primary."""
        reply = self._ask(watcher, "MASTER", SERVICE)
        return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))

    def failovers(self) -> int:
        """How many there have been."""
        return int(self.state(self.watchers[0])["config-epoch"])

    def fail_over(self, leader: Watcher) -> EmbeddedServer:
        """Have a sentinel put a replica in the primary's place; that replica, as soon as it has been promoted."""
        before = self._address(leader)
        self._ask(leader, "FAILOVER", SERVICE)
        wait_until(lambda: self._address(leader) != before, "a replica was promoted")
        return next(server for server in self.servers if server.port == self._address(leader))

    def _address(self, watcher: Watcher) -> int:
        return int(self._ask(watcher, "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def _watch(self) -> None:
        for down_after_ms in DOWN_AFTER_MS:
            self.watchers.append(watcher := Watcher(self._binary))
            # Its pings, a second apart by default, would be as far apart as a primary may be silent: each failover then made
            # for another one, away from a primary that was up.
            self._ask(watcher, "DEBUG", "PUBLISH-PERIOD", 100, "PING-PERIOD", 200)
            self._ask(watcher, "MONITOR", SERVICE, "127.0.0.1", self.servers[0].port, QUORUM)
            self._ask(watcher, "SET", SERVICE, "down-after-milliseconds", down_after_ms, *WATCH_SETTINGS)
        wait_until(lambda: all(map(self._knows_all, self.watchers)), "each sentinel knows all others and every replica")
        for watcher in self.watchers:
            # The default. Four times that is how long a primary that comes back may remain one.
            self._ask(watcher, "DEBUG", "PUBLISH-PERIOD", 2000)

    def _knows_all(self, watcher: Watcher) -> bool:
        state = self.state(watcher)
        return (
            int(state["num-other-sentinels"]) == len(DOWN_AFTER_MS) - 1
            and int(state["num-slaves"]) == len(self.servers) - 1
            and state["flags"] in ("master", {"master"})
        )

    def _ask(self, watcher: Watcher, *words: str | int) -> Any:
        with watcher.client() as client:
            return client.execute_command(f"SENTINEL {words[0]}", *words[1:])


def _has(replica: redis.Redis, port: int, offset: int) -> bool:
    state = replica.info("replication")
    return state["master_port"] == port and state["master_link_status"] == "up" and state["slave_repl_offset"] >= offset


def role(server: EmbeddedServer, patience_s: float = 0.5) -> str | None:
    """ "master" or "slave", as the server reports it; None if it does not answer."""
    with contextlib.suppress(redis.RedisError), redis.Redis.from_url(server.url, socket_timeout=patience_s) as client:
        return str(client.info("replication")["role"])
    return None
