"""`serve`: the embedded server in the foreground."""

import os
from pathlib import Path
from typing import Annotated, Final

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import value
from redis_sessions.cli.signals import until_asked_to_stop
from redis_sessions.errors import InvalidSettings

DEFAULT_PORT: Final = 6379
LOG_LINES: Final = 3

Directory = Annotated[
    Path | None,
    value(
        "--dir",
        "DIR",
        "Where data is kept; created if missing, refused if other users may enter it.",
        show_default="redis-sessions in $XDG_DATA_HOME or ~/.local/share",
    ),
]
Port = Annotated[
    int | None,
    value("--port", "N", "TCP port on 127.0.0.1; 0 for a free one.", min=0, max=65_535, show_default=str(DEFAULT_PORT)),
]
Socket = Annotated[Path | None, value("--socket", "PATH", "Listen on this unix socket instead of TCP.")]


def serve(*, directory: Directory = None, port: Port = None, socket: Socket = None) -> int:
    """Run a Redis-compatible server (Valkey) in the foreground.

    Until Ctrl-C or SIGTERM. The first line on stdout is its URL. It listens only on 127.0.0.1 or a socket, and keeps its
    data (an append-only file) in DIR: what was acknowledged is there again after a restart. It needs
    pip install 'redis-sessions[embedded]'.

    Examples:
      redis-sessions serve
      redis-sessions serve --dir ./data --port 0
      redis-sessions serve --socket /run/user/1000/sessions.sock
    """
    from redis_sessions.server import EmbeddedServer

    if port is not None and socket is not None:
        raise InvalidSettings("--port and --socket exclude each other", remedy="give one of them")
    directory = (directory or default_directory()).absolute()
    server = EmbeddedServer(directory=directory, port=DEFAULT_PORT if port is None else port, socket=socket)
    with until_asked_to_stop():
        with server:
            show.put(server.url, flush=True)
            show.complain(f"data is kept in {directory}; stop with Ctrl-C or SIGTERM")
            status = server.wait()
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            show.complain(f"the server ended by itself, {how}; {directory / 'server.log'} ends: {_log_tail(directory)}")
        return exits.PARTLY
    return exits.DONE


def default_directory() -> Path:
    """Where data is kept by default: `redis-sessions` in the user's data directory, according to XDG."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    # The specification says to ignore relative paths.
    return (base if base.is_absolute() else Path.home() / ".local/share") / "redis-sessions"


def _log_tail(directory: Path) -> str:
    try:
        lines = (directory / "server.log").read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        return str(error.strerror)
    return " / ".join([line for line in lines if line.strip()][-LOG_LINES:])
