"""The command line `redis-sessions`. Only this package and the demo read the environment and print."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import signal
import sys

_MISSING = "redis-sessions: the command line needs typer and rich: pip install 'redis-sessions[cli]'"
_BARE_HELP = """Usage: redis-sessions [OPTIONS] COMMAND [ARGS]...

  Session IDs of agents' conversations, kept in Redis for many workers.

  The library is installed; the commands need the extra "cli":
    pip install 'redis-sessions[cli]'

Exit codes:
  0  done
  2  what was given can't be used
"""


def main() -> None:
    """Run the command line on `sys.argv`, and exit with one of the codes in `exit_codes.py`."""
    # Rich is imported late: a missing one must be reported now, not in the middle of a command.
    if not all(map(importlib.util.find_spec, ("typer", "rich"))):
        asked = not {"-h", "--help"}.isdisjoint(sys.argv[1:2])
        with contextlib.suppress(OSError, AttributeError):
            (sys.stdout if asked else sys.stderr).write(_BARE_HELP if asked else f"{_MISSING}\n")
        sys.exit(0 if asked else 2)
    # What is imported makes many objects, and hardly any garbage: to look for it was a tenth of the time of a short command.
    gc.set_threshold(100_000)
    # Where it is ignored, as a parent may leave it, the exit code of every child would be 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        from redis_sessions.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    for stream in (sys.stdout, sys.stderr):
        # A key may contain any character, and the locale's encoding may lack it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
