"""What the doctor makes of each server: facts in, findings out. Asks nothing, and shows no value that may be a secret.

A fact that could not be seen is the error that says why; whatever looks at it comes out as `unknown`, never as `ok`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis_sessions.doctor.findings import BROKEN, OK, SEVERITY, WARNING, Finding, Outcome, judged, seen
from redis_sessions.errors import AccessDenied, SessionStoreError, StoreUnavailable

MEMORY_FULL: Final = 0.9
SLOTS: Final = 16_384


@dataclass(frozen=True)
class Node:
    """One server as it was seen.

    Attributes:
        info: its INFO, whole.
        config: settings by name.
        cluster: its CLUSTER INFO; None where there is no cluster.
        moving: whether slots are on the move to or from it.
    """

    info: Mapping[str, Any] | SessionStoreError
    config: Mapping[str, str | SessionStoreError]
    cluster: Mapping[str, str] | SessionStoreError | None = None
    moving: bool = False

    @property
    def away(self) -> bool:
        """Whether it could not be reached, which only one of several may be."""
        return is_away(self.info)

    @property
    def serves(self) -> bool:
        """Whether its cluster answers for every key, as far as is known."""
        if self.away or not isinstance(self.cluster, Mapping):
            return not self.away
        return self.cluster.get("cluster_state") == "ok" and self.cluster.get("cluster_slots_ok") in (None, str(SLOTS))

    def told(self, field: str) -> Any:
        """A field of INFO. Raises SessionStoreError if it is not to be had."""
        info = seen(self.info)
        if field not in info:
            raise SessionStoreError(f"the server's INFO tells no {field}")
        return info[field]

    def version(self) -> tuple[str, str, tuple[int, ...]]:
        """Valkey or Redis, its version, and that as numbers. Raises SessionStoreError if it can't be had."""
        valkey = "valkey_version" in seen(self.info)
        name, text = ("Valkey", self.told("valkey_version")) if valkey else ("Redis", self.told("redis_version"))
        numbers = tuple(int(number) for number in re.findall(r"\d+", str(text))[:3])
        if not numbers:
            raise SessionStoreError("the server's INFO tells a version without a number")
        return name, str(text), numbers

    def number(self, field: str) -> int:
        """A field of INFO that is an integer. Raises SessionStoreError."""
        return number(self.told(field))

    def setting(self, name: str) -> str:
        """A setting. Raises SessionStoreError if it is not to be had."""
        return str(seen(self.config[name]))


def of_nodes(nodes: Sequence[Node]) -> list[Finding]:
    """The findings about servers: of each check the worst of all nodes."""
    findings = []
    for check, (why, look) in NODE_CHECKS.items():
        # Of what is as bad the first is told: that one is away is why the others lack its slots.
        ordered = sorted(nodes, key=lambda node: not node.away)
        found = [judged(check, why, lambda node=node, look=look: look(node)) for node in ordered]  # type: ignore[misc]
        worst = max(found, key=lambda finding: SEVERITY.index(finding.status))
        alike = sum(finding.status == worst.status for finding in found)
        if alike < len(nodes):
            worst = worst.model_copy(update={"found": f"{worst.found} (on {alike} of {len(nodes)} primaries)"})
        findings.append(worst)
    return findings


def _version(node: Node) -> Outcome:
    name, text, numbers = node.version()
    if name == "Redis" and numbers < (6, 2):
        return BROKEN, f"{name} {text}, older than 6.2", "run Redis 6.2 to 8, or Valkey 8 or 9"
    if (numbers[0] in (8, 9)) if name == "Valkey" else (numbers < (9,)):
        return OK, f"{name} {text}", None
    return WARNING, f"{name} {text}, never tried", "run Redis 6.2 to 8, or Valkey 8 or 9"


def _role(node: Node) -> Outcome:
    if (role := node.told("role")) == "master":
        return OK, "a primary", None
    return (
        BROKEN,
        f"role {role}: nothing can be saved there",
        "name the primary in the URL, or Sentinel by redis+sentinel://",
    )


def _eviction(node: Node) -> Outcome:
    policy, limit = str(node.told("maxmemory_policy")), node.number("maxmemory")
    remedy = "redis-cli CONFIG SET maxmemory-policy volatile-ttl"
    if policy == "volatile-ttl":
        return OK, policy, None
    if policy.startswith("allkeys-"):
        return BROKEN, f"{policy} takes counters, too", remedy
    if policy == "noeviction":
        return (WARNING, f"{policy}: at {_megabytes(limit)} saves are refused", remedy) if limit else (OK, policy, None)
    return WARNING, f"{policy} may take leases and sessions that were just used", remedy


def _memory(node: Node) -> Outcome:
    limit, used = node.number("maxmemory"), node.number("used_memory")
    if not limit:
        return WARNING, "no maxmemory", "redis-cli CONFIG SET maxmemory 256mb"
    found = f"{_megabytes(used)} of {_megabytes(limit)}"
    remedy = f"redis-cli CONFIG SET maxmemory {max(1, limit * 2 // 2**20)}mb"  # 0 would be no limit at all
    if used >= limit * MEMORY_FULL and node.told("maxmemory_policy") == "noeviction":
        return BROKEN, f"{found}, and nothing may be evicted", remedy
    if evicted := node.number("evicted_keys"):
        return WARNING, f"{found}; {evicted:,} keys were evicted since the server started", remedy
    return OK, found, None


def _append_only(node: Node) -> Outcome:
    if node.number("aof_enabled"):
        return OK, "on", None
    remedy = "redis-cli CONFIG SET appendonly yes"
    try:
        snapshots = node.setting("save")
    except SessionStoreError:
        return WARNING, "off; whether snapshots are taken can't be seen", remedy
    if snapshots:
        return WARNING, "off; snapshots alone lose what came after the last one", remedy
    return BROKEN, "off, and no snapshots: nothing outlives the server", remedy


def _appendfsync(node: Node) -> Outcome:
    if not node.number("aof_enabled"):
        return OK, "not in use", None
    policy = node.setting("appendfsync")
    if policy == "no":
        return WARNING, "no: when, is left to the system", "redis-cli CONFIG SET appendfsync everysec"
    return OK, policy, None


def _disk(node: Node) -> Outcome:
    failed = [
        name
        for name, field, used in (
            ("append-only file", "aof_last_write_status", node.number("aof_enabled")),
            ("snapshot", "rdb_last_bgsave_status", 1),
        )
        if used and node.told(field) != "ok"
    ]
    if failed:
        return BROKEN, f"the last write of the {' and the '.join(failed)} failed", "look at its log, disk and permissions"
    return OK, "no write has failed", None


def _replicas(node: Node) -> Outcome:
    replicas, needed = node.number("connected_slaves"), number(node.setting("min-replicas-to-write"))
    good = node.number("min_slaves_good_slaves") if needed else 0
    if good < needed:
        return BROKEN, f"{good} in step, {needed} needed: saves are refused", "bring a replica up"
    if replicas and not needed:
        remedy = "redis-cli CONFIG SET min-replicas-to-write 1, and CONFIG SET min-replicas-max-lag 10"
        return WARNING, f"{replicas}, none of them needed for a save", remedy
    return OK, f"{replicas}, {needed} needed for a save" if replicas else "none", None


def _cluster(node: Node) -> Outcome:
    if node.cluster is None:
        if node.number("cluster_enabled"):
            return BROKEN, "this is one node of a cluster", "give the URL as redis+cluster://"
        return OK, "none", None
    if node.away:
        return BROKEN, str(node.info), "bring it up; its replica takes over by itself, if it has one"
    facts = seen(node.cluster)
    state, served = facts.get("cluster_state"), number(facts.get("cluster_slots_ok", ""))
    if state != "ok" or served < SLOTS:
        return BROKEN, f"state {state}, {served:,} of 16,384 slots served", "redis-cli --cluster fix HOST:PORT"
    if node.moving:
        return WARNING, "slots are on the move, scans may miss keys", "wait, or redis-cli --cluster fix HOST:PORT"
    return OK, "every slot is served", None


def number(text: Any) -> int:
    """What a server told as a number. Raises SessionStoreError where it is none: servers that are like Redis tell much."""
    try:
        return int(text)
    except ValueError:
        raise SessionStoreError("the server tells no number where Redis does") from None


def is_away(fact: Any) -> bool:
    """Whether it is that its server could not be reached."""
    return isinstance(fact, StoreUnavailable) and not isinstance(fact, AccessDenied)


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


NODE_CHECKS: Final[Mapping[str, tuple[str, Callable[[Node], Outcome]]]] = {
    "server": ("the scripts and commands are tried on Redis 6.2 to 8 and Valkey 8 and 9", _version),
    "role": ("a replica is read-only", _role),
    "cluster": ("a slot that nobody serves is a conversation that can't be looked up", _cluster),
    "eviction": ("volatile-ttl drops what was unused longest, and keeps leases and every counter", _eviction),
    "memory": ("without a limit the system ends the server; with too low a one sessions go early", _memory),
    "append-only": ("a crash of the server loses what was acknowledged and is not in the file", _append_only),
    "appendfsync": (
        "a power cut loses what was not synced: with everysec up to a second, with no half a minute",
        _appendfsync,
    ),
    "disk": ("where the server can't write its files it refuses saves, or forgets them", _disk),
    "replicas": ("a failover loses saves that no replica had to have", _replicas),
}
