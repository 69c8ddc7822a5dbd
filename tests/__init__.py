"""The tests. Each of the processes that run them takes ports of its own, so that a server that is down keeps its port."""

import os
from typing import Final

from redis_sessions import server

_PROCESS: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
server.FREE_PORTS = server.FREE_PORTS[_PROCESS :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
