"""The command line `redis-sessions`. Only here is the environment read and anything printed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys

_MISSING = "redis-sessions: the command line needs typer and rich: pip install 'redis-sessions[cli]'"
_BARE_HELP = """Usage: redis-sessions [OPTIONS] COMMAND …

  Session IDs of agents' conversations, kept in Redis for many workers.

  The library is installed; the commands come with the extra cli:
    pip install 'redis-sessions[cli]'

Exit codes:
  0  done
  2  what was given can't be used
"""


def main() -> None:
    """Run the command line on `sys.argv`, and exit with one of the codes in `exits.py`."""
    # Rich is imported late, and must not be found missing halfway.
    if not all(map(importlib.util.find_spec, ("typer", "rich"))):
        asked = not {"-h", "--help"}.isdisjoint(sys.argv[1:2])
        with contextlib.suppress(OSError, AttributeError):
            (sys.stdout if asked else sys.stderr).write(_BARE_HELP if asked else f"{_MISSING}\n")
        sys.exit(0 if asked else 2)
    try:
        from redis_sessions.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    for stream in (sys.stdout, sys.stderr):
        # A key may hold any character, and the locale's encoding only some.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
