"""The other side of comparisons, without our code: redis-py with the same safe settings, a socket, a short script."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

MAX_AGE_MS: Final = 86_400_000
COUNT: Final = 1_000
BATCH: Final = 10_000
# The minimum for a report: which keys exist, and the TTL of each.
SCAN_PTTL: Final = """
local scan = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local pttls = {}
for i, key in ipairs(scan[2]) do
  pttls[i] = redis.call('PTTL', key)
end
return {scan[1], scan[2], pttls}
"""
_OPTIONS: Final[dict[str, Any]] = {
    "protocol": 2,
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "health_check_interval": 15,
    "driver_info": None,
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}


def client(url: str) -> redis.Redis:
    """A redis-py client as safe as the store's own: short timeouts, no retries, no notifications."""
    made: redis.Redis = redis.Redis.from_url(url, retry=redis.retry.Retry(NoBackoff(), 0), **_OPTIONS)
    return made


def aclient(url: str) -> redis.asyncio.Redis:
    """Same as client, for asyncio."""
    made: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
        url, retry=redis.asyncio.retry.Retry(NoBackoff(), 0), **_OPTIONS
    )
    return made


def packed(*words: bytes) -> bytes:
    """A command as it goes over the wire."""
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))


def address(url: str) -> tuple[str, int]:
    """Host and port of the server that a URL names."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 6379


def connected(url: str) -> socket.socket:
    """A socket to the server that a URL names."""
    made = socket.create_connection(address(url))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def send_all(url: str, commands: Iterable[bytes], replies: int = 1) -> None:
    """Send packed commands in batches, and read their replies; `replies` is the number of lines per command."""
    pending = iter(commands)
    with connected(url) as connection, connection.makefile("rb") as lines:
        while batch := list(islice(pending, BATCH)):
            connection.sendall(b"".join(batch))
            for _ in range(len(batch) * replies):
                reply = lines.readline()
                assert not reply.startswith(b"-"), reply


def conversation(number: int) -> str:
    """The key of the conversation with this number."""
    return f"acme/shop#{number}:reviewer"


def session_ids(seed: int = 1) -> Iterator[str]:
    """An endless sequence of session IDs, 36 characters long as most runtimes have them; always the same ones."""
    chance = random.Random(seed)
    while True:
        text = f"{chance.getrandbits(128):032x}"
        yield f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def ages_ms(seed: int = 2) -> Iterator[int]:
    """An endless sequence of idle times, up to 20 hours, so that no session expires during a run."""
    chance = random.Random(seed)
    while True:
        yield chance.randrange(MAX_AGE_MS * 20 // 24)
