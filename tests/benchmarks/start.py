"""How long the import of the package, and two commands, take to start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from tests.benchmarks.calls import KEY, SESSION_ID
from tests.benchmarks.lab import Lab
from tests.benchmarks.rows import Row, limited, seconds, timed

PEER: Final = "import of redis and pydantic alone"
_PEER: Final = "import redis, redis.asyncio, redis.cluster, redis.sentinel; from pydantic import BaseModel, Field"
_COMMAND: Final = "import sys; from redis_sessions.cli import main; main()"


def start(lab: Lab) -> Iterator[Row]:
    """Time whole processes, including the start of Python."""
    server = lab.server()
    server.raw.set(f"sessions:id:{{{KEY}}}", SESSION_ID, ex=86_400)
    sides = {
        "import redis_sessions": ("-c", "import redis_sessions"),
        PEER: ("-c", _PEER),
        "redis-sessions --help": ("-c", _COMMAND, "--help"),
        "redis-sessions get": ("-c", _COMMAND, "get", "--url", server.url, KEY),
        "python": ("-c", "pass"),
    }
    measures = {side: lab.program(None, sys.executable, *arguments) for side, arguments in sides.items()}
    for measure in measures.values():
        measure()
    contest = lab.contest("start", measures, lab.scale.starts)
    yield timed("import redis_sessions", contest, "import redis_sessions", PEER, 1.2)
    yield timed("import redis_sessions", contest, "import redis_sessions", "python")
    for side, limit_s in (("redis-sessions --help", 0.5), ("redis-sessions get", 0.6)):
        wall_s = contest.wall_s(side)
        compared = f"processor time: {seconds(contest.cpu_s(side))}"
        yield limited(side, wall_s, seconds(wall_s), limit_s, f"{limit_s} s", compared=compared)
