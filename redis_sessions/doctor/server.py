"""Checks of one server: version, role, cluster, memory, persistence and replicas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from redis_sessions.doctor.findings import BROKEN, OK, WARNING, ClientFacts, Outcome, check
from redis_sessions.errors import AccessDenied, CommandRefused, SessionStoreError, StoreUnavailable, is_away
from redis_sessions.keys import Keys
from redis_sessions.operations.command import Command, Op, T
from redis_sessions.operations.scan import Progress, Scan, answered
from redis_sessions.settings import StoreSettings

MEMORY_FULL: Final = 0.9
SLOTS: Final = 16_384


class Fields(dict[str, Any]):
    """What a server reports by name. Raises SessionStoreError for a field that it doesn't have."""

    def __missing__(self, field: str) -> Any:
        raise SessionStoreError(f"the server reports no {field}")


class Server:
    """One server. Whatever it is asked, it is asked once; a refusal is raised, as SessionStoreError, at each use.

    `keys` are those of the namespace; `handle` is the cluster primary, as PRIMARIES gave it, None where there is only one
    server.
    """

    def __init__(self, keys: Keys, handle: object = None, answers: Mapping[Any, Any] | None = None) -> None:
        self.keys = keys
        self.handle = handle
        # Results and errors so far, by the words of a command or the name of an operation.
        self.answers = dict(answers or {})
        # The error if it can't be reached. Only a cluster goes on then; elsewhere it ends the examination.
        self.away: StoreUnavailable | None = None

    def once(self, name: object, op: Op[T]) -> Op[T]:
        """The result of an operation, which is only run if there is none yet under this name."""
        if name not in self.answers:
            try:
                self.answers[name] = yield from op
            except SessionStoreError as error:
                self.answers[name] = error
        answer: T | SessionStoreError = self.answers[name]
        if isinstance(answer, SessionStoreError):
            raise answer
        return answer

    def ask(self, *words: str) -> Op[Any]:
        """The reply to one command."""
        return (yield from self.once(words, self._ask(words)))

    def _ask(self, words: tuple[str, ...]) -> Op[Any]:
        if self.handle is None:
            reply = yield from answered(self.keys, *words)
            return unanswered(words[0]) if is_away(reply) else reply
        if self.away is None:
            [reply] = yield [Command(words, node=self.handle, optional=True, even_away=True)]
            if not is_away(reply):
                return reply
            # The client's own error names every host of the URL.
            self.away = StoreUnavailable(f"{getattr(self.handle, 'name', 'a primary')} can't be reached")
        return self.away

    def info(self) -> Op[Fields]:
        return Fields((yield from self.ask("INFO")))

    def version(self) -> Op[tuple[str, str, tuple[int, ...]]]:
        """`Valkey` or `Redis`, its version, and that as numbers."""
        info = yield from self.info()
        name = "Valkey" if "valkey_version" in info else "Redis"
        version = str(info[f"{name.lower()}_version"])
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        if not numbers:
            raise SessionStoreError("the server reports a version without a number")
        return name, version, numbers

    def setting(self, name: str) -> Op[str]:
        """One setting. Asking for all of them would bring passwords."""
        return text(named((yield from self.ask("CONFIG", "GET", name)))[name])

    def slots(self) -> Op[tuple[str | None, int]]:
        """The state of its cluster, and how many slots are served."""
        lines = text((yield from self.ask("CLUSTER", "INFO"))).splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        return facts.get("cluster_state"), number(facts.get("cluster_slots_ok", ""))

    def serves(self) -> Op[bool]:
        """Whether its cluster answers for every key, as far as is known."""
        try:
            return self.handle is None or (yield from self.slots()) == ("ok", SLOTS)
        except SessionStoreError:
            return self.away is None


class Examination(NamedTuple):
    """What the checks of the connection and of the keys are about."""

    server: Server  # of a cluster, a primary that can be reached
    settings: StoreSettings
    client: ClientFacts
    quorums: Sequence[object] = ()  # the answers of the Sentinel processes, where there are any
    agent: str | None = None  # name of the runtime whose sessions these are
    progress: Progress | None = None  # called after each page of the scan of all sessions
    served: bool = True  # whether the server or cluster answers for every key

    @property
    def keys(self) -> Keys:
        """The names of the keys. Raises SessionStoreError if some can't be asked for."""
        if not self.served:
            raise SessionStoreError("the cluster does not serve all of its slots", remedy="see the check cluster")
        return self.server.keys

    def scan(self, *, leases: bool = False) -> Scan:
        """A scan of the session keys, or of the leases. Raises SessionStoreError, same as `keys`."""
        return Scan(self.settings, self.progress if self.keys and not leases else None, leases=leases)


@check("server", why="only Redis 6.2 to 8 and Valkey 8 and 9 are tested with this package")
def version(server: Server) -> Op[Outcome]:
    name, version, numbers = yield from server.version()
    fix = "run Redis 6.2 to 8, or Valkey 8 or 9"
    if name == "Redis" and numbers < (6, 2):
        return BROKEN, f"{name} {version}, older than 6.2", fix
    if (numbers[0] in (8, 9)) if name == "Valkey" else (numbers < (9,)):
        return OK, f"{name} {version}", None
    return WARNING, f"{name} {version}, never tested", fix


@check("role", why="a replica is read-only")
def role(server: Server) -> Op[Outcome]:
    role, fix = (yield from server.info())["role"], "name the primary in the URL, or Sentinel by redis+sentinel://"
    return (OK, "a primary", None) if role == "master" else (BROKEN, f"role {role}: nothing can be saved there", fix)


@check("cluster", why="conversations in a slot that no node serves can't be looked up")
def cluster(server: Server) -> Op[Outcome]:
    if server.handle is None:
        lone = (BROKEN, "this is one node of a cluster", "give the URL as redis+cluster://")
        return lone if number((yield from server.info())["cluster_enabled"]) else (OK, "none", None)
    repair, moving = "redis-cli --cluster fix HOST:PORT", False
    try:
        state, served = yield from server.slots()
        # A user that may not list the nodes can still know that every slot is served.
        with suppress(AccessDenied):
            moving = bool(re.search(r"\[\d+-[<>]-", text((yield from server.ask("CLUSTER", "NODES")))))
    except StoreUnavailable as error:
        if server.away is None:
            raise
        return BROKEN, error.message, "start it; if it has a replica, that takes over on its own"
    if state != "ok" or served < SLOTS:
        return BROKEN, f"state {state}, {served:,} of {SLOTS:,} slots served", repair
    if moving:
        return WARNING, "slots are being migrated, scans may miss keys", f"wait, or {repair}"
    return OK, "every slot is served", None


@check("eviction", why="volatile-ttl evicts what was unused longest, and keeps leases and every counter")
def eviction(server: Server) -> Op[Outcome]:
    info = yield from server.info()
    policy, limit = str(info["maxmemory_policy"]), number(info["maxmemory"])
    fix = "redis-cli CONFIG SET maxmemory-policy volatile-ttl"
    if policy == "volatile-ttl" or (policy == "noeviction" and not limit):
        return OK, policy, None
    if policy.startswith("allkeys-"):
        return BROKEN, f"{policy} evicts counters, too", fix
    full, early = f": at {_megabytes(limit)} saves are refused", " may evict leases and sessions that were just used"
    return WARNING, policy + (full if policy == "noeviction" else early), fix


@check("memory", why="without a limit the system kills the server; with one that is too low sessions are lost early")
def memory(server: Server) -> Op[Outcome]:
    info = yield from server.info()
    limit, used = number(info["maxmemory"]), number(info["used_memory"])
    if not limit:
        return WARNING, "no maxmemory", "redis-cli CONFIG SET maxmemory 256mb"
    found = f"{_megabytes(used)} of {_megabytes(limit)}"
    fix = f"redis-cli CONFIG SET maxmemory {max(1, limit * 2 // 2**20)}mb"  # 0 would mean no limit
    if used >= limit * MEMORY_FULL and info["maxmemory_policy"] == "noeviction":
        return BROKEN, f"{found}, and nothing may be evicted", fix
    if evicted := number(info["evicted_keys"]):
        return WARNING, f"{found}; {evicted:,} keys were evicted since the server started", fix
    return OK, found, None


@check("append-only", why="a crash of the server loses saves that are not in its append-only file")
def append_only(server: Server) -> Op[Outcome]:
    if number((yield from server.info())["aof_enabled"]):
        return OK, "on", None
    fix = "redis-cli CONFIG SET appendonly yes"
    try:
        snapshots = yield from server.setting("save")
    except SessionStoreError:
        return WARNING, "off; whether snapshots are taken can't be seen", fix
    if not snapshots:
        return BROKEN, "off, and no snapshots: nothing survives a restart", fix
    return WARNING, "off; snapshots alone lose what came after the last one", fix


@check("appendfsync", why="a power cut loses what was not synced: up to a second with everysec, half a minute with no")
def appendfsync(server: Server) -> Op[Outcome]:
    if not number((yield from server.info())["aof_enabled"]):
        return OK, "not in use", None
    policy, fix = (yield from server.setting("appendfsync")), "redis-cli CONFIG SET appendfsync always"
    return (WARNING, "no: the system decides when", fix) if policy == "no" else (OK, policy, None)


@check("disk", why="a server that can't write its files refuses saves, or forgets them at a restart")
def disk(server: Server) -> Op[Outcome]:
    info = yield from server.info()
    failed = ["append-only file"] if number(info["aof_enabled"]) and info["aof_last_write_status"] != "ok" else []
    failed += ["snapshot"] if info["rdb_last_bgsave_status"] != "ok" else []
    found = f"the last write of the {' and the '.join(failed)} failed"
    return (BROKEN, found, "check its log, disk and permissions") if failed else (OK, "no write has failed", None)


@check("replicas", why="a failover loses saves that no replica was required to have")
def replicas(server: Server) -> Op[Outcome]:
    info = yield from server.info()
    replicas, needed = number(info["connected_slaves"]), number((yield from server.setting("min-replicas-to-write")))
    good = number(info["min_slaves_good_slaves"]) if needed else 0
    if good < needed:
        return BROKEN, f"{good} in sync, {needed} needed: saves are refused", "start a replica"
    if replicas and not needed:
        fix = "redis-cli CONFIG SET min-replicas-to-write 1, and CONFIG SET min-replicas-max-lag 10"
        return WARNING, f"{replicas}, none of them needed for a save", fix
    return OK, f"{replicas}, {needed} needed for a save" if replicas else "none", None


CHECKS: Final = (version, role, cluster, eviction, memory, append_only, appendfsync, disk, replicas)


def unanswered(name: str) -> CommandRefused:
    """The error of a command that is not answered, where others are."""
    remedy = "what hangs up on it is a proxy: run the doctor by the URL of the server itself"
    return CommandRefused(f"{name} is not answered", remedy=remedy)


def number(value: Any) -> int:
    """An integer of a server's reply. Raises SessionStoreError: servers that imitate Redis return other text."""
    try:
        return int(value)
    except ValueError:
        raise SessionStoreError("the server's reply is not a number where Redis has one") from None


def named(reply: Any) -> Fields:
    """A reply that is a map, as RESP3 has it, or a list of names and values, as RESP2 has it."""
    pairs = reply.items() if isinstance(reply, Mapping) else zip(reply[::2], reply[1::2], strict=True)
    return Fields((text(name), value) for name, value in pairs)


def text(value: bytes | str) -> str:
    """A string of a server's reply."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"
