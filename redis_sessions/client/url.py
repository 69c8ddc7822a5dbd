"""Parses the URLs of stores, without ever quoting one: a URL may hold a password.

`redis://[user:password@]host:port/db`, `rediss://…`, `unix://[user:password@]/path?db=0`,
`redis+sentinel://h1:p,h2:p/SERVICE/DB`, `redis+cluster://h1:p,h2:p`, the last two also as `rediss+…`. Options: `db` (unix);
`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (TLS). All others are refused: redis-py would let a URL turn off the check of
certificates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from redis_sessions.errors import InvalidSettings

PASSWORD_FILE_VARIABLE: Final = "REDIS_SESSIONS_PASSWORD_FILE"  # noqa: S105 - a name
Kind = Literal["standalone", "unix", "sentinel", "cluster"]

_SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# What Sentinel accepts as a name. Anything else may be part of a password with an unescaped slash.
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_SHAPES = (
    "redis://host:port/db, rediss://…, unix:///path?db=0, redis+sentinel://h1:p,h2:p/SERVICE/DB or redis+cluster://h1:p,h2:p"
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a store lives. Its repr shows no password."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()  # with their ports; empty for a unix socket
    path: str = ""  # of the unix socket
    database: int = 0
    service: str = ""  # name of the primary that Sentinel watches
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_files: Mapping[str, str] = field(default_factory=dict)  # CA, certificate and key by their redis-py names

    @property
    def address(self) -> str:
        """The server's name in errors, without user and password."""
        where = self.path or ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.service} behind {where}" if self.service else where


def parse(url: str, password: str | None = None) -> Target:
    """Parse a URL. Raises InvalidSettings, which says what is wrong and quotes nothing of the URL but option names.

    `password` is for a URL without one.
    """
    if url is None:
        raise InvalidSettings("the store's URL is None", remedy="check that the variable it comes from is set")
    if not isinstance(url, str):
        raise _refused(f"must be a str, not {type(url).__name__}")
    target = _parse(url)
    if password is None:
        return target
    if target.password is not None:
        raise _refused("has a password, and another one was given separately")
    return replace(target, password=password)


def read_password(file: Path | None) -> str | None:
    """The only line of a file, as containers are given one; None without. Raises InvalidSettings, which quotes nothing."""
    if file is None:
        return None
    remedy = f"name a file with the password in its only line, in {PASSWORD_FILE_VARIABLE} or --password-file"
    try:
        lines = file.read_text("utf-8-sig").splitlines()  # editors on Windows write a mark before the first character
    except OSError as error:
        raise InvalidSettings(f"{file} can't be read ({error.strerror})", remedy=remedy) from None
    except UnicodeDecodeError:
        raise InvalidSettings(f"{file} is not UTF-8", remedy=remedy) from None
    if len(lines) != 1 or not lines[0]:
        raise InvalidSettings(f"{file} has {len(lines)} lines, not one password", remedy=remedy)
    return lines[0]


def _parse(url: str) -> Target:
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise _refused("can't be parsed") from None
    if parts.scheme not in _SCHEMES:
        raise _refused("has an unknown scheme")
    if parts.fragment:
        raise _refused("has a part after '#'; in a password write it as %23")
    kind, tls = _SCHEMES[parts.scheme]
    allowed = _TLS_OPTIONS if tls else ("db",) if kind == "unix" else ()
    for option in options:
        if option not in allowed:
            # Behind an '@', what looks like an option may be the rest of a password.
            name = "an option" if "@" in parts.query else f"the option {option[:40]!r}"
            raise _refused(f"has {name}, which is not allowed there; in a password write '?' as %3F")
    login, _, location = parts.netloc.rpartition("@")
    user, password = (unquote(part) or None for part in login.partition(":")[::2])
    path = unquote(parts.path)
    if kind == "unix":
        if location or not path.startswith("/"):
            raise _refused("needs an absolute socket path after unix://")
        if "@" in parts.netloc and "@" in parts.path:
            raise _refused("has two '@'; in a password or path write '@' as %40")
        return Target(kind, path=path, database=_database(options.get("db", "")), username=user, password=password)
    hosts = tuple(_host(item, 26379 if kind == "sentinel" else 6379) for item in location.split(","))
    if kind == "standalone" and len(hosts) > 1:
        raise _refused("names more than one host; use redis+cluster:// or redis+sentinel://")
    segments = path.strip("/").split("/") if path.strip("/") else []
    service = segments.pop(0) if kind == "sentinel" and segments else ""
    if service and not _SERVICE.fullmatch(service):
        raise _refused(
            "names a service in characters that Sentinel doesn't allow; in a password write '/' as %2F and '@' as %40"
        )
    if kind == "sentinel" and not service:
        raise _refused("must name Sentinel's service: redis+sentinel://host:port/SERVICE")
    if len(segments) > 1:
        raise _refused("has more path than a database number")
    database = _database(segments[0] if segments else "")
    if kind == "cluster" and database:
        raise _refused("names a database, and redis-py's cluster client has only 0: use a namespace instead")
    return Target(
        kind,
        hosts=hosts,
        database=database,
        service=service,
        username=user,
        password=password,
        tls=tls,
        tls_files={name: options[name] for name in _TLS_OPTIONS if name in options},
    )


def _host(item: str, default_port: int) -> tuple[str, int]:
    host, port = item, ""
    if item.startswith("["):
        host, closed, rest = item[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise _refused("has an unfinished [address]")
        port = rest[1:]
    elif ":" in item:
        host, _, port = item.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise _refused("has a port that is not a number from 1 to 65535; in a password write '/' as %2F and '@' as %40")
    if not host:
        raise _refused("must name a host")
    return unquote(host), int(port or default_port)


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise _refused("names a database that is not a number")
    return int(text or 0)


def _refused(what: str) -> InvalidSettings:
    return InvalidSettings(f"the store's URL {what}", remedy=f"write {_SHAPES}")
