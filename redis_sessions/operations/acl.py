"""Access lists of least privilege: three users for one or more namespaces, each with the commands it needs and no others.

| user   | for                                                     | may write |
| ------ | ------------------------------------------------------- | --------- |
| worker | conversations: get, set, delete, leases, counters, run  | yes       |
| report | the scans: report, list, leases, export; peek; counters | no        |
| admin  | all of these, import, retime, and most of the doctor    | yes       |

HELLO and AUTH are open to all. The list also applies inside scripts: a user that may run scripts gains no command and no
key by them, but can keep the server busy. SCAN has no pattern: a user that scans sees the names of other keys on that
server, never their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from redis_sessions.settings import StoreSettings

__all__ = ["acl_lines"]


class User(NamedTuple):
    """One kind of user, and the commands it is granted."""

    commands: frozenset[str]  # everywhere
    alone: frozenset[str]  # also on a single server
    on_cluster: frozenset[str]  # also on a cluster
    keys: tuple[str, ...]  # patterns of what follows `ns:` in the names of its keys
    writes: bool  # whether it may change them


def words(text: str) -> frozenset[str]:
    """Names of commands and categories."""
    return frozenset(text.split())


# PING is the client's health check; SELECT is sent if the URL names a database, which a cluster doesn't have.
_ALWAYS: Final = words("ping get pttl")
_SCRIPTS: Final = words("eval evalsha")
_ALONE: Final = words("select")
_SCAN_ALONE: Final = words("mget")
_CONVERSE: Final = words("set del pexpire incr time hget hmget hset hdel hincrby")
_SCAN: Final = words("scan time dbsize hget hmget info|server")
_READ: Final = ("id:*", "record:*", "lease:*", "counter:*", "settings")
# A script that names keys that its user may only read. Redis 6.2 has neither.
_READ_ONLY: Final = words("eval_ro")
_IMPORT: Final = words("set exists time")
# What the doctor sends, without CONFIG GET and ACL GETUSER: these show passwords, or their hashes.
_LOOK: Final = words("info client|info")
_LOOK_ROUTE: Final = words("cluster|info")
# By COMMAND redis-py knows which arguments are keys; ASKING follows a slot that is being migrated.
_ROUTE: Final = words("command cluster|slots asking")
_SCAN_ROUTE: Final = words("cluster|nodes getrange")

USERS: Final[Mapping[str, User]] = {
    "worker": User(_ALWAYS | _SCRIPTS | _CONVERSE, _ALONE, _ROUTE, ("*",), writes=True),
    "report": User(
        _ALWAYS | _SCAN,
        _ALONE | _SCRIPTS | _SCAN_ALONE | _READ_ONLY,
        _ROUTE | _SCAN_ROUTE,
        _READ,
        writes=False,
    ),
    # Commands that change or inspect more than conversations add here what they send.
    "admin": User(
        (_ALWAYS | _SCRIPTS | _CONVERSE | _SCAN | _IMPORT | _LOOK) - {"info|server"},
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
    replicas: bool = False,
) -> list[str]:
    """The lines of an ACL file: the default user off, then `worker`, `report` and `admin`.

    Args:
        namespaces: of the keys, one or several.
        password_hashes: SHA-256 in hexadecimal, by user; a user without one is off.
        cluster: whether the server is a node of a cluster.
        replicas: whether saves wait for replicas (`StoreSettings(replicas=…)`), for which users that write are granted WAIT.
        read_only_keys: False for Redis 6.2, which has no read-only key patterns. There only its list of commands keeps
            user report from writing.

    Raises InvalidSettings for a namespace that a store would not take.
    """
    # A namespace that StoreSettings accepts contains no glob, space or line break.
    names = (namespaces,) if isinstance(namespaces, str) else namespaces
    prefixes = [StoreSettings(namespace=name).namespace for name in names]
    # Nobody can log in as it. It keeps its permissions because many servers load their append-only file as this user (see
    # the doctor's check `replay`): without them a restart drops what a script wrote by more than one command: leased saves.
    lines = ["user default off resetpass ~* &* +@all"]
    for name, user in USERS.items():
        password_hash = (password_hashes or {}).get(name)
        access = f"on #{password_hash}" if password_hash else "off"
        mark = "~" if user.writes or not read_only_keys else "%R~"
        keys = " ".join(f"{mark}{prefix}:{pattern}" for prefix in prefixes for pattern in user.keys)
        commands = user.commands | (user.on_cluster if cluster else user.alone)
        commands |= words("wait") if replicas and user.writes else frozenset()
        commands -= frozenset() if read_only_keys else _READ_ONLY
        grants = " ".join(f"+{command}" for command in sorted(commands))
        lines.append(f"user {name} {access} {keys} resetchannels -@all {grants}")
    return lines
