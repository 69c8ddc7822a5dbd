"""Parses the URLs of stores, without ever quoting one: a URL may hold a password.

`redis://[user:password@]host:port/db`, `rediss://…`, `unix://[user:password@]/path?db=0`,
`redis+sentinel://h1:p,h2:p/SERVICE/DB`, `redis+cluster://h1:p,h2:p`, the last two also as `rediss+…`. Options: `db` (unix);
`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (TLS); `sentinel_username`, `sentinel_password`, `sentinel_password_file`
(Sentinel). All others are refused: redis-py would let a URL turn off the check of certificates.
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
_OPTIONS: Mapping[Kind, tuple[str, ...]] = {
    "unix": ("db",),
    "sentinel": ("sentinel_username", "sentinel_password", "sentinel_password_file"),
}
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# What Sentinel accepts as a name. Anything else may be part of a password with an unescaped slash.
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
# How a URL of each kind is written, behind its scheme and "://".
_SHAPES: Mapping[Kind, str] = {
    "standalone": "HOST:6379/0",
    "unix": "/PATH?db=0",
    "sentinel": "HOST:26379,HOST:26379/SERVICE/0",
    "cluster": "HOST:6379,HOST:6379",
}
# Schemes that other programs use, each with what it is here.
_FOREIGN: Mapping[str, str] = {
    **dict.fromkeys(("http", "tcp", "valkey"), "redis"),
    **dict.fromkeys(("https", "valkeys", "redis+ssl", "redis+tls"), "rediss"),
    "redis+socket": "unix",
    **dict.fromkeys(("sentinel", "redis-sentinel"), "redis+sentinel"),
    **dict.fromkeys(("cluster", "redis-cluster"), "redis+cluster"),
}
_ESCAPES = "in a password write '/' as %2F and '@' as %40"


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
    sentinel_username: str | None = None  # for the sentinels, which never get user and password of the primary
    sentinel_password: str | None = field(default=None, repr=False)
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
        raise InvalidSettings("is None", setting="url", remedy="check that the variable it comes from is set")
    if not isinstance(url, str):
        raise _refused(f"must be a str, not {type(url).__name__}")
    target = _parse(url)
    if password is None:
        return target
    if not isinstance(password, str):
        raise InvalidSettings(f"must be a str, not {type(password).__name__}", setting="password", remedy="pass text")
    if target.password is not None:
        raise InvalidSettings(
            "has a password, and another one was given separately", setting="url", remedy="give one of them"
        )
    return replace(target, password=password)


def read_password(file: Path | None, option: str | None = None) -> str | None:
    """The only line of a file, as containers are given one; None without. `option`: that of a URL which names the file.

    Raises InvalidSettings, which quotes nothing of the file nor of the URL.
    """
    if file is None:
        return None
    remedy = "name a file with the password in its only line"

    def refused(why: str) -> InvalidSettings:
        if option:
            return InvalidSettings(f"names a file in {option} that {why}", setting="url", remedy=remedy)
        return InvalidSettings(f"{file} {why}", setting="password_file", remedy=remedy)

    try:
        lines = file.read_text("utf-8-sig").splitlines()  # editors on Windows write a mark before the first character
    except OSError as error:
        raise refused(f"can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise refused("is not UTF-8") from None
    except ValueError:  # a zero byte in its name
        raise refused("can't be read (not a path)") from None
    if len(lines) != 1 or not lines[0]:
        raise refused(f"has {len(lines)} lines, not one password")
    return lines[0]


def _parse(url: str) -> Target:
    scheme, kind, tls = _scheme(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        what = "an [address] without its end" if url.count("[") != url.count("]") else "a host that can't be read"
        raise _refused(f"has {what}", scheme) from None
    try:
        # A '+' is one, as everywhere else in a URL.
        query = parts.query.replace("+", "%2B")
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise _refused("has an option without '='", scheme) from None
    if parts.fragment:
        raise _refused("has a part after '#'; in a password write it as %23", scheme)
    allowed = (_TLS_OPTIONS if tls else ()) + _OPTIONS.get(kind, ())
    for option in options:
        if option not in allowed:
            # Behind an '@', or Sentinel's password, what looks like an option may be the rest of a password.
            secret = "sentinel_password" in options or "@" in parts.query
            name = "an option" if secret else f"the option {option[:40]!r}"
            hint = "; in a password write '?' as %3F and '&' as %26" if secret or "@" in url else ""
            raise _refused(f"has {name}, which is not allowed there{hint}", scheme)
    login, _, location = parts.netloc.rpartition("@")
    # Without an '@' there is no password that could be cut in two, so the hint would mislead.
    hint = f"; {_ESCAPES}" if "@" in url else ""
    user, password = (unquote(part) or None for part in login.partition(":")[::2])
    path = unquote(parts.path)
    if kind == "unix":
        if location or not path.startswith("/"):
            raise _refused("must have an absolute path of a socket after unix://", scheme)
        if "@" in parts.netloc and "@" in parts.path:
            raise _refused("has two '@'; in a password or path write '@' as %40", scheme)
        return Target(kind, path=path, database=_database(options.get("db", ""), scheme), username=user, password=password)
    hosts = tuple(_host(item, scheme, hint) for item in location.split(","))
    if kind == "standalone" and len(hosts) > 1:
        raise _refused("names more than one host", "redis+cluster", "redis+sentinel")
    segments = path.strip("/").split("/") if path.strip("/") else []
    service = segments.pop(0) if kind == "sentinel" and segments else ""
    if service and not _SERVICE.fullmatch(service):
        raise _refused(f"names a service in characters that Sentinel doesn't allow{hint}", scheme)
    if kind == "sentinel" and not service:
        raise _refused("must name Sentinel's service", scheme)
    if len(segments) > 1:
        raise _refused(f"has more path than a database number{hint}", scheme)
    database = _database(segments[0] if segments else "", scheme)
    if kind == "cluster" and database:
        raise _refused("names a database, and redis-py's cluster client has only 0: use a namespace instead", scheme)
    sentinel_password, file = options.get("sentinel_password") or None, options.get("sentinel_password_file")
    if file and sentinel_password:
        raise _refused("has sentinel_password and sentinel_password_file, of which one is needed", scheme)
    return Target(
        kind,
        hosts=hosts,
        database=database,
        service=service,
        username=user,
        password=password,
        sentinel_username=options.get("sentinel_username") or None,
        sentinel_password=read_password(Path(file), "sentinel_password_file") if file else sentinel_password,
        tls=tls,
        tls_files={name: options[name] for name in _TLS_OPTIONS if name in options},
    )


def _scheme(url: str) -> tuple[str, Kind, bool]:
    """The scheme, what kind of server it is for, and whether it means TLS."""
    if url != url.strip():
        raise InvalidSettings("begins or ends with a space", setting="url", remedy="remove it")
    before, found, _ = url.partition("://")
    scheme = before.lower()
    if found and scheme in _SCHEMES:
        return scheme, *_SCHEMES[scheme]
    if not found:
        named = next((known for known in _SCHEMES if scheme.startswith((f"{known}:", f"{known}/"))), None)
        raise _refused(f"has no :// after {named}", named) if named else _refused("has no scheme")
    if meant := _FOREIGN.get(scheme):
        raise _refused(f"begins with {scheme}://", meant)
    from difflib import get_close_matches  # noqa: PLC0415 - takes a millisecond, for an error only

    # One that resembles none of ours may be anything, such as a password, and isn't shown.
    near = get_close_matches(scheme, _SCHEMES, 1, 0.7) if re.fullmatch(r"[a-z+-]+", scheme) else ()
    raise _refused(f"has the unknown scheme {scheme}://", *near) if near else _refused("has an unknown scheme")


def _host(item: str, scheme: str, hint: str) -> tuple[str, int]:
    host, port = item, ""
    if item.startswith("["):
        host, closed, rest = item[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise _refused("has an [address] without its end", scheme)
        port = rest[1:]
    elif ":" in item:
        host, _, port = item.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise _refused(f"has a port that is not a number from 1 to 65535{hint}", scheme)
    if not host:
        raise _refused("names no host", scheme)
    return unquote(host), int(port or (26379 if _SCHEMES[scheme][0] == "sentinel" else 6379))


def _database(text: str, scheme: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise _refused("names a database that is not a number", scheme)
    return int(text or 0)


def _refused(what: str, *schemes: str) -> InvalidSettings:
    """The error, with how a URL of these schemes is written; without any, of every kind."""
    kinds = {scheme: _SCHEMES[scheme][0] for scheme in schemes or ("redis", "unix", "redis+sentinel", "redis+cluster")}
    shapes = [f"{scheme}://{_SHAPES[kind]}" for scheme, kind in kinds.items()]
    return InvalidSettings(what, setting="url", remedy=f"write {' or '.join(shapes)}")
