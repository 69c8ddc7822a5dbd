"""The tests. Each of the processes that run them takes ports of its own, so that a server that is down keeps its port."""

import os
from typing import Final

from redis_sessions import server

_PROCESS: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_MINE: Final = slice(_PROCESS, None, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
# EmbeddedServer picks plain ports only.
TLS_PORTS: Final = range(22_000, 22_768)[_MINE]
server.FREE_PORTS = range(10_000, 22_000)[_MINE]  # type: ignore[misc] # the same for each process, but for tests
