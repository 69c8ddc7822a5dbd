"""Access lists of least privilege: three users of one or more namespaces, each granted what its operations send, no more.

| user   | for                                                    | may write |
| ------ | ------------------------------------------------------ | --------- |
| worker | conversations: get, set, delete, leases, counters, run | yes       |
| report | the scans: report, list, export; reads counters        | no        |
| admin  | all of these, import, retime, and most of the doctor   | yes       |

HELLO and AUTH are open to all. What a list grants holds inside scripts as well: who may run a script gains no command
and no key by it, but can keep the server busy with one. SCAN is bound to no pattern: whoever scans sees the names of
other keys on that server, never their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from redis_sessions.settings import StoreSettings

__all__ = ["acl_lines"]


class User(NamedTuple):
    """One kind of user.

    Attributes:
        commands: granted everywhere.
        alone: granted besides on a server by itself.
        on_cluster: granted besides where the keys are spread over a cluster.
        keys: what follows `ns:` in the names of its keys, as patterns.
        writes: whether it may change them.
    """

    commands: frozenset[str]
    alone: frozenset[str]
    on_cluster: frozenset[str]
    keys: tuple[str, ...]
    writes: bool


def words(text: str) -> frozenset[str]:
    """Names of commands and categories."""
    return frozenset(text.split())


# PING is the client's health check; SELECT goes where a URL names a database, of which a cluster has none.
_ALWAYS: Final = words("ping eval evalsha get pttl")
_ALONE: Final = words("select")
_SCAN_ALONE: Final = words("mget")
_CONVERSE: Final = words("set del pexpire incr")
_SCAN: Final = words("scan time dbsize info|server")
_IMPORT: Final = words("set exists time")
# All of the doctor's but CONFIG GET and ACL GETUSER: these show passwords, or their hashes.
_LOOK: Final = words("info client|info")
_LOOK_ROUTE: Final = words("cluster|info")
# COMMAND tells redis-py where the keys of a command stand; ASKING follows a slot that is moving.
_ROUTE: Final = words("command cluster|slots asking")
_SCAN_ROUTE: Final = words("cluster|nodes getrange")

USERS: Final[Mapping[str, User]] = {
    "worker": User(_ALWAYS | _CONVERSE, _ALONE, _ROUTE, ("*",), writes=True),
    "report": User(_ALWAYS | _SCAN, _ALONE | _SCAN_ALONE, _ROUTE | _SCAN_ROUTE, ("id:*", "counter:*"), writes=False),
    # A command that changes or inspects more than conversations adds here what it sends.
    "admin": User(
        (_ALWAYS | _CONVERSE | _SCAN | _IMPORT | _LOOK) - {"info|server"},
        _ALONE | _SCAN_ALONE,
        _ROUTE | _SCAN_ROUTE | _LOOK_ROUTE,
        ("*",),
        writes=True,
    ),
}


def acl_lines(
    namespaces: str | Sequence[str] = "sessions",
    *,
    password_hashes: Mapping[str, str] | None = None,
    cluster: bool = False,
    read_only_keys: bool = True,
) -> list[str]:
    """The lines of an ACL file: the default user off, then `worker`, `report` and `admin`.

    Args:
        namespaces: of the keys, one or several.
        password_hashes: SHA-256 in hexadecimal, by user; a user without one is off.
        cluster: whether the server is a node of a cluster.
        read_only_keys: False for Redis 6.2, which knows no key pattern for reading alone. There it is by its commands
            that the report can't write.

    Raises InvalidSettings for a namespace that a store would not take.
    """
    # No namespace that passes holds a glob, a space, or a line's end.
    names = (namespaces,) if isinstance(namespaces, str) else namespaces
    prefixes = [StoreSettings(namespace=name).namespace for name in names]
    # Nobody can log in as it. Its rights stay, for as this user many servers read their append-only file (`access.replay`):
    # without them they drop, at a restart, all that a script wrote by more than one command, and so every leased save.
    lines = ["user default off resetpass ~* &* +@all"]
    for name, user in USERS.items():
        password_hash = (password_hashes or {}).get(name)
        access = f"on #{password_hash}" if password_hash else "off"
        mark = "~" if user.writes or not read_only_keys else "%R~"
        keys = " ".join(f"{mark}{prefix}:{pattern}" for prefix in prefixes for pattern in user.keys)
        commands = user.commands | (user.on_cluster if cluster else user.alone)
        grants = " ".join(f"+{command}" for command in sorted(commands))
        lines.append(f"user {name} {access} {keys} resetchannels -@all {grants}")
    return lines
