"""`serve`: the embedded server in the foreground."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import value
from redis_sessions.cli.signals import until_asked_to_stop
from redis_sessions.errors import InvalidSettings

DEFAULT_PORT: Final = 6379
LOG_LINES: Final = 3


class Sync(StrEnum):
    """The server's policies for syncing its append-only file to disk."""

    always = "always"
    everysec = "everysec"
    no = "no"


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
AppendFsync = Annotated[
    Sync,
    value(
        "--appendfsync",
        "WHEN",
        "When saves are synced to disk: always, before they are acknowledged; everysec, each second; no, when the system "
        "decides. What a power cut loses: nothing; about a second; about half a minute.",
    ),
]
AclFile = Annotated[
    Path | None,
    value("--acl", "FILE", "Users and their permissions, as redis-sessions acl prints them.", exists=True, dir_okay=False),
]


def serve(
    *,
    directory: Directory = None,
    port: Port = None,
    socket: Socket = None,
    appendfsync: AppendFsync = Sync.always,
    acl: AclFile = None,
) -> int:
    """Run a Redis-compatible server (Valkey) in the foreground.

    Until Ctrl-C or SIGTERM. The first line on stdout is its URL. It listens only on 127.0.0.1 or a socket, and keeps its
    data (an append-only file) in DIR: what was acknowledged is there again after a restart, a crash or a power cut. It takes
    256 MB of memory, about 600,000 sessions; when that is full, it drops those that were unused longest. Without --acl
    every user of this machine that reaches the port may read and change it. It needs
    pip install 'redis-sessions[embedded]'.

    Examples:
      redis-sessions serve
      redis-sessions serve --dir ./data --port 0
      redis-sessions serve --socket /run/user/1000/sessions.sock
      redis-sessions acl --generate passwords && redis-sessions serve --acl passwords/users.acl
    """
    from redis_sessions.server import EmbeddedServer

    if port is not None and socket is not None:
        raise InvalidSettings("--port and --socket exclude each other", remedy="give one of them")
    directory = _absolute(directory or default_directory(), "directory")
    socket = socket and _absolute(socket, "socket")
    extra = {"appendfsync": appendfsync} | ({"aclfile": str(acl.absolute())} if acl else {})
    server = EmbeddedServer(directory=directory, port=DEFAULT_PORT if port is None else port, socket=socket, extra=extra)
    with until_asked_to_stop():
        with server:
            show.put(server.url, flush=True)
            users = f"users are those of {acl}; " if acl else ""
            show.complain(f"data is kept in {directory}; {users}stop with Ctrl-C or SIGTERM")
            status = server.wait()
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            show.complain(f"the server ended by itself, {how}; {directory / 'server.log'} ends: {_log_tail(directory)}")
        return exits.PARTLY
    return exits.DONE


def default_directory() -> Path:
    """Where data is kept by default: `redis-sessions` in the user's data directory, according to XDG."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        # The specification says to ignore relative paths.
        return (base if base.is_absolute() else Path.home() / ".local/share") / "redis-sessions"
    except RuntimeError:
        problem = "is missing, and this user has no home directory"
        raise InvalidSettings(problem, setting="--dir", remedy="give it") from None


def _absolute(path: Path, parameter: str) -> Path:
    try:
        return path.absolute()
    except OSError as error:  # the working directory was deleted
        problem = f"{path} can't be used ({error.strerror})"
        raise InvalidSettings(problem, setting=parameter, remedy="give an absolute path") from None


def _log_tail(directory: Path) -> str:
    try:
        lines = (directory / "server.log").read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        return str(error.strerror)
    return " / ".join([line for line in lines if line.strip()][-LOG_LINES:])
