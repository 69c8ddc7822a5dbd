"""Runs one job in its own process: `python -m tests.benchmarks.child DESCRIPTOR JOB ARGUMENT…`.

The result, a Sample, goes to the descriptor as JSON. Only the job is timed, not the start of Python; a command line is timed
with its imports.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _report(url: str) -> Callable[[], int]:
    store = _store(url)
    return lambda: store.report().live


def _sessions(url: str) -> Callable[[], int]:
    store = _store(url)
    return lambda: sum(1 for _ in store.sessions())


def _floor(url: str) -> Callable[[], int]:
    """SCAN and PTTL by the shortest script."""
    from tests.benchmarks import bare

    client = bare.client(url)
    sha = client.script_load(bare.SCAN_PTTL)

    def job() -> int:
        cursor, found = b"0", 0
        while True:
            cursor, keys, _ = client.execute_command("EVALSHA", sha, 0, cursor, bare.COUNT)
            found += len(keys)
            if cursor == b"0":
                return found

    return job


def _scan(url: str) -> Callable[[], int]:
    """SCAN alone."""
    from tests.benchmarks import bare

    client = bare.client(url)
    client.ping()

    def job() -> int:
        cursor, found = 0, 0
        while True:
            cursor, keys = client.scan(cursor, count=bare.COUNT)
            found += len(keys)
            if cursor == 0:
                return found

    return job


def _pipelined(url: str, pages: str) -> Callable[[], int]:
    """SCAN, then PTTL of each key in a pipeline, for `pages` pages."""
    from tests.benchmarks import bare

    client = bare.client(url)
    client.ping()

    def job() -> int:
        cursor, found = 0, 0
        for _ in range(int(pages)):
            cursor, keys = client.scan(cursor, count=bare.COUNT)
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.pttl(key)
            found += len(pipeline.execute())
            if cursor == 0:
                break
        return found

    return job


def _one_by_one(url: str, count: str) -> Callable[[], int]:
    """SCAN, then PTTL of each of `count` keys in its own round trip."""
    from tests.benchmarks import bare

    client = bare.client(url)
    _, keys = client.scan(0, count=int(count))
    return lambda: sum(1 for key in keys if client.pttl(key) is not None)


def _packed(url: str, path: str) -> Callable[[], int]:
    """What `redis-cli --pipe` does: send packed commands from a file."""
    import threading

    from tests.benchmarks import bare

    connection = bare.connected(url)

    def send() -> None:
        with Path(path).open("rb") as commands:
            while piece := commands.read(1 << 16):
                connection.sendall(piece)
            connection.sendall(bare.packed(b"ECHO", b"end"))

    def job() -> int:
        threading.Thread(target=send).start()
        lines = 0
        with connection.makefile("rb") as replies:
            for line in replies:
                lines += 1
                if line == b"end\r\n":
                    return lines - 2
        raise ConnectionError("the server closed the connection")

    return job


def _command_line(*arguments: str) -> Callable[[], int]:
    def job() -> int:
        from redis_sessions.cli import main

        sys.argv = ["redis-sessions", *arguments]
        try:
            main()
        except SystemExit as done:
            if done.code:
                raise
        sys.stdout.flush()
        return 0

    return job


JOBS: dict[str, Callable[..., Callable[[], int]]] = {
    "report": _report,
    "sessions": _sessions,
    "floor": _floor,
    "scan": _scan,
    "pipelined": _pipelined,
    "one-by-one": _one_by_one,
    "packed": _packed,
    "command-line": _command_line,
}


def main() -> None:
    """Run the job that the command line names."""
    descriptor, name, *arguments = sys.argv[1:]
    job = JOBS[name](*arguments)
    cpu_s, began_s = time.process_time(), time.perf_counter()
    done = job()
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    with os.fdopen(int(descriptor), "w") as figures:
        json.dump({"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": _peak_bytes(), "done": done}, figures)


def _peak_bytes() -> int:
    try:
        # Preferred to getrusage, whose figure includes the memory of the parent process at the time of the fork.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _store(url: str) -> Any:
    from redis_sessions import SessionStore

    store = SessionStore.from_url(url)
    store.get("ready")
    return store


if __name__ == "__main__":
    main()
