"""Executes operations on a redis-py client, resending what may be sent twice, in both flavors.

`execution` decides: a generator without I/O that yields what to do next and is sent what came of it. Two short loops do it.
"""

from __future__ import annotations

import asyncio
import random
import time
from _thread import start_new_thread
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from operator import attrgetter
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from redis import exceptions as redis_errors
from redis.asyncio.cluster import PipelineCommand
from redis.client import NEVER_DECODE

from redis_sessions.client.cluster import AsyncCluster
from redis_sessions.client.follow import afollow, follow
from redis_sessions.client.pool import sent_once
from redis_sessions.client.translate import translate
from redis_sessions.errors import is_away
from redis_sessions.operations.command import EMULATED, PRIMARIES, Command, Op, Resent

T = TypeVar("T")

# First and longest pause between two tries: after a failure, and while all connections are in use.
_BACKOFF_S = (0.02, 0.5)
_CROWD_BACKOFF_S = (0.001, 0.02)


class Link(NamedTuple):
    """How a server is reached. The defaults are for a client that the caller built."""

    address: str = "Redis"  # for errors to name; holds no secret
    # No further try begins that would end later than this after the first, if it takes as long as the one before. 0 leaves
    # retrying to the client.
    deadline_s: float = 0.0
    cluster: bool = False  # whether it is a cluster client, whose own mistakes during a failover count as an outage
    client_resends: bool = False  # whether the client itself sends again what got no reply
    tls: bool = False
    emulated: bool = False  # whether the client is an emulation of a server, inside this process
    risks: tuple[str, ...] | None = None  # what is risky in the client's settings; None if they are unknown


CALLERS: Final = Link()

_WRITTEN_BY_OTHERS: Final = {"GET", "GETRANGE", "HMGET", "SCAN"}


# What to do next: the steps that `execution` yields


class Send(NamedTuple):
    """Send a command. `again`: an earlier sending may have run; `with_source`: EVAL instead of EVALSHA."""

    command: Command
    again: bool
    with_source: bool = False

    def arguments(self) -> tuple[bytes | str, ...]:
        """The arguments of execute_command. Replies are left undecoded, so that one bad key can't break a scan."""
        command, again, with_source = self
        args, script, redis_keys = command.args, command.script, command.redis_keys
        if command.tell_again:
            args = (*args, "1" if again else "0")
        if script is None:
            return args
        how = ("EVAL", script.source) if with_source else ("EVALSHA", script.sha)
        return (*how, str(len(redis_keys)), *redis_keys, *args)

    def options(self, *, routed: bool = True) -> dict[str, Any]:
        """The options of execute_command; not `routed`, those of a connection to the node itself."""
        command = self.command
        # Only where a reply holds what others may have written: elsewhere redis-py's cluster client (8.1) can't handle the
        # option. No upstream issue found.
        undecoded = command.script is not None or command.args[0] in _WRITTEN_BY_OTHERS
        options: dict[str, Any] = {NEVER_DECODE: True} if undecoded else {}
        if routed and command.node is not None:
            options["target_nodes"] = command.node
        return options


class Pipeline(NamedTuple):
    """Send these in one round trip; to this primary of a cluster, if one is given."""

    sends: list[Send]
    node: Any = None


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
            if len(commands) != 1:
                replies = yield from _replies(commands, link)
            elif commands[0] is EMULATED:
                replies = [link.emulated]
            else:
                reply, resent = yield from _persistently(_step(commands[0], link), commands, link)
                replies = Resent([reply]) if resent else [reply]
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
        of_each = [list(group) for _, group in groupby(commands, attrgetter("node"))]
        outcome: Any = yield Together([_at_once(group, link) for group in of_each])
        if isinstance(outcome, Failed):
            raise outcome.error
        tried = [one for group in outcome for one in group]
    elif any(command.script for command in commands):
        tried = yield from _one_by_one(commands, link)
    else:
        tried = yield from _at_once(commands, link)
    kind = Resent if any(resent for _, resent in tried) else list
    return kind(reply for reply, _ in tried)


def _at_once(commands: list[Command], link: Link) -> Plan[list[_Tried]]:
    """The replies to commands of the same node, pipelined."""
    if len(commands) == 1:
        return (yield from _one_by_one(commands, link))
    sends, known = [], set()
    for command in commands:
        # A script that the node doesn't know yet is there once the first of them has been sent whole.
        sends.append(Send(command, again=False, with_source=command.script not in known and command.script is not None))
        known.add(command.script)
    replies, resent = yield from _persistently(Pipeline(sends, commands[0].node), commands, link)
    return [(reply, resent) for reply in replies]


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
    resend = step.command.resend if isinstance(step, Send) else all(command.resend for command in commands)
    first_s = began_s = time.monotonic()
    while True:
        if not resend:
            sent_once.set(True)
        outcome = yield step
        if not resend:
            sent_once.set(False)
        if isinstance(outcome, Failed):
            failure: Exception | None = outcome.error
        else:
            failure = _refusal(step, outcome, link) if isinstance(step, Pipeline) else None
        if failure is None:
            return outcome, attempt > 1
        if isinstance(failure, redis_errors.NoScriptError) and isinstance(step, Send) and not step.with_source:
            # EVAL loads and runs it in one: between two commands the script could be flushed again, or the server fail over.
            step = step._replace(with_source=True)
            began_s = time.monotonic()
            continue
        translation = translate(failure, commands[0].key, link.address, cluster=link.cluster, sent=_name(step))
        if translation is None:
            raise failure
        error, passing, unsent = translation
        pause_s = _pause_s(_BACKOFF_S, attempt)
        now_s = time.monotonic()
        if not passing or not (resend or unsent) or now_s + pause_s + (now_s - began_s) > first_s + link.deadline_s:
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


def _name(step: Step) -> str:
    """The name of the command that is sent, for errors."""
    return str(step.arguments()[0]) if isinstance(step, Send) else "a command"


def _pause_s(backoff_s: tuple[float, float], number: int) -> float:
    first_s, longest_s = backoff_s
    return min(first_s * 2.0 ** min(number - 1, 10), longest_s)


def _refusal(step: Pipeline, outcome: list[Any], link: Link) -> Exception | None:
    """The refusal that makes a whole pipeline fail. That of an optional command becomes its reply."""
    for number, reply in enumerate(outcome):
        if isinstance(reply, Exception):
            command = step.sends[number].command
            translation = translate(reply, command.key, link.address, cluster=link.cluster)
            # Another node has that key: to ask this one again would not help.
            gone = step.node is not None and isinstance(reply, redis_errors.AskError | redis_errors.TryAgainError)
            if translation is None or not command.optional or (is_away(translation.error) and not gone):
                return reply
            outcome[number] = translation.error
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
            case Send() if not step.command.followed_by:
                return client.execute_command(*step.arguments(), **step.options())
            case Send():
                return follow(client, step)
            case Pipeline(sends, node):
                at = client if node is None else client.get_redis_connection(node)
                return _filled(at.pipeline(transaction=False), sends).execute(raise_on_error=False)
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

    Each call but the first has a thread that doesn't delay the end of the process: a background scan that is running then is
    cut off silently, where the standard library's pool would refuse to start threads. Started by `_thread`, since a signal
    handler that raises within `threading.Thread.start` becomes a RuntimeError (python/cpython #78667).
    """
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException | None] = [None] * len(calls)
    ended: SimpleQueue[None] = SimpleQueue()

    def make(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors[number] = error
        ended.put(None)

    for number in range(1, len(calls)):
        start_new_thread(make, (number,))
    make(0)
    for _ in calls:
        ended.get()
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
        case Send() if not step.command.followed_by:
            return await client.execute_command(*step.arguments(), **step.options())
        case Send():
            return await afollow(client, step)
        case Pipeline(sends, None):
            return await _filled(client.pipeline(transaction=False), sends).execute(raise_on_error=False)
        case Pipeline(sends, node):
            async with client.admission() if isinstance(client, AsyncCluster) else nullcontext():
                commands = [PipelineCommand(0, *send.arguments(), **send.options(routed=False)) for send in sends]
                await node.execute_pipeline(commands)
                return [command.result for command in commands]
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
        pipeline.execute_command(*send.arguments(), **send.options(routed=False))
    return pipeline
