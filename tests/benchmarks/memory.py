"""How much memory of the server a session takes, next to a bare SET."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from redis_sessions.keys import Keys
from tests.benchmarks import bare
from tests.benchmarks.lab import NAMESPACE, Lab, Server
from tests.benchmarks.rows import Row
from tests.servers import wait_until

AT_MOST_BYTES: Final = 35
KEY_BYTES: Final = 13


def bytes_(lab: Lab) -> Iterator[Row]:
    """An ID of 36 characters with its TTL, under our key and under the bare conversation key of 13 bytes."""
    for redis_kind in (False, True):
        if redis_kind and not lab.has_redis:
            yield Row("bytes a session, Redis", "", "no redis-server on the PATH")
            continue
        sizes = []
        for name, redis_key in (("ours", Keys(NAMESPACE).session_id), ("bare", str.encode)):
            server = lab.server(redis_kind=redis_kind, name=f"bytes, {name}")
            sizes.append(_each(server, lab.scale.sizes[-1], redis_key))
        ours, other = sizes
        yield Row(
            f"bytes a session, {server.name} {server.version}",
            f"{ours:.1f}",
            f"SET … PX under {KEY_BYTES} bytes: {other:.1f}",
            f"+ {ours - other:.1f}",
            "",
            f"≤ + {AT_MOST_BYTES}",
            ours - other <= AT_MOST_BYTES,
        )


def _each(server: Server, count: int, redis_key: Callable[[str], bytes]) -> float:
    before = _used(server)
    rows = zip(range(count), bare.session_ids(), strict=False)
    px = b"%d" % bare.MAX_AGE_MS
    bare.send_all(
        server.url,
        (
            bare.packed(b"SET", redis_key(f"{number:0{KEY_BYTES}}"), session_id.encode(), b"PX", px)
            for number, session_id in rows
        ),
    )
    return (_used(server) - before) / count


def _used(server: Server) -> int:
    """Used memory while no other client is connected, so without the buffers of clients."""
    wait_until(lambda: server.raw.info("clients")["connected_clients"] == 1, "others have left")
    return int(server.raw.info("memory")["used_memory"])
