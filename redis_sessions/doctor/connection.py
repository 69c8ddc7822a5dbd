"""What the doctor makes of who may come in, what they may do, and who can read it on the way."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

from redis_sessions.acl import words
from redis_sessions.doctor.findings import BROKEN, OK, WARNING, Outcome, seen
from redis_sessions.doctor.server import Node
from redis_sessions.errors import SessionStoreError

# What flushes, stops or reconfigures the server, or lists what others keep there.
_TOO_MUCH: Final = words(
    "@all @admin @dangerous @write @keyspace flushall flushdb config config|set shutdown debug module acl acl|setuser "
    "replicaof slaveof migrate swapdb failover monitor keys"
)
# What an append-only file holds of ours, and the categories of these commands.
_REPLAYED: Final = words(
    "set del unlink incr pexpire pexpireat multi exec select "
    "@all @write @keyspace @string @transaction @connection @fast @slow"
)


def place_of(address: str) -> str:
    """Where a server's own end of the connection is: "here", "private", "open", by CLIENT INFO's laddr."""
    host, _, port = address.rpartition(":")
    # Nobody listens on port 0: it stands behind the path of a unix socket, which Valkey puts in brackets as well.
    return "here" if port == "0" or address.lstrip("[").startswith("/") else _place_of_host(host)


def _place_of_host(host: str) -> str:
    host = host.strip("[]")
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "open"
    return "here" if ip.is_loopback else "private" if ip.is_private else "open"


def login(default: Mapping[str, Any], address: str, node: Node) -> Outcome:
    """Whether somebody may come in without a password."""
    remedy = "an ACL file by redis-sessions acl, which turns the default user off; or requirepass"
    if "on" not in default["flags"]:
        return OK, "the default user is off", None
    if "nopass" not in default["flags"]:
        return OK, "the default user needs a password", None
    place = place_of(address)
    if place != "here":
        who = "whoever is on its private network" if place == "private" else "anybody who reaches it"
        return WARNING if place == "private" else BROKEN, f"{who} gets in without a password", remedy
    bound = [word.removeprefix("-") for word in node.setting("bind").split()]
    if bound and all(_place_of_host(host) == "here" for host in bound):
        return OK, "no password, but on loopback only", None
    name, _, numbers = node.version()
    before_7 = name == "Redis" and numbers < (7,)
    if not bound and not before_7:
        return OK, "no password, but no address is listened on", None
    # Before Redis 7 no address means all of them, and only then does protected mode hold.
    if node.setting("protected-mode") == "yes" and not (before_7 and bound):
        return OK, "no password, but protected mode refuses other hosts", None
    return BROKEN, "other hosts get in without a password", remedy


def replay(default: Mapping[str, Any] | SessionStoreError, node: Node) -> Outcome:
    """Whether the server may read back what it wrote (redis/redis #14541, valkey-io/valkey #3983).

    That a restart loses it was seen on Redis 7.0.15 and 8.0.2, Valkey 8.1.1, 9.0.0 and 9.1.1; that it does not, on Redis
    6.2.5 and 8.6.3, and Valkey 9.1.2.
    """
    if not node.number("aof_enabled"):
        return OK, "no append-only file", None
    name, text, numbers = node.version()
    if numbers >= (9, 1, 2) if name == "Valkey" else not (7,) <= numbers < (8, 6):
        return OK, f"{name} {text} asks for no user's rights", None
    rules = seen(default)
    granted, *less = str(rules["commands"]).split()
    keys = [pattern.removeprefix("~") for pattern in rules["keys"]]
    if granted == "+@all" and "*" in keys and not {rule.lstrip("-") for rule in less} & _REPLAYED:
        return OK, "the default user may write all of it", None
    remedy = "redis-cli ACL SETUSER default ~* &* +@all, and the same in its ACL file, as redis-sessions acl prints it"
    may = f"only {rules['commands']} on keys {' '.join(keys)}" if "+" in str(rules["commands"]) and keys else "nothing"
    return BROKEN, f"the default user may do {may}: a restart may lose the rest", remedy


def rights(user: str, acl: Mapping[str, Any], namespace: str, *, clustered: bool) -> Outcome:
    """Whether the user may do more than a worker needs."""
    grants = [acl, *acl.get("selectors", ())]
    commands = {command for each in grants for command in _granted(str(each["commands"]))}
    excess = [f"+{rule}" for rule in sorted(commands & _TOO_MUCH)]
    if any(pattern.rpartition("~")[2] == "*" for each in grants for pattern in each["keys"]):
        excess.append("all keys")
    if not excess:
        return OK, f"user {user} is granted no more than it should be", None
    remedy = f"redis-sessions acl --namespace {namespace}{' --cluster' if clustered else ''}, and be its user worker"
    return WARNING, f"user {user} is granted {', '.join(excess)}", remedy


def _granted(rules: str) -> set[str]:
    granted: set[str] = set()
    for rule in rules.split():
        if rule == "-@all":
            granted.clear()
        elif rule.startswith("-"):
            granted.discard(rule[1:])
        else:
            granted.add(rule.removeprefix("+"))
    return granted


def tls(*, used: bool, address: str) -> Outcome:
    """Whether what is sent can be read on the way."""
    if used:
        return OK, "in use", None
    if place_of(address) == "here":
        return OK, "none, and the connection does not leave the machine", None
    return WARNING, "none: the network sees passwords and session IDs", "a server with tls-port, and rediss:// in the URL"
