"""Checks of the connection: Sentinel, who may log in and do what, TLS, latency, clocks, and the client itself."""

from __future__ import annotations

import ipaddress
import time
from statistics import median
from typing import Final

from redis_sessions.doctor.findings import BROKEN, OK, WARNING, Outcome, check
from redis_sessions.doctor.server import Examination, Fields, Server, named, number, text, unanswered
from redis_sessions.errors import AccessDenied, CommandRefused, SessionStoreError, is_away
from redis_sessions.operations.acl import words
from redis_sessions.operations.command import Command, Op, Script
from redis_sessions.operations.text import duration

SLOW_MS: Final = 50
CLOCK_MS: Final = 1_000
# Which of these commands are unknown. Called without arguments: none but TIME does anything.
_UNKNOWN: Final = Script("""
local unknown = {}
for _, name in ipairs(ARGV) do
  local reply = redis.pcall(name)
  if type(reply) == 'table' and reply.err and string.find(tostring(reply.err), 'nknown', 1, true) then
    unknown[#unknown + 1] = name
  end
end
return unknown
""")
# What the scripts of a turn call.
_IN_SCRIPTS: Final = ("GET", "SET", "DEL", "INCR", "HGET", "HMGET", "HSET", "HDEL", "HINCRBY", "PTTL", "PEXPIRE", "TIME")
_RENAMED: Final = "allow it in the settings of the server (rename-command)"
ROUND_TRIPS: Final = 5
# Permissions to flush, stop or reconfigure the server, or to list what others keep there.
_TOO_MUCH: Final = words(
    "@all @admin @dangerous @write @keyspace flushall flushdb config config|set shutdown debug module acl acl|setuser "
    "replicaof slaveof migrate swapdb failover monitor keys"
)
# The commands of ours that an append-only file contains, and the categories they are in.
_REPLAYED: Final = words(
    "set del unlink incr pexpire pexpireat multi exec select "
    "@all @write @keyspace @string @transaction @connection @fast @slow"
)


@check("sentinel", why="without a quorum a lost primary is not replaced")
def sentinel(about: Examination) -> Outcome:
    total, lacking = len(about.quorums), [each for each in about.quorums if isinstance(each, SessionStoreError)]
    fix = "start the sentinels that are down, or remove those that are gone from the URL"
    if any(isinstance(answer, CommandRefused) for answer in lacking):
        return BROKEN, "no quorum for a failover", fix
    if len(lacking) == total:
        raise lacking[0]
    if lacking:
        return WARNING, f"{len(lacking)} of {total} can't be reached", fix
    return OK, f"{total} of {total} see a quorum", None


@check("commands", why="a command that is removed, renamed or over a quota makes every turn run fresh, and nothing is saved")
def commands(about: Examination) -> Op[Outcome]:
    """Whether the server, or a proxy before it, takes what the operations send. SELECT was sent before any of these."""
    refused, denied, unknown = dict[str, CommandRefused](), list[AccessDenied](), list[str]()
    redis_key = about.keys.lease("redis-sessions doctor").decode()
    # A proxy needs a key to choose a server by; on a cluster that key may belong to another node.
    called = (*(("1", redis_key) if about.server.handle is None else ("0",)), *_IN_SCRIPTS)
    scripts = (("EVAL", _UNKNOWN.source, *called), ("EVALSHA", _UNKNOWN.sha, *called))
    for asked in (*scripts, ("TIME",), ("SCAN", "0", "MATCH", redis_key), ("INFO",)):
        try:
            reply = yield from about.server.ask(*asked)
        except CommandRefused as error:
            # Without EVAL no script is there for EVALSHA, which then says so.
            if not error.message.endswith("(NOSCRIPT)"):
                refused[asked[0]] = error
        except AccessDenied as error:
            denied.append(error)
        else:
            if asked in scripts:
                unknown = [text(name) for name in reply]
                refused |= {name: CommandRefused(f"scripts can't call {name}", remedy=_RENAMED) for name in unknown}
    if not refused:
        if denied:
            raise denied[0]
        return OK, "scripts, TIME, SCAN and INFO are not refused", None
    first = next(iter(refused.values()))
    also = "".join(f"; {name} is refused, too" for name in list(refused)[1:])
    # A scan needs all of them, a turn only scripts and what they call.
    harms_turns = unknown or refused.keys() & {"EVAL", "EVALSHA"}
    return BROKEN if harms_turns else WARNING, f"{first.message}{also}", first.remedy


@check("login", why="anyone who can log in may read, change and flush")
def login(about: Examination) -> Op[Outcome]:
    fix = "an ACL file by redis-sessions acl, which turns the default user off; or requirepass"
    flags = (yield from _user(about.server, "default"))[0]
    if "on" not in flags:
        return OK, "the default user is off", None
    if "nopass" not in flags:
        return OK, "the default user needs a password", None
    place = place_of((yield from _client_info(about.server))["laddr"])
    if place == "private":
        return WARNING, "anyone on its private network can log in without a password", fix
    if place == "open":
        return BROKEN, "anyone who reaches it can log in without a password", fix
    bound = [word.removeprefix("-") for word in (yield from about.server.setting("bind")).split()]
    if bound and all(place_of(f"{host}:6379") == "here" for host in bound):
        return OK, "no password, but on loopback only", None
    if not number((yield from about.server.setting("port"))) and not (yield from _tls_port(about.server)):
        return OK, "no password, but it listens on a unix socket only", None
    name, _, numbers = yield from about.server.version()
    before_7 = name == "Redis" and numbers < (7,)
    if not bound and not before_7:
        return OK, "no password, but it listens on no address", None
    # Before Redis 7 no address means all of them, and only then is protected mode in force.
    if (yield from about.server.setting("protected-mode")) == "yes" and not (before_7 and bound):
        return OK, "no password, but protected mode refuses other hosts", None
    return BROKEN, "other hosts can log in without a password", fix


@check("replay", why="many servers load their append-only file as the default user, and drop saves that it may not make")
def replay(about: Examination) -> Op[Outcome]:
    """Whether the server may read back what it wrote (redis/redis #14541, valkey-io/valkey #3983).

    That a restart loses it was seen on Redis 7.0.15 and 8.0.2, Valkey 8.1.1, 9.0.0 and 9.1.1; that it does not, on Redis
    6.2.5 and 8.6.3, and Valkey 9.1.2.
    """
    if not number((yield from about.server.info())["aof_enabled"]):
        return OK, "no append-only file", None
    name, version, numbers = yield from about.server.version()
    if numbers >= (9, 1, 2) if name == "Valkey" else not (7,) <= numbers < (8, 6):
        return OK, f"{name} {version} loads it with all permissions", None
    rules, patterns = (yield from _user(about.server, "default"))[1][0]
    granted, *less = rules.split()
    keys = [pattern.removeprefix("~") for pattern in patterns]
    if granted == "+@all" and "*" in keys and not {rule.lstrip("-") for rule in less} & _REPLAYED:
        return OK, "the default user may write all of it", None
    may = f"only {rules} on keys {' '.join(keys)}" if "+" in rules and keys else "nothing"
    fix = "redis-cli ACL SETUSER default ~* &* +@all, and the same in its ACL file, as redis-sessions acl prints it"
    return BROKEN, f"the default user may do {may}: a restart may lose the rest", fix


@check("rights", why="a defect or an intruder can use every permission that a worker doesn't need")
def rights(about: Examination) -> Op[Outcome]:
    user = (yield from _client_info(about.server))["user"]
    _, grants = yield from _user(about.server, user)
    commands = {command for rules, _ in grants for command in _granted(rules)}
    excess = [f"+{rule}" for rule in sorted(commands & _TOO_MUCH)]
    if any(pattern.rpartition("~")[2] == "*" for _, patterns in grants for pattern in patterns):
        excess.append("all keys")
    if not excess:
        return OK, f"user {user} has no more permissions than it needs", None
    options = f"--namespace {about.settings.namespace}{' --cluster' if about.server.handle else ''}"
    return WARNING, f"user {user} is granted {', '.join(excess)}", f"redis-sessions acl {options}, and log in as its worker"


@check("tls", why="anyone who sees a password or a session ID in transit can use it")
def tls(about: Examination) -> Op[Outcome]:
    if about.client.tls:
        return OK, "in use", None
    if place_of((yield from _client_info(about.server))["laddr"]) == "here":
        return OK, "none, and the connection does not leave the machine", None
    return WARNING, "none: the network sees passwords and session IDs", "set tls-port, and use rediss:// in the URL"


@check("round-trip", why="a turn with its lease takes two round trips")
def round_trip(about: Examination) -> Op[Outcome]:
    trip_ms, _ = yield from about.server.once("timing", _timing(about.server))
    fix = "bring workers and server closer together"
    return (WARNING, f"{trip_ms:.0f} ms", fix) if trip_ms >= SLOW_MS else (OK, f"{trip_ms:.2f} ms", None)


@check("clock", why="import compares times of last use with the server's clock")
def clock(about: Examination) -> Op[Outcome]:
    ahead_ms = round((yield from about.server.once("timing", _timing(about.server)))[1])
    off = duration(abs(ahead_ms)) if abs(ahead_ms) > CLOCK_MS else f"{abs(ahead_ms)} ms"
    found = f"this machine is {off} {'ahead of' if ahead_ms >= 0 else 'behind'} the server"
    return (WARNING, found, "set both by NTP") if abs(ahead_ms) > CLOCK_MS else (OK, found, None)


@check("client", why="a client that mixes up replies hands out the session ID of another conversation")
def client(about: Examination) -> Outcome:
    safe_one = "use SessionStore.from_url, which builds a safe one"
    if about.client.risks is None:
        raise SessionStoreError("the client that was passed in is of an unknown kind", remedy=safe_one)
    found = "the redis-py client that was passed in " + "; and it ".join(about.client.risks)
    safe = (OK, "never resends a counter, never mixes up replies", None)
    return (WARNING, found, safe_one) if about.client.risks else safe


CHECKS: Final = (sentinel, commands, login, replay, rights, tls, round_trip, clock, client)


def _client_info(server: Server) -> Op[Fields]:
    words = text((yield from server.ask("CLIENT", "INFO"))).split()
    return Fields(word.split("=", 1) for word in words if "=" in word)


def _user(server: Server, name: str) -> Op[tuple[list[str], list[tuple[str, list[str]]]]]:
    """Flags of a user, and its grants: rules of commands, each with patterns of keys. No hashes of passwords."""
    rules = named((yield from server.ask("ACL", "GETUSER", name)) or ())
    # Each selector grants its commands on its keys, beside the user's own; Redis 6.2 has none, and lists patterns.
    grants = []
    for each in (rules, *map(named, rules.get("selectors", ()))):
        keys = each["keys"]
        grants.append((text(each["commands"]), [text(key) for key in (keys if isinstance(keys, list) else keys.split())]))
    return [text(flag) for flag in rules["flags"]], grants


def _tls_port(server: Server) -> Op[int]:
    """The port for TLS; 0 where the server was built without it."""
    found = named((yield from server.ask("CONFIG", "GET", "tls-port")))
    return number(found.get("tls-port", 0))


def _timing(server: Server) -> Op[tuple[float, float]]:
    """A round trip, and how far this machine's clock is ahead of the server's, in milliseconds."""
    trips_ms, ahead_ms = [], []
    for _ in range(ROUND_TRIPS):
        sent_at_s, began_s = time.time(), time.perf_counter()
        [reply] = yield [Command(("TIME",), node=server.handle, resend=False, optional=True, even_away=True)]
        took_ms = (time.perf_counter() - began_s) * 1000
        if isinstance(reply, SessionStoreError):
            raise unanswered("TIME") if is_away(reply) else reply
        trips_ms.append(took_ms)
        # The server read its clock about half-way.
        ahead_ms.append(sent_at_s * 1000 + took_ms / 2 - int(reply[0]) * 1000 - int(reply[1]) / 1000)
    return median(trips_ms), median(ahead_ms)


def place_of(address: str) -> str:
    """Where the server's end of the connection is: `here`, `private` or `open`, by CLIENT INFO's laddr."""
    host, _, port = address.rpartition(":")
    # A unix socket has port 0, which nobody can listen on, behind its path; Valkey puts it in brackets, too.
    if port == "0" or address.lstrip("[").startswith("/"):
        return "here"
    try:
        ip = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return "open"
    return "here" if ip.is_loopback else "private" if ip.is_private else "open"


def _granted(rules: str) -> set[str]:
    granted: set[str] = set()
    for rule in rules.split():
        if rule == "-@all":
            granted.clear()
        else:
            (granted.discard if rule.startswith("-") else granted.add)(rule[1:])
    return granted
