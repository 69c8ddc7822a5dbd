"""The command line `redis-sessions`. Only here is the environment read and anything printed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys

_MISSING = "redis-sessions: the command line needs typer and rich: pip install 'redis-sessions[cli]'"


def main() -> None:
    """Run the command line on `sys.argv`, and exit with one of the codes in `exits.py`."""
    # Rich is imported late, and must not be found missing halfway.
    if not all(map(importlib.util.find_spec, ("typer", "rich"))):
        with contextlib.suppress(OSError, AttributeError):
            sys.stderr.write(f"{_MISSING}\n")
        sys.exit(2)
    try:
        from redis_sessions.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    for stream in (sys.stdout, sys.stderr):
        # A key may hold any character, and the locale's encoding only some.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
