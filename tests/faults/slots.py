"""Moves slots of a cluster step by step, as tools that rebalance a cluster do. No tests."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import redis

from tests.servers import SLOTS, Cluster, wait_until

MIGRATE_TIMEOUT_MS: Final = 5_000
KEYS_AT_ONCE: Final = 10


class Slots:
    """Who serves which slot, and how to change that. Holds connections: close it.

    Attributes:
        moves: how many slots have arrived.
    """

    def __init__(self, cluster: Cluster) -> None:
        primaries = {node.port: node for node in map(cluster.primary_of, range(0, SLOTS, SLOTS // 8))}
        self.moves = 0
        self._nodes = [redis.Redis.from_url(node.url) for node in primaries.values()]
        self._ports = list(primaries)
        self._ids = [node.execute_command("CLUSTER", "MYID") for node in self._nodes]
        self._home: dict[int, int] = {}
        for first, last, (_, port, *_), *_ in self._nodes[0].execute_command("CLUSTER", "SLOTS"):
            self._home |= dict.fromkeys(range(first, last + 1), self._ports.index(port))
        self._at = dict(self._home)
        self._to: dict[int, int] = {}

    def close(self) -> None:
        for node in self._nodes:
            node.close()

    def begin(self, slot: int, to: int | None = None) -> None:
        """From now on the source redirects clients that ask for a key that has left, and the target serves them."""
        here = self._at[slot]
        self._to[slot] = there = random.choice([n for n in range(len(self._nodes)) if n != here]) if to is None else to
        self._tell(there, "SETSLOT", slot, "IMPORTING", self._ids[here])
        self._tell(here, "SETSLOT", slot, "MIGRATING", self._ids[there])

    def carry(self, slot: int, *keys: bytes) -> None:
        """Move these keys of the slot."""
        port = self._ports[self._to[slot]]
        self._nodes[self._at[slot]].execute_command("MIGRATE", "127.0.0.1", port, "", 0, MIGRATE_TIMEOUT_MS, "KEYS", *keys)

    def end(self, slot: int) -> None:
        """Move the keys that are left, and say so to all."""
        here, there = self._at[slot], self._to[slot]
        while keys := self._tell(here, "GETKEYSINSLOT", slot, KEYS_AT_ONCE):
            self.carry(slot, *keys)
        # The target first: were it the other way round, the two would send a client to and fro.
        for node in sorted(range(len(self._nodes)), key=lambda node: node != there):
            self._tell(node, "SETSLOT", slot, "NODE", self._ids[there])
        self._at[slot] = there
        self.moves += 1
        # The node that takes the next slot must know this epoch: two nodes with the same would conflict.
        wait_until(lambda: len({self._epoch(node, there) for node in range(len(self._nodes))}) == 1, "all know its epoch")

    def bring_home(self) -> None:
        """Move every slot back to where it was at first."""
        for slot, home in self._home.items():
            if self._at[slot] != home:
                self.begin(slot, home)
                self.end(slot)

    @contextmanager
    def moving(self, slots: Sequence[int]) -> Iterator[None]:
        """Move one of these after the other, to and fro, until the `with` ends."""
        over = threading.Event()
        failures: list[BaseException] = []

        def move() -> None:
            try:
                while not over.is_set():
                    slot = random.choice(slots)
                    self.begin(slot)
                    self.end(slot)
            except BaseException as error:  # noqa: BLE001 - raised again in the main thread
                failures.append(error)

        thread = threading.Thread(target=move)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]

    def _epoch(self, node: int, of: int) -> bytes:
        lines: bytes = self._tell(node, "NODES")
        return next(line.split()[6] for line in lines.splitlines() if line.startswith(self._ids[of]))

    def _tell(self, node: int, *words: Any) -> Any:
        return self._nodes[node].execute_command("CLUSTER", *words)
