"""A client that loses calls or their replies, and in what order. No tests."""

from __future__ import annotations

import redis

from redis_sessions.client.execute import Link

PATIENT = Link(address="test", deadline_s=5)
HASTY = PATIENT._replace(deadline_s=0.1)
LOSSES = [["before"], ["after"], ["after", "after"], ["before", "after", "before"]]


class LosingClient:
    """A redis-py client that loses calls: "before" they reach the server, or "after", their reply."""

    def __init__(self, client):
        self._client = client
        self.losses = []
        self.pipeline = client.pipeline

    def execute_command(self, *args, **options):
        loss = self._next_loss()
        reply = self._client.execute_command(*args, **options)
        if loss == "after":
            raise redis.TimeoutError
        return reply

    @property
    def connection_pool(self):
        """The connections for a batch."""
        pool = self._client.connection_pool
        return LosingPool(pool) if self._next_loss() == "after" else pool

    def _next_loss(self):
        loss = self.losses.pop(0) if self.losses else None
        if loss == "before":
            raise redis.ConnectionError
        return loss


class LosingPool:
    """Connections whose replies are lost."""

    def __init__(self, pool):
        self._pool = pool
        self.get_connection = pool.get_connection

    def release(self, connection):
        self._pool.release(connection)
        raise redis.TimeoutError
