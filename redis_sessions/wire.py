"""The only two loops that talk to Redis: `run` and `arun` drive an operation on a redis-py client.

What to send next, after a reply or after a failure, is decided once, by the generator `_exchange`; the loops do it. Replies
are asked for undecoded, so one poison key can't break a scan, whatever `decode_responses` the caller's client has.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from redis import exceptions as redis_errors
from redis.client import NEVER_DECODE

from redis_sessions.commands import PRIMARIES, Command, Op
from redis_sessions.errors import AccessDenied, SessionStoreError, StoreUnavailable
from redis_sessions.refusals import explain

T = TypeVar("T")

# RedisClusterException is no RedisError.
_FAILURES = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError)
_BACKOFF_S = (0.02, 0.5)


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
        deadline_s: no further try begins later than this many seconds after the first.
        client_resends: whether the client sends again by itself what got no reply.
    """

    address: str = "Redis"
    attempts: int = 1
    deadline_s: float = 0.0
    client_resends: bool = False


@dataclass(frozen=True, slots=True)
class _Send:
    command: Command
    again: bool
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Pipeline:
    commands: list[Command]


@dataclass(frozen=True, slots=True)
class _Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class _Primaries:
    pass


@dataclass(frozen=True, slots=True)
class _Failed:
    """How the first try of a single command went, and when it began."""

    error: Exception
    began_s: float


@dataclass(frozen=True, slots=True)
class _Together:
    """Exchanges with different nodes, side by side."""

    exchanges: list[Generator[Any, Any, Any]]


_Step: TypeAlias = _Send | _Pipeline | _Wait | _Primaries | _Together
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
    finally:
        op.close()  # what it holds open is let go here and now, not wherever its error is dropped


def _replies(client: Client, commands: list[Command], link: Link) -> list[Any]:
    failed = None
    if _goes_straight(commands):
        began_s = time.monotonic()
        try:
            return [client.execute_command(*_arguments(commands[0], again=link.client_resends), **_options(commands[0]))]
        except _FAILURES as error:
            failed = _Failed(error, began_s)
    return _run_exchange(client, _exchange(commands, link, failed))


def _run_exchange(client: Client, exchange: _Exchange[T]) -> T:
    try:
        step = next(exchange)
        while True:
            try:
                reply = _do(client, step)
            except _FAILURES as error:
                step = exchange.throw(error)
            else:
                step = exchange.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result


def _do(client: Any, step: _Step) -> Any:
    match step:
        case _Send(command, again, whole):
            return client.execute_command(*_arguments(command, again=again, whole=whole), **_options(command))
        case _Pipeline(commands):
            return _filled(client.pipeline(transaction=False), commands).execute(raise_on_error=False)
        case _Wait(seconds):
            return time.sleep(seconds)
        case _Primaries():
            return client.get_primaries() if hasattr(client, "get_primaries") else [None]
        case _Together(exchanges):
            with ThreadPoolExecutor(len(exchanges)) as threads:
                return list(threads.map(partial(_run_exchange, client), exchanges))


async def arun(client: Client, op: Op[T], link: Link = Link()) -> T:
    """Same as run, on an async client."""
    try:
        commands = next(op)
        while True:
            commands = op.send(await _areplies(client, commands, link))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        op.close()  # what it holds open is let go here and now, not wherever its error is dropped


async def _areplies(client: Client, commands: list[Command], link: Link) -> list[Any]:
    failed = None
    if _goes_straight(commands):
        began_s = time.monotonic()
        try:
            return [
                await client.execute_command(*_arguments(commands[0], again=link.client_resends), **_options(commands[0]))
            ]
        except _FAILURES as error:
            failed = _Failed(error, began_s)
    return await _arun_exchange(client, _exchange(commands, link, failed))


async def _arun_exchange(client: Client, exchange: _Exchange[T]) -> T:
    try:
        step = next(exchange)
        while True:
            try:
                reply = await _ado(client, step)
            except _FAILURES as error:
                step = exchange.throw(error)
            else:
                step = exchange.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result


async def _ado(client: Any, step: _Step) -> Any:
    match step:
        case _Send(command, again, whole):
            return await client.execute_command(*_arguments(command, again=again, whole=whole), **_options(command))
        case _Pipeline(commands):
            return await _filled(client.pipeline(transaction=False), commands).execute(raise_on_error=False)
        case _Wait(seconds):
            return await asyncio.sleep(seconds)
        case _Primaries():
            return (await client.initialize()).get_primaries() if hasattr(client, "get_primaries") else [None]
        case _Together(exchanges):
            results = await asyncio.gather(*(_arun_exchange(client, each) for each in exchanges), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            return results


def _goes_straight(commands: list[Command]) -> bool:
    """Whether the first try needs no plan: nearly every operation is one command that succeeds at once."""
    return len(commands) == 1 and commands[0] is not PRIMARIES


def _exchange(commands: list[Command], link: Link, failed: _Failed | None = None) -> _Exchange[list[Any]]:
    """One list of commands, one list of replies: side by side where each has its node, else in a pipeline, else in turn.

    `failed` is the first try of the only command, where that has been made.
    """
    if commands[0] is PRIMARIES:
        return [(yield from _persistently(_Primaries(), commands, link))]
    if len(commands) > 1:
        if all(command.node for command in commands):
            replies: list[Any] = yield _Together([_one(command, link) for command in commands])
            return replies
        if not any(command.script or command.optional for command in commands):
            replies = yield from _persistently(_Pipeline(commands), commands, link)
            return replies
    replies = []
    for command in commands:
        replies.append((yield from _one(command, link, failed)))
    return replies


def _one(command: Command, link: Link, failed: _Failed | None = None) -> _Exchange[Any]:
    try:
        return (yield from _persistently(_Send(command, link.client_resends), [command], link, failed))
    except SessionStoreError as error:
        away = isinstance(error, StoreUnavailable) and not isinstance(error, AccessDenied)
        if away or not command.optional:
            raise
        return error


def _persistently(step: _Step, commands: list[Command], link: Link, failed: _Failed | None = None) -> _Exchange[Any]:
    """Take a step until it succeeds, while that may help and is allowed. Raises SessionStoreError and its children."""
    may_resend = all(command.resend for command in commands)
    give_up_at_s = (failed.began_s if failed else time.monotonic()) + link.deadline_s
    pause_s = _BACKOFF_S[0]
    attempt = 1
    while True:
        try:
            if failed:
                error, failed = failed.error, None
                raise error
            reply = yield step
            if isinstance(step, _Pipeline):
                for error in reply:
                    if isinstance(error, Exception):
                        raise error
            return reply
        except redis_errors.NoScriptError as error:
            if not isinstance(step, _Send) or step.whole:
                raise explain(error, commands[0].key, link.address).error from None
            # Loads and runs it in one: between two commands it could be flushed again, or fail over to who hasn't got it.
            step = replace(step, whole=True)
        except _FAILURES as error:
            refusal = explain(error, commands[0].key, link.address)
            late = time.monotonic() + pause_s > give_up_at_s
            if late or attempt >= link.attempts or not (may_resend and refusal.passing):
                raise refusal.error from None
            attempt += 1
            step = replace(step, again=True) if isinstance(step, _Send) else step
            yield _Wait(pause_s * random.uniform(0.5, 1))
            pause_s = min(pause_s * 2, _BACKOFF_S[1])


def _arguments(command: Command, *, again: bool, whole: bool = False) -> tuple[Any, ...]:
    args = (*command.args, int(again)) if command.tell_again else command.args
    if command.script is None:
        return args
    how = ("EVAL", command.script.source) if whole else ("EVALSHA", command.script.sha)
    return (*how, len(command.redis_keys), *command.redis_keys, *args)


def _options(command: Command) -> dict[str, Any]:
    # Asked for only where a reply holds what others may have written: redis-py's cluster client chokes on it elsewhere.
    undecoded = command.script is not None or command.args[0] == "GET"
    return {NEVER_DECODE: True, **_target(command.node)} if undecoded else _target(command.node)


def _target(node: object) -> dict[str, Any]:
    return {} if node is None else {"target_nodes": node}


def _filled(pipeline: Any, commands: list[Command]) -> Any:
    for command in commands:
        pipeline.execute_command(*command.args, **_options(command))
    return pipeline
