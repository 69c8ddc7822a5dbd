"""Where benchmarks run: servers that are started once, processes that run one job, and progress."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Protocol, Self

import redis

from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer
from tests.benchmarks import bare
from tests.benchmarks.pairs import Contest, Measure, Sample, interleave
from tests.servers import Cluster, find_redis_server

ROOT: Final = Path(__file__).parents[2]
NAMESPACE: Final = "sessions"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        calls, rounds: calls per timing, and timings per side.
        long_rounds: timings per side of work that takes seconds.
        sessions: number of sessions in the store that is scanned, imported and exported.
        sizes: numbers of sessions for what is measured by size.
        starts: how often each program is started.
        hammer_s, hammer_rounds: how long worker processes run for one timing, and timings per side.
    """

    calls: int = 100
    rounds: int = 75
    long_rounds: int = 3
    sessions: int = 1_000_000
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    starts: int = 15
    hammer_s: float = 0.3
    hammer_rounds: int = 8


QUICK: Final = Scale(
    calls=20, rounds=3, long_rounds=1, sessions=3_000, sizes=(100, 1_000), starts=1, hammer_s=0.05, hammer_rounds=2
)


class ProgressDisplay(Protocol):
    """Shows how far the work is."""

    def begin(self, what: str, total: int) -> None: ...
    def tick(self) -> None: ...


class Server:
    """One of the lab's servers, and a plain client for it."""

    def __init__(self, embedded: EmbeddedServer) -> None:
        self.url = embedded.url
        self.raw = redis.Redis.from_url(embedded.url, socket_timeout=60)
        info: dict[str, Any] = self.raw.info("server")
        self.name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
        self.version = str(info.get("valkey_version") or info["redis_version"])
        self.pid = int(info["process_id"])

    def cpu_s(self) -> float:
        """Processor time that the server has used so far, in seconds."""
        info = self.raw.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


class ClusterServer:
    """A cluster of three primaries, with as much of Server as a job needs."""

    def __init__(self, cluster: Cluster) -> None:
        self.url = cluster.url
        self._nodes = [Server(node) for node in cluster.nodes]

    def cpu_s(self) -> float:
        """Processor time that all nodes have used so far, in seconds."""
        return sum(node.cpu_s() for node in self._nodes)

    def close(self) -> None:
        for node in self._nodes:
            node.raw.close()


class Lab:
    """Servers and measures, as a context manager that ends everything it started."""

    def __init__(self, scale: Scale, progress: ProgressDisplay) -> None:
        self.scale = scale
        self.versions: dict[str, None] = {}
        self._progress = progress
        self._stack = ExitStack()
        self._servers: dict[tuple[bool, int, str], Server] = {}

    def __enter__(self) -> Self:
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-sessions-benchmarks-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def server(self, *, redis_kind: bool = False, sessions: int = 0, name: str = "") -> Server:
        """A server with this number of sessions, the same for the same arguments: the embedded Valkey, or `redis-server`.

        A `name` asks for a separate server; if it ends in a slash the server writes an append-only file, as in production.
        """
        place = (redis_kind, sessions, name)
        if place not in self._servers:
            directory = self.directory / name if name.endswith("/") else None
            binary = find_redis_server() if redis_kind else None
            embedded = EmbeddedServer(binary=binary, directory=directory, extra={"maxmemory": "8gb"})
            server = Server(self._stack.enter_context(embedded))
            self._stack.callback(server.raw.close)
            self.versions[f"{server.name} {server.version}"] = None
            self._servers[place] = server
            self._progress.begin(f"filling {server.name} with {sessions:,} sessions" if sessions else "starting", 1)
            fill(server, sessions)
        return self._servers[place]

    def cluster(self, sessions: int) -> ClusterServer:
        """A new cluster of the embedded Valkey with this number of sessions."""
        self._progress.begin(f"filling a cluster with {sessions:,} sessions", 1)
        cluster = self._stack.enter_context(Cluster())
        with redis.RedisCluster(*cluster.startup_nodes[0]) as client:
            pending = commands_to_fill(sessions)
            while batch := list(islice(pending, bare.BATCH)):
                pipeline = client.pipeline()
                for _, *words in batch:
                    pipeline.execute_command("SET", *words)
                pipeline.execute()
        server = ClusterServer(cluster)
        self._stack.callback(server.close)
        return server

    @property
    def has_redis(self) -> bool:
        """Whether `redis-server` is on the PATH."""
        return find_redis_server() is not None

    def contest(self, what: str, sides: Mapping[str, Measure], rounds: int | None = None) -> Contest:
        """Measure the sides in turn, and show progress."""
        rounds = rounds or self.scale.rounds
        self._progress.begin(what, rounds * len(sides))
        return interleave(sides, rounds, self._progress.tick)

    def job(
        self, server: Server | ClusterServer, name: str, *arguments: object, then: Callable[[], object] | None = None
    ) -> Measure:
        """A measure of a job of `child.py` in its own process; `then` is called after each run, untimed."""

        def measure() -> Sample:
            cpu_s = server.cpu_s()
            sample = run_job(name, *arguments)
            server_s = server.cpu_s() - cpu_s
            if then is not None:
                then()
            return Sample(sample.wall_s, sample.cpu_s + server_s, sample.peak_bytes, sample.done)

        return measure

    def program(self, server: Server | None, *command: str, stdin: Path | None = None, then: Any = None) -> Measure:
        """A measure of a whole process, from start to end."""

        def measure() -> Sample:
            cpu_s = server.cpu_s() if server else 0.0
            wall_s, own_s = run_program(command, stdin)
            server_s = server.cpu_s() - cpu_s if server else 0.0
            if then is not None:
                then()
            return Sample(wall_s, own_s + server_s)

        return measure


def run_job(name: str, *arguments: object) -> Sample:
    """Run a job of `child.py` once, in its own process."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as figures:
        command = [sys.executable, "-m", "tests.benchmarks.child", str(writer), name, *map(str, arguments)]
        try:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, pass_fds=[writer], cwd=ROOT)
        finally:
            os.close(writer)
        written = figures.read()
    if child.wait():
        raise RuntimeError(f"{name} ended with {child.returncode}")
    return Sample(**json.loads(written))


def run_program(command: tuple[str, ...], stdin: Path | None = None) -> tuple[float, float]:
    """How long a process took from start to end, and its processor time."""
    source: IO[bytes] | int = stdin.open("rb") if stdin else subprocess.DEVNULL
    began_s = time.perf_counter()
    # As installed: set, it would have the modules that changed compiled in each process.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    child = subprocess.Popen(command, stdin=source, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - began_s
    child.returncode = os.waitstatus_to_exitcode(status)
    if not isinstance(source, int):
        source.close()
    if child.returncode:
        raise RuntimeError(f"{command[0]} ended with {child.returncode}")
    return wall_s, usage.ru_utime + usage.ru_stime


def fill(server: Server, sessions: int) -> None:
    """Put sessions into an empty server, as if `set` had done so some time ago."""
    bare.send_all(server.url, (bare.packed(*words) for words in commands_to_fill(sessions)))
    assert server.raw.dbsize() == sessions


def commands_to_fill(sessions: int) -> Iterator[tuple[bytes, ...]]:
    """The commands that save that number of sessions."""
    keys = Keys(NAMESPACE)
    for number, session_id, age_ms in zip(range(sessions), bare.session_ids(), bare.ages_ms(), strict=False):
        left = b"%d" % (bare.MAX_AGE_MS - age_ms)
        yield b"SET", keys.session_id(bare.conversation(number)), session_id.encode(), b"PX", left


def redis_cli() -> str | None:
    """The path of `redis-cli`, or else of `valkey-cli`."""
    return shutil.which("redis-cli") or shutil.which("valkey-cli")
