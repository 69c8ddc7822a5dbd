"""Runs many command lines in one process that forks, so that Python starts and imports once. No tests.

stdin: a line of JSON each: {"argv", "env", "directory"}. In each directory: `in` is read, `out` and `err` are written.
stdout: a line with the exit code each, in order.
"""

from __future__ import annotations

import json
import os
import sys

from redis_sessions.cli import main
from redis_sessions.cli.run.command import run  # noqa: F401 - imported before the fork
from redis_sessions.store import SessionStore  # noqa: F401


def play(argv: list[str], env: dict[str, str], directory: str) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()
        os.environ.update(env)
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(f"{directory}/{name}", os.O_CREAT | os.O_RDWR, 0o600), number)
        sys.argv = ["redis-sessions", *argv]
        code: object = 70
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 71)
    return child


def waited(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    cases = [json.loads(line) for line in sys.stdin]
    for first in range(0, len(cases), 4):
        children = [play(**case) for case in cases[first : first + 4]]
        for child in children:
            print(waited(child), flush=True)
