"""The doctor: looks at the server, the way to it and the keys, and changes nothing. `checks.py` says what is made of it.

Whatever may be refused (managed services forbid CONFIG, an ACL much else) is asked for as optional: its refusal is a fact.
Only who can't reach the server, or may not even read a counter of ours, gets an error instead of a diagnosis.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, Final

from redis_sessions.doctor import connection as access
from redis_sessions.doctor import sessions as upkeep
from redis_sessions.doctor.findings import Connection, Diagnosis, Finding, diagnosis, judged, seen
from redis_sessions.doctor.server import Node, is_away, of_nodes
from redis_sessions.errors import AccessDenied, SessionStoreError, StoreUnavailable
from redis_sessions.keys import COUNTERS, RESUME_FAILURES, Keys
from redis_sessions.operations.command import PRIMARIES, Command, Op
from redis_sessions.operations.retime import RetimeResult, retime
from redis_sessions.operations.scan import Progress, Scan
from redis_sessions.settings import StoreSettings

# Exactly these: a look at all of them would bring passwords.
SETTINGS: Final = ("save", "appendfsync", "min-replicas-to-write", "protected-mode", "bind")
ROUND_TRIPS: Final = 5


def examine(
    settings: StoreSettings,
    connection: Connection,
    quorums: Sequence[object] = (),
    agent: str | None = None,
    progress: Progress | None = None,
) -> Op[Diagnosis]:
    """Look at everything. `quorums` are the answers of Sentinel's processes. Raises InvalidSettings for an unknown agent."""
    kept = upkeep.kept(settings.session_max_age_ms, agent)
    [nodes] = yield [PRIMARIES]
    servers = yield from _nodes(nodes)
    serves = all(server.serves for server in servers)
    # Of a cluster that is down in part, what can be asked is asked of one that is there.
    there = next((number for number, server in enumerate(servers) if not server.away), None)
    if there is None:
        raise seen(servers[0].info)
    if serves:
        # Who may not even read this can do nothing.
        [counter] = yield [Command(("GET", Keys(settings.namespace).counter(RESUME_FAILURES)), optional=True)]
        if isinstance(counter, AccessDenied):
            raise counter
    findings = of_nodes(servers)
    if quorums:
        findings.append(
            judged("sentinel", "without a quorum nobody replaces a lost primary", partial(upkeep.quorum, quorums))
        )
    findings += yield from _who_comes_in(settings, connection, nodes[there], servers[there])
    findings += yield from _the_way(nodes[there])
    findings.append(
        judged("client", "a reply to another's question hands out another's session", partial(upkeep.client, connection))
    )
    findings += yield from _keys(settings, progress, serves=serves)
    findings.append(judged("agent", "an ID that outlives its session costs a refused resume", lambda: kept))
    return diagnosis(findings)


def ask_quorum(service: str) -> Op[object]:
    """Ask one of Sentinel's processes; the error says what it lacks, or that it can't be reached."""
    [reply] = yield [Command(("SENTINEL", "CKQUORUM", service), optional=True, even_away=True)]
    return reply


def _nodes(handles: Sequence[object]) -> Op[list[Node]]:
    clustered = list(handles) != [None]
    answers: dict[tuple[str, ...], list[Any]] = {}
    asked = list(range(len(handles)))
    questions = [("INFO",), *(("CONFIG", "GET", name) for name in SETTINGS)]
    for words in [*questions, ("CLUSTER", "INFO"), ("CLUSTER", "NODES")] if clustered else questions:
        commands = [Command(words, node=handles[number], optional=True, even_away=clustered) for number in asked]
        replies = (yield commands) if commands else []
        answers[words] = [None] * len(handles)
        for number, reply in zip(asked, replies, strict=True):
            answers[words][number] = reply
        # Each question to one that is away would be waited for anew.
        asked = [number for number in asked if not is_away(answers[words][number])]
    return [_node(handle, {words: answers[words][number] for words in answers}) for number, handle in enumerate(handles)]


def _node(handle: object, told: Mapping[tuple[str, ...], Any]) -> Node:
    """What one of them answered. To all questions its being away, if it was to one: it was not asked the rest."""
    if any(map(is_away, told.values())):
        # Its own error names all of the URL's hosts.
        told = dict.fromkeys(told, StoreUnavailable(f"{getattr(handle, 'name', 'a primary')} can't be reached"))
    cluster: Any = told.get(("CLUSTER", "INFO"))
    slots: Any = told.get(("CLUSTER", "NODES"))
    return Node(
        info=told["INFO",],
        config={name: _value(name, told["CONFIG", "GET", name]) for name in SETTINGS},
        cluster=dict(_lines(cluster)) if _is_text(cluster) else cluster,
        moving=_is_text(slots) and re.search(r"\[\d+-[<>]-", _text(slots)) is not None,
    )


def _who_comes_in(settings: StoreSettings, connection: Connection, handle: object, server: Node) -> Op[list[Finding]]:
    def ask(*words: str) -> Op[Any]:
        [reply] = yield [Command(words, node=handle, optional=True)]
        return reply

    me = yield from ask("CLIENT", "INFO")
    user = _told(me, "user")
    default = _rules((yield from ask("ACL", "GETUSER", "default")))
    own = user if isinstance(user, SessionStoreError) else _rules((yield from ask("ACL", "GETUSER", user)))
    address = _told(me, "laddr")
    return [
        judged(
            "login", "who gets in may read, change and flush", lambda: access.login(seen(default), seen(address), server)
        ),
        judged(
            "replay",
            "many servers read their append-only file as the default user, and drop of leased saves what it may not do",
            lambda: access.replay(default, server),
        ),
        judged(
            "rights",
            "what a worker may not do, no defect and no intruder can do in its name",
            lambda: access.rights(seen(user), seen(own), settings.namespace, clustered=server.cluster is not None),
        ),
        judged(
            "tls",
            "whoever sees a password or a session ID on the way can use it",
            lambda: access.tls(used=connection.tls, address="" if connection.tls else seen(address)),
        ),
    ]


def _the_way(handle: object) -> Op[list[Finding]]:
    trips_ms, ahead_ms, refused = [], [], None
    for _ in range(ROUND_TRIPS):
        sent_at_s, began_s = time.time(), time.perf_counter()
        [reply] = yield [Command(("TIME",), node=handle, optional=True)]
        took_ms = (time.perf_counter() - began_s) * 1000
        if isinstance(reply, SessionStoreError):
            refused = reply
            break
        trips_ms.append(took_ms)
        # The server read its clock about half-way.
        ahead_ms.append(sent_at_s * 1000 + took_ms / 2 - int(reply[0]) * 1000 - int(reply[1]) / 1000)
    return [
        judged(
            "round-trip", "a turn with its lease takes three", lambda: upkeep.round_trip(seen(refused or median(trips_ms)))
        ),
        judged(
            "clock",
            "what import is told of times of last use is held against the server's clock",
            lambda: upkeep.clock(round(seen(refused or median(ahead_ms)))),
        ),
    ]


def _keys(settings: StoreSettings, progress: Progress | None, *, serves: bool) -> Op[list[Finding]]:
    names = Keys(settings.namespace)
    down = SessionStoreError("the cluster does not serve all of its slots")
    lives: RetimeResult | SessionStoreError = down
    leases: int | SessionStoreError = down
    counters: list[tuple[str, Any, Any]] | SessionStoreError = down
    if serves:
        scan = Scan(settings, progress, optional=True)
        result = yield from retime(settings, dry_run=True, scan=scan)
        lives = scan.refused or result
        leases = yield from _leases_without_ttl(settings, names)
        counters = yield from _counters(names)
    looks = (
        ("no-ttl", "a session that never expires is tried for ever", lambda: upkeep.no_ttl(seen(lives), settings)),
        ("max-age", "these live on by a max age that was longer", lambda: upkeep.over_max_age(seen(lives), settings)),
        ("values", "what is no session ID is taken for nothing to resume", lambda: upkeep.values(seen(lives))),
        (
            "leases",
            "a lease that never lapses shuts its conversation until somebody else asks for it",
            lambda: upkeep.leases(seen(leases)),
        ),
        (
            "counters",
            "failures are read against the turns that were counted",
            lambda: upkeep.counters(seen(counters)),
        ),
    )
    return [judged(*look) for look in looks]


def _counters(names: Keys) -> Op[list[tuple[str, Any, Any]]]:
    """Redis key, value and TTL of each."""
    counters = []
    for name in COUNTERS:
        redis_key = names.counter(name)
        [value] = yield [Command(("GET", redis_key), optional=True)]
        [pttl_ms] = yield [Command(("PTTL", redis_key), optional=True)]
        counters.append((redis_key.decode(), value, pttl_ms))
    return counters


def _leases_without_ttl(settings: StoreSettings, names: Keys) -> Op[int | SessionStoreError]:
    scan = Scan(settings, prefix=names.lease_prefix, optional=True)
    without = 0
    while (pages := (yield from scan.next_pages())) is not None:
        without += sum(page.pttls_ms.count(-1) for page in pages)
    return scan.refused or without


def _told(me: Any, name: str) -> str | SessionStoreError:
    """A field of CLIENT INFO."""
    if isinstance(me, SessionStoreError):
        return me
    found = re.search(rf"(?:^|\s){name}=(\S+)", _text(me))
    return found[1] if found else SessionStoreError(f"the server's CLIENT INFO tells no {name}")


def _rules(reply: Any) -> dict[str, Any] | SessionStoreError:
    """Of ACL GETUSER what is no secret: flags, commands, keys; not the hashes of passwords."""
    if isinstance(reply, SessionStoreError):
        return reply
    if reply is None:
        return SessionStoreError("there is no such user")
    rules = _named(reply)
    flags = [_text(flag) for flag in rules["flags"]]
    # Each grants its commands on its keys, beside the user's own; Redis 6.2 has none.
    return {"flags": flags, **_grants(rules), "selectors": [_grants(_named(each)) for each in rules.get("selectors", ())]}


def _grants(rules: Mapping[str, Any]) -> dict[str, Any]:
    keys = rules["keys"]
    return {
        "commands": _text(rules["commands"]),
        "keys": _text(keys).split() if _is_text(keys) else [_text(key) for key in keys],
    }


def _value(name: str, reply: Any) -> str | SessionStoreError:
    if isinstance(reply, SessionStoreError):
        return reply
    values = _named(reply)
    return _text(values[name]) if name in values else SessionStoreError(f"the server has no setting {name}")


def _named(reply: Any) -> dict[str, Any]:
    """A map as RESP3 gives it, or the list of names and values of RESP2."""
    pairs = reply.items() if isinstance(reply, Mapping) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): value for name, value in pairs}


def _lines(text: bytes | str) -> list[list[str]]:
    return [line.split(":", 1) for line in _text(text).splitlines() if ":" in line]


def _is_text(value: Any) -> bool:
    return isinstance(value, bytes | str)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
