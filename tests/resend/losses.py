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
        loss = self.losses.pop(0) if self.losses else None
        if loss == "before":
            raise redis.ConnectionError
        reply = self._client.execute_command(*args, **options)
        if loss == "after":
            raise redis.TimeoutError
        return reply
