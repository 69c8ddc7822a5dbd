"""Run all checks and collect their findings. Reads only, changes nothing.

Commands that may be refused (managed services forbid CONFIG, an ACL much else) make a finding `unknown`. Only a server
that can't be reached, or that refuses even to read one of our counters, raises an error instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, Final

from redis_sessions.doctor import connection, server, sessions
from redis_sessions.doctor.findings import BROKEN, OK, UNKNOWN, WARNING, ClientFacts, Diagnosis, Finding, Status
from redis_sessions.doctor.server import Examination, Server
from redis_sessions.errors import AccessDenied
from redis_sessions.keys import RESUME_FAILURES, Keys
from redis_sessions.operations.command import PRIMARIES, Command, Op, T
from redis_sessions.operations.scan import Progress, agreed, check_progress
from redis_sessions.settings import StoreSettings

_SEVERITY: Final = list(Status)


def examine(
    settings: StoreSettings,
    client: ClientFacts,
    quorums: Sequence[object] = (),
    agent: str | None = None,
    progress: Progress | None = None,
) -> Op[Diagnosis]:
    """Run all checks. `quorums` are the answers of the Sentinel processes. Raises InvalidSettings for an unknown agent."""
    sessions.kept(settings.session_max_age_ms, agent)
    check_progress(progress)
    [handles] = yield [PRIMARIES]
    keys = Keys(settings.namespace)
    servers = [Server(keys, handle) for handle in handles]
    served = all((yield from side_by_side([each.serves() for each in servers])))
    # If some primaries of a cluster are down, another one is asked what is the same on all.
    reached = next((each for each in servers if each.away is None), servers[0])
    if reached.away:
        raise reached.away
    if served:
        # A user that may not even read this can do nothing.
        [counter] = yield [Command(("GET", keys.counter(RESUME_FAILURES)), optional=True)]
        if isinstance(counter, AccessDenied):
            raise counter
        settings = yield from agreed(settings)
    findings = []
    for each in server.CHECKS:
        findings += [_worst(servers, (yield from side_by_side([each.finding(one) for one in servers])))]
    about = Examination(reached, settings, client, quorums, agent, progress, served)
    for check in (*connection.CHECKS, *sessions.CHECKS):
        if quorums or check is not connection.sentinel:
            findings += [(yield from check.finding(about))]
    of = Counter(finding.status for finding in findings)
    return Diagnosis(findings=tuple(findings), broken=of[BROKEN], warnings=of[WARNING], unknown=of[UNKNOWN], ok=of[OK])


def ask_quorum(service: str) -> Op[object]:
    """Ask one Sentinel process; returns the error if it sees no quorum or can't be reached."""
    [reply] = yield [Command(("SENTINEL", "CKQUORUM", service), optional=True, even_away=True)]
    return reply


def side_by_side(ops: Sequence[Op[T]]) -> Op[list[T]]:
    """Run operations in step: what they ask at the same time is one list of commands. Returns their results in order."""
    results: list[Any] = [None] * len(ops)
    replies: dict[int, Any] = dict.fromkeys(range(len(ops)))
    while replies:
        asked: dict[int, list[Command]] = {}
        for number, reply in replies.items():
            try:
                asked[number] = ops[number].send(reply)
            except StopIteration as done:
                results[number] = done.value
        answers = iter((yield list(chain(*asked.values()))) if asked else ())
        replies = {number: list(islice(answers, len(commands))) for number, commands in asked.items()}
    return results


def _worst(servers: Sequence[Server], findings: Sequence[Finding]) -> Finding:
    """The worst finding of all servers, with the number of servers that have it."""
    # Servers that are away come first: they are the reason why others report missing slots.
    ordered = sorted(zip(servers, findings, strict=True), key=lambda pair: pair[0].away is None)
    _, worst = max(ordered, key=lambda pair: _SEVERITY.index(pair[1].status))
    alike = sum(finding.status == worst.status for finding in findings)
    found = worst.found if alike == len(servers) else f"{worst.found} (on {alike} of {len(servers)} primaries)"
    return worst.model_copy(update={"found": found})
