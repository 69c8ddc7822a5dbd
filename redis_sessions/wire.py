"""The only two loops that talk to Redis: `run` and `arun` drive an operation on a redis-py client.

What to send next, after a reply or after a failure, is decided once, by the generator `_exchange`; the loops do it. Replies
are asked for undecoded, so one poison key can't break a scan, whatever `decode_responses` the caller's client has.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from redis import exceptions as redis_errors
from redis.client import NEVER_DECODE

from redis_sessions.commands import PRIMARIES, Command, Op, Script
from redis_sessions.errors import SessionStoreError
from redis_sessions.refusals import explain

T = TypeVar("T")

_BACKOFF_S = (0.02, 0.5)
_CROWD_BACKOFF_S = (0.001, 0.02)


class Client(Protocol):
    """What is used of a redis-py client, standalone or cluster, sync or async (then what it returns is awaited)."""

    def execute_command(self, *args: Any, **options: Any) -> Any: ...
    def pipeline(self, *, transaction: bool) -> Any: ...


@dataclass(frozen=True, slots=True)
class Link:
    """How a server is reached.

    Attributes:
        address: for errors to name; holds no secret.
        attempts: tries in all for what may be sent twice; 1 leaves retrying to the client, as for one the caller passed in.
        deadline_s: no further try begins that would end later than this many seconds after the first, if it takes as long.
        cluster: whether the client is a cluster client, whose own mistakes during a failover are taken for an outage.
    """

    address: str = "Redis"
    attempts: int = 1
    deadline_s: float = 0.0
    cluster: bool = False


@dataclass(frozen=True, slots=True)
class _Send:
    command: Command


@dataclass(frozen=True, slots=True)
class _Pipeline:
    commands: list[Command]


@dataclass(frozen=True, slots=True)
class _Load:
    script: Script
    node: object


@dataclass(frozen=True, slots=True)
class _Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class _Primaries:
    pass


@dataclass(frozen=True, slots=True)
class _Failed:
    """The outcome of a step that raised. Sent, not thrown, so that nothing of redis-py's hangs on the error we raise."""

    error: Exception
    began_s: float


_Step: TypeAlias = _Send | _Pipeline | _Load | _Wait | _Primaries
_Exchange: TypeAlias = Generator[_Step, Any, T]


def run(client: Client, op: Op[T], link: Link = Link()) -> T:
    """Drive an operation to its result. Raises SessionStoreError and its children, never an error of redis-py."""
    try:
        commands = next(op)
        while True:
            commands = op.send(_replies(client, commands, link))
    except StopIteration as done:
        result: T = done.value
        return result


def _replies(client: Client, commands: list[Command], link: Link) -> list[Any]:
    if not _goes_straight(commands):
        return _run_exchange(client, _exchange(commands, link))
    outcome = _outcome(client, commands[0])
    return _run_exchange(client, _exchange(commands, link, outcome)) if isinstance(outcome, _Failed) else [outcome]


def _run_exchange(client: Client, exchange: _Exchange[list[Any]]) -> list[Any]:
    try:
        step = next(exchange)
        while True:
            step = exchange.send(_outcome(client, step))
    except StopIteration as done:
        replies: list[Any] = done.value
        return replies


def _outcome(client: Client, step: _Step | Command) -> Any:
    began_s = time.monotonic()
    try:
        if isinstance(step, Command):
            return client.execute_command(*_arguments(step), **_options(step))
        return _do(client, step)
    except Exception as error:  # noqa: BLE001 - the exchange raises again what it doesn't know
        return _Failed(error, began_s)


def _do(client: Any, step: _Step) -> Any:
    match step:
        case _Send(command):
            return client.execute_command(*_arguments(command), **_options(command))
        case _Pipeline(commands):
            return _filled(client.pipeline(transaction=False), commands).execute(raise_on_error=False)
        case _Load(script, node):
            return client.execute_command("SCRIPT LOAD", script.source, **_target(node))
        case _Wait(seconds):
            return time.sleep(seconds)
        case _Primaries():
            return client.get_primaries() if hasattr(client, "get_primaries") else [None]


async def arun(client: Client, op: Op[T], link: Link = Link()) -> T:
    """Same as run, on an async client."""
    try:
        commands = next(op)
        while True:
            commands = op.send(await _areplies(client, commands, link))
    except StopIteration as done:
        result: T = done.value
        return result


async def _areplies(client: Client, commands: list[Command], link: Link) -> list[Any]:
    if not _goes_straight(commands):
        return await _arun_exchange(client, _exchange(commands, link))
    outcome = await _aoutcome(client, commands[0])
    return await _arun_exchange(client, _exchange(commands, link, outcome)) if isinstance(outcome, _Failed) else [outcome]


async def _arun_exchange(client: Client, exchange: _Exchange[list[Any]]) -> list[Any]:
    try:
        step = next(exchange)
        while True:
            step = exchange.send(await _aoutcome(client, step))
    except StopIteration as done:
        replies: list[Any] = done.value
        return replies


async def _aoutcome(client: Any, step: _Step | Command) -> Any:
    began_s = time.monotonic()
    task = asyncio.current_task()
    asked = task.cancelling() if task else 0
    try:
        if isinstance(step, Command):
            outcome = await client.execute_command(*_arguments(step), **_options(step))
        else:
            outcome = await _ado(client, step)
    except Exception as error:  # noqa: BLE001 - see _outcome
        outcome = _Failed(error, began_s)
    # redis-py may swallow a cancellation that comes together with a reply; the task still knows that it was asked for.
    if task and task.cancelling() > asked:
        raise asyncio.CancelledError
    return outcome


async def _ado(client: Any, step: _Step) -> Any:
    match step:
        case _Send(command):
            return await client.execute_command(*_arguments(command), **_options(command))
        case _Pipeline(commands):
            return await _filled(client.pipeline(transaction=False), commands).execute(raise_on_error=False)
        case _Load(script, node):
            return await client.execute_command("SCRIPT LOAD", script.source, **_target(node))
        case _Wait(seconds):
            return await asyncio.sleep(seconds)
        case _Primaries():
            return (await client.initialize()).get_primaries() if hasattr(client, "get_primaries") else [None]


def _goes_straight(commands: list[Command]) -> bool:
    """Whether the first try needs no plan: nearly every operation is one command that succeeds at once."""
    return len(commands) == 1 and commands[0] is not PRIMARIES


def _exchange(commands: list[Command], link: Link, failed: _Failed | None = None) -> _Exchange[list[Any]]:
    """One list of commands, one list of replies: together where a pipeline can carry them, else one by one.

    `failed` is the first try of the only command, where that has been made.
    """
    if commands[0] is PRIMARIES:
        return [(yield from _persistently(_Primaries(), commands, link))]
    if len(commands) > 1 and not any(command.script or command.node or command.optional for command in commands):
        replies: list[Any] = yield from _persistently(_Pipeline(commands), commands, link)
        return replies
    replies = []
    for command in commands:
        try:
            replies.append((yield from _persistently(_Send(command), [command], link, failed)))
        except SessionStoreError as error:
            if not command.optional:
                raise
            replies.append(error)
    return replies


def _persistently(step: _Step, commands: list[Command], link: Link, failed: _Failed | None = None) -> _Exchange[Any]:
    """Take a step until it succeeds, while that may help and is allowed. Raises SessionStoreError and its children."""
    key, script = (commands[0].key, commands[0].script) if commands else (None, None)
    may_resend = all(command.resend for command in commands)
    give_up_at_s = (failed.began_s if failed else time.monotonic()) + link.deadline_s
    pause_s, crowd_pause_s = _BACKOFF_S[0], _CROWD_BACKOFF_S[0]
    attempt = 1
    loaded = False
    while True:
        began_s = failed.began_s if failed else time.monotonic()
        outcome = failed or (yield step)
        failed = None
        failure = _failure(step, outcome)
        if failure is None:
            return outcome
        if script is not None and not loaded and isinstance(failure, redis_errors.NoScriptError):
            loaded = True
            yield from _persistently(_Load(script, commands[0].node), [], link)
            continue
        refusal = explain(failure, key, link.address, cluster=link.cluster)
        if refusal is None:
            raise failure
        now_s = time.monotonic()
        again = refusal.passing and (refusal.unsent or (may_resend and attempt < link.attempts))
        if not again or now_s + pause_s + (now_s - began_s) > give_up_at_s:
            outcome = failure = None
            raise refusal.error
        if refusal.unsent:
            yield _Wait(crowd_pause_s * random.uniform(0.5, 1))
            crowd_pause_s = min(crowd_pause_s * 2, _CROWD_BACKOFF_S[1])
        else:
            attempt += 1
            yield _Wait(pause_s * random.uniform(0.5, 1))
            pause_s = min(pause_s * 2, _BACKOFF_S[1])


def _failure(step: _Step, outcome: Any) -> Exception | None:
    if isinstance(outcome, _Failed):
        return outcome.error
    if isinstance(step, _Pipeline):
        return next((reply for reply in outcome if isinstance(reply, Exception)), None)
    return None


def _arguments(command: Command) -> tuple[Any, ...]:
    script, args = command.script, command.args
    if script is not None:
        args = ("EVALSHA", script.sha, len(command.redis_keys), *command.redis_keys, *args)
    # A signal handler that raises while hiredis renders an integer crashes the process.
    return tuple([b"%d" % arg if isinstance(arg, int) else arg for arg in args])


def _options(command: Command) -> dict[str, Any]:
    # Asked for only where a reply holds what others may have written: redis-py's cluster client chokes on it elsewhere.
    undecoded = command.script is not None or command.args[0] == "GET"
    return {NEVER_DECODE: True, **_target(command.node)} if undecoded else _target(command.node)


def _target(node: object) -> dict[str, Any]:
    return {} if node is None else {"target_nodes": node}


def _filled(pipeline: Any, commands: list[Command]) -> Any:
    for command in commands:
        pipeline.execute_command(*_arguments(command), **_options(command))
    return pipeline
