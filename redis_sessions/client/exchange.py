"""What to send next, after a reply or after a failure: one generator without I/O, which `wire.py` drives in both flavours.

Replies are asked for undecoded, so one poison key can't break a scan, whatever `decode_responses` the caller's client has.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from redis import exceptions as redis_errors
from redis.client import NEVER_DECODE

from redis_sessions.client.translate import explain
from redis_sessions.errors import SessionStoreError, is_away
from redis_sessions.operations.command import PRIMARIES, Command, Resent

T = TypeVar("T")

_BACKOFF_S = (0.02, 0.5)
_CROWD_BACKOFF_S = (0.001, 0.02)


class Link(NamedTuple):
    """How a server is reached.

    Attributes:
        address: for errors to name; holds no secret.
        attempts: tries in all for what may be sent twice; 1 leaves retrying to the client, as for one the caller passed in.
        deadline_s: no further try begins that would end later than this many seconds after the first, if it takes as long.
        cluster: whether the client is a cluster client, whose own mistakes during a failover are taken for an outage.
        client_resends: whether the client sends again by itself what got no reply.
        tls: whether what is sent is encrypted.
        risks: what in the client's settings may go wrong; None where nothing is known of them.
    """

    address: str = "Redis"
    attempts: int = 1
    deadline_s: float = 0.0
    cluster: bool = False
    client_resends: bool = False
    tls: bool = False
    risks: tuple[str, ...] | None = None


CALLERS: Final = Link()


class Send(NamedTuple):
    """Send a command; `again` if an earlier sending may have run, `whole` with its script instead of the script's SHA-1."""

    command: Command
    again: bool
    whole: bool = False

    def arguments(self) -> tuple[Any, ...]:
        """What redis-py is to send."""
        command, again, whole = self
        args = (*command.args, int(again)) if command.tell_again else command.args
        if command.script is not None:
            how = ("EVAL", command.script.source) if whole else ("EVALSHA", command.script.sha)
            args = (*how, len(command.redis_keys), *command.redis_keys, *args)
        # A signal handler that raises while hiredis renders an integer crashes the process.
        return tuple([b"%d" % arg if isinstance(arg, int) else arg for arg in args])

    def options(self) -> dict[str, Any]:
        """How redis-py is to send it."""
        command = self.command
        to_node = {} if command.node is None else {"target_nodes": command.node}
        # Asked for only where a reply holds what others may have written: redis-py's cluster client chokes on it elsewhere.
        undecoded = command.script is not None or command.args[0] == "GET"
        return {NEVER_DECODE: True, **to_node} if undecoded else to_node


class Pipeline(NamedTuple):
    """Send these together."""

    sends: list[Send]


class Wait(NamedTuple):
    """Wait this long."""

    seconds: float


class Primaries(NamedTuple):
    """Name the primaries of a cluster; [None] where there is only one server."""


class Together(NamedTuple):
    """Exchanges with different nodes, to be driven side by side."""

    exchanges: list[Generator[Any, Any, Any]]


class Failed(NamedTuple):
    """The outcome of a step that raised. Sent, not thrown, so that nothing of redis-py's hangs on the error we raise."""

    error: Exception
    began_s: float


class _Tried(NamedTuple):
    reply: Any
    resent: bool


Step: TypeAlias = Send | Pipeline | Wait | Primaries | Together
Exchange: TypeAlias = Generator[Step, Any, T]


def goes_straight(commands: list[Command]) -> bool:
    """Whether the first try needs no plan: nearly every operation is one command that succeeds at once."""
    return len(commands) == 1 and commands[0] is not PRIMARIES


def exchange(commands: list[Command], link: Link, failed: Failed | None = None) -> Exchange[list[Any]]:
    """One list of commands, one list of replies: side by side where each has its node, else in a pipeline, else in turn.

    `failed` is the first try of the only command, where that has been made. Raises SessionStoreError and its children.
    """
    if commands[0] is PRIMARIES:
        return [(yield from _persistently(Primaries(), commands, link)).reply]
    tried: list[_Tried] = []
    if len(commands) > 1 and all(command.node for command in commands):
        outcome: Any = yield Together([_one(command, link) for command in commands])
        if isinstance(outcome, Failed):
            raise outcome.error
        tried = outcome
    elif len(commands) > 1 and not any(command.script for command in commands):
        try:
            pipeline = Pipeline([Send(command, again=False) for command in commands])
            replies, resent = yield from _persistently(pipeline, commands, link)
            tried = [_Tried(reply, resent) for reply in replies]
        except SessionStoreError as error:
            if is_away(error) or not all(command.optional for command in commands):
                raise
            # By itself each tells whether it was refused.
            tried = yield from _in_turn(commands, link)
    else:
        tried = yield from _in_turn(commands, link, failed)
    kind = Resent if any(one.resent for one in tried) else list
    return kind(one.reply for one in tried)


def _in_turn(commands: list[Command], link: Link, failed: Failed | None = None) -> Exchange[list[_Tried]]:
    tried: list[_Tried] = []
    for command in commands:
        tried += [(yield from _one(command, link, failed))]
    return tried


def _one(command: Command, link: Link, failed: Failed | None = None) -> Exchange[_Tried]:
    try:
        return (yield from _persistently(Send(command, link.client_resends), [command], link, failed))
    except SessionStoreError as error:
        if not command.optional or (is_away(error) and not command.even_away):
            raise
        return _Tried(error, resent=False)


def _persistently(step: Step, commands: list[Command], link: Link, failed: Failed | None = None) -> Exchange[_Tried]:
    """Take a step until it succeeds, while that may help and is allowed."""
    may_resend = all(command.resend for command in commands)
    give_up_at_s = (failed.began_s if failed else time.monotonic()) + link.deadline_s
    pause_s, crowd_pause_s = _BACKOFF_S[0], _CROWD_BACKOFF_S[0]
    attempt = 1
    while True:
        began_s = failed.began_s if failed else time.monotonic()
        outcome = failed or (yield step)
        failed = None
        failure = _failure(step, outcome)
        if failure is None:
            return _Tried(outcome, resent=attempt > 1)
        if isinstance(failure, redis_errors.NoScriptError) and isinstance(step, Send) and not step.whole:
            # Loads and runs it in one: between two commands it could be flushed again, or fail over to who hasn't got it.
            step = step._replace(whole=True)
            continue
        refusal = explain(failure, commands[0].key, link.address, cluster=link.cluster)
        if refusal is None:
            raise failure
        now_s = time.monotonic()
        again = refusal.passing and (refusal.unsent or (may_resend and attempt < link.attempts))
        if not again or now_s + pause_s + (now_s - began_s) > give_up_at_s:
            outcome = failure = None
            raise refusal.error
        if refusal.unsent:
            yield Wait(crowd_pause_s * random.uniform(0.5, 1))
            crowd_pause_s = min(crowd_pause_s * 2, _CROWD_BACKOFF_S[1])
        else:
            attempt += 1
            if isinstance(step, Send):
                step = step._replace(again=True)
            yield Wait(pause_s * random.uniform(0.5, 1))
            pause_s = min(pause_s * 2, _BACKOFF_S[1])


def _failure(step: Step, outcome: Any) -> Exception | None:
    if isinstance(outcome, Failed):
        return outcome.error
    if isinstance(step, Pipeline):
        return next((reply for reply in outcome if isinstance(reply, Exception)), None)
    return None
