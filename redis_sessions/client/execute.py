"""Executes operations on a redis-py client, resending what may be sent twice, in both flavors.

`execution` decides: a generator without I/O that yields what to do next and is sent what came of it. Two short loops do it.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from redis import exceptions as redis_errors
from redis.client import NEVER_DECODE

from redis_sessions.client.translate import translate
from redis_sessions.errors import SessionStoreError, is_away
from redis_sessions.operations.command import PRIMARIES, Command, Op, Resent

T = TypeVar("T")

# First and longest pause between two tries: after a failure, and while all connections are in use.
_BACKOFF_S = (0.02, 0.5)
_CROWD_BACKOFF_S = (0.001, 0.02)


class Link(NamedTuple):
    """How a server is reached. The defaults are for a client that the caller built."""

    address: str = "Redis"  # for errors to name; holds no secret
    attempts: int = 1  # tries in all for what may be sent twice; 1 leaves retrying to the client
    # No further try begins that would end later than this after the first, if it takes as long as the one before.
    deadline_s: float = 0.0
    cluster: bool = False  # whether it is a cluster client, whose own mistakes during a failover count as an outage
    client_resends: bool = False  # whether the client itself sends again what got no reply
    tls: bool = False
    risks: tuple[str, ...] | None = None  # what is risky in the client's settings; None if they are unknown


CALLERS: Final = Link()


# What to do next: the steps that `execution` yields


class Send(NamedTuple):
    """Send a command. `again`: an earlier sending may have run; `with_source`: EVAL instead of EVALSHA."""

    command: Command
    again: bool
    with_source: bool = False

    def arguments(self) -> tuple[Any, ...]:
        """The arguments of execute_command. Replies are left undecoded, so that one bad key can't break a scan."""
        command, again, with_source = self
        args = (*command.args, int(again)) if command.tell_again else command.args
        if command.script is not None:
            how = ("EVAL", command.script.source) if with_source else ("EVALSHA", command.script.sha)
            args = (*how, len(command.redis_keys), *command.redis_keys, *args)
        # A signal handler that raises while hiredis renders an integer crashes the process. No upstream issue found.
        return tuple([b"%d" % arg if isinstance(arg, int) else arg for arg in args])

    def options(self) -> dict[str, Any]:
        """The options of execute_command."""
        command = self.command
        to_node = {} if command.node is None else {"target_nodes": command.node}
        # Only where a reply holds what others may have written: elsewhere redis-py's cluster client (8.1) can't handle the
        # option. No upstream issue found.
        undecoded = command.script is not None or command.args[0] in ("GET", "HMGET")
        return {NEVER_DECODE: True, **to_node} if undecoded else to_node


class Pipeline(NamedTuple):
    """Send these in one round trip."""

    sends: list[Send]


class Wait(NamedTuple):
    """Wait."""

    seconds: float


class Primaries(NamedTuple):
    """Name the primaries of a cluster; [None] where there is only one server."""


class Together(NamedTuple):
    """Carry out several plans side by side, each with its own node."""

    plans: list[Generator[Any, Any, Any]]


class Failed(NamedTuple):
    """The outcome of a step that raised. Sent, not thrown, so that the error we raise keeps no reference to redis-py's."""

    error: Exception


Step: TypeAlias = Send | Pipeline | Wait | Primaries | Together
Plan: TypeAlias = Generator[Step, Any, T]
_Tried: TypeAlias = tuple[Any, bool]  # what came of a step, and whether it was taken more than once


# What to do next: the decisions


def execution(op: Op[T], link: Link) -> Plan[T]:
    """Plan a whole operation. Returns its result, raises SessionStoreError and its children."""
    try:
        commands = next(op)
        while True:
            if len(commands) == 1:
                reply, resent = yield from _persistently(_step(commands[0], link), commands, link)
                replies = Resent([reply]) if resent else [reply]
            else:
                replies = yield from _replies(commands, link)
            commands = op.send(replies)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        op.close()  # frees what it holds now, not when the error that ended it is dropped


def _replies(commands: list[Command], link: Link) -> Plan[list[Any]]:
    """The replies to several commands: side by side if each has its node, else pipelined, else one by one."""
    tried: list[_Tried] = []
    if all(command.node for command in commands):
        outcome: Any = yield Together([_one_by_one([command], link) for command in commands])
        if isinstance(outcome, Failed):
            raise outcome.error
        tried = [one for [one] in outcome]
    elif any(command.script for command in commands):
        tried = yield from _one_by_one(commands, link)
    else:
        try:
            pipeline = Pipeline([Send(command, again=False) for command in commands])
            replies, resent = yield from _persistently(pipeline, commands, link)
            tried = [(reply, resent) for reply in replies]
        except SessionStoreError as error:
            # A server may shut out who logs in wrongly too often.
            login = any(code in error.message for code in ("WRONGPASS", "NOAUTH"))
            if is_away(error) or login or not all(command.optional for command in commands):
                raise
            # One by one, to learn which of them was refused.
            tried = yield from _one_by_one(commands, link)
    kind = Resent if any(resent for _, resent in tried) else list
    return kind(reply for reply, _ in tried)


def _step(command: Command, link: Link) -> Step:
    return Primaries() if command is PRIMARIES else Send(command, link.client_resends)


def _one_by_one(commands: list[Command], link: Link) -> Plan[list[_Tried]]:
    tried: list[_Tried] = []
    for command in commands:
        tried += [(yield from _persistently(_step(command, link), [command], link))]
    return tried


def _persistently(step: Step, commands: list[Command], link: Link) -> Plan[_Tried]:
    """Try a step until it succeeds, while another try may help and is allowed. An optional command's error is its reply."""
    attempt, crowded = 1, 0
    first_s = began_s = time.monotonic()
    while True:
        outcome = yield step
        failure = _failure(step, outcome)
        if failure is None:
            return outcome, attempt > 1
        if isinstance(failure, redis_errors.NoScriptError) and isinstance(step, Send) and not step.with_source:
            # EVAL loads and runs it in one: between two commands the script could be flushed again, or the server fail over.
            step = step._replace(with_source=True)
            began_s = time.monotonic()
            continue
        translation = translate(failure, commands[0].key, link.address, cluster=link.cluster)
        if translation is None:
            raise failure
        error, passing, unsent = translation
        pause_s = _pause_s(_BACKOFF_S, attempt)
        now_s = time.monotonic()
        may_help = passing and (unsent or (attempt < link.attempts and all(command.resend for command in commands)))
        if not may_help or now_s + pause_s + (now_s - began_s) > first_s + link.deadline_s:
            outcome = failure = None
            if isinstance(step, Send) and step.command.optional and (step.command.even_away or not is_away(error)):
                return error, False
            raise error
        if unsent:
            crowded += 1
            pause_s = _pause_s(_CROWD_BACKOFF_S, crowded)
        else:
            attempt += 1
            if isinstance(step, Send):
                step = step._replace(again=True)
        yield Wait(pause_s * random.uniform(0.5, 1))
        began_s = time.monotonic()


def _pause_s(backoff_s: tuple[float, float], number: int) -> float:
    first_s, longest_s = backoff_s
    return min(first_s * 2.0 ** min(number - 1, 10), longest_s)


def _failure(step: Step, outcome: Any) -> Exception | None:
    if isinstance(outcome, Failed):
        return outcome.error
    if isinstance(step, Pipeline):
        return next((reply for reply in outcome if isinstance(reply, Exception)), None)
    return None


# The two loops


def run(client: Any, op: Op[T], link: Link = CALLERS) -> T:
    """Carry out an operation and return its result. Raises SessionStoreError and its children, never redis-py's errors."""
    return _carry_out(client, execution(op, link))


def _carry_out(client: Any, plan: Plan[T]) -> T:
    try:
        step = next(plan)
        while True:
            step = plan.send(_outcome(client, step))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        plan.close()


def _outcome(client: Any, step: Step) -> Any:
    try:
        match step:
            case Send():
                return client.execute_command(*step.arguments(), **step.options())
            case Pipeline(sends):
                return _filled(client.pipeline(transaction=False), sends).execute(raise_on_error=False)
            case Wait(seconds):
                return time.sleep(seconds)
            case Primaries():
                return client.get_primaries() if hasattr(client, "get_primaries") else [None]
            case Together(plans):
                return side_by_side([partial(_carry_out, client, plan) for plan in plans])
    except Exception as error:  # noqa: BLE001 - the plan raises again what it doesn't know
        return Failed(error)


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls at the same time; their results in order, or the first error once all have ended.

    Each call but the first has a daemon thread: none delays the end of the process, and a background scan that is running
    then is cut off silently, where the standard library's pool would refuse to start threads.
    """
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException | None] = [None] * len(calls)

    def make(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors[number] = error

    threads = [threading.Thread(target=make, args=(number,), daemon=True) for number in range(1, len(calls))]
    for thread in threads:
        thread.start()
    make(0)
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results


async def arun(client: Any, op: Op[T], link: Link = CALLERS) -> T:
    """Same as run, on an async client."""
    return await _acarry_out(client, execution(op, link))


async def _acarry_out(client: Any, plan: Plan[T]) -> T:
    try:
        step = next(plan)
        while True:
            step = plan.send(await _aoutcome(client, step))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        plan.close()


async def _aoutcome(client: Any, step: Step) -> Any:
    task = asyncio.current_task()
    asked = task.cancelling() if task else 0
    try:
        outcome = await _ado(client, step)
    except Exception as error:  # noqa: BLE001 - see _outcome
        outcome = Failed(error)
    # redis-py may swallow a cancellation that comes together with a reply (redis/redis-py #2028 and #2551, closed; seen in
    # 8.1). The task still knows that it was asked for.
    if task and task.cancelling() > asked:
        raise asyncio.CancelledError
    return outcome


async def _ado(client: Any, step: Step) -> Any:
    match step:
        case Send():
            return await client.execute_command(*step.arguments(), **step.options())
        case Pipeline(sends):
            return await _filled(client.pipeline(transaction=False), sends).execute(raise_on_error=False)
        case Wait(seconds):
            return await asyncio.sleep(seconds)
        case Primaries():
            return (await client.initialize()).get_primaries() if hasattr(client, "get_primaries") else [None]
        case Together(plans):
            results = await asyncio.gather(*(_acarry_out(client, plan) for plan in plans), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            return results


def _filled(pipeline: Any, sends: list[Send]) -> Any:
    for send in sends:
        pipeline.execute_command(*send.arguments(), **send.options())
    return pipeline
