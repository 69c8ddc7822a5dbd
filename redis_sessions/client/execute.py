"""Executes operations on a redis-py client, resending what may be sent twice, in both flavors.

`execution` decides: a generator without I/O that yields what to do next and is sent what came of it. Two short loops do it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from _thread import start_new_thread
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import redis
import redis.asyncio
from redis import exceptions as redis_errors
from redis.client import NEVER_DECODE

from redis_sessions.client.cluster import AsyncCluster, Cluster
from redis_sessions.client.exchange import Call, aexchange, asend_batch, awaited, exchange, send_batch
from redis_sessions.client.pool import BROKEN, sent_once
from redis_sessions.client.translate import MISREADINGS, translate, translate_misreading
from redis_sessions.errors import is_away
from redis_sessions.operations.command import EMULATED, PRIMARIES, Command, Op, Resent

T = TypeVar("T")

# First and longest pause between two tries: after a failure, and while all connections are in use.
_BACKOFF_S = (0.02, 0.5)
_CROWD_BACKOFF_S = (0.001, 0.02)
# After how long it is logged, at a level that only a command line shows, that a step is still tried.
_TELL_AFTER_S: Final = 1.0

log = logging.getLogger("redis_sessions.client")


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
    reply_s: float | None = None  # how long the caller's client waits for a reply; None if not known or without limit


CALLERS: Final = Link()

# As many redirections as redis-py follows, and as many tries as its cluster client makes by default.
_REDIRECTIONS: Final = 16
_CALLERS_RETRIES: Final = 3

_ELSEWHERE: Final = (redis_errors.AskError, redis_errors.TryAgainError)
_WRITTEN_BY_OTHERS: Final = {"GET", "GETRANGE", "HMGET", "SCAN"}
_DECODED: Final[dict[str, Any]] = {}
_UNDECODED: Final[dict[str, Any]] = {NEVER_DECODE: True}


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
        options = _UNDECODED if undecoded else _DECODED
        return {**options, "target_nodes": command.node} if routed and command.node is not None else options


class Pipeline(NamedTuple):
    """Send these in one round trip; to this primary of a cluster, if one is given."""

    sends: list[Send]
    node: Any = None


class Bulk(NamedTuple):
    """Send the batch of this command."""

    command: Command


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


# A partial is a call of redis-py's, to be awaited in its async flavor.
Step: TypeAlias = Send | Pipeline | Bulk | Wait | Primaries | Together | partial[Any]
Plan: TypeAlias = Generator[Step, Any, T]
_Tried: TypeAlias = tuple[Any, bool]  # what came of a step, and whether it was taken more than once


# What to do next: the decisions


def execution(op: Op[T], link: Link) -> Plan[T]:
    """Plan a whole operation. Returns its result, raises SessionStoreError and its children."""
    commands: list[Command] = []
    try:
        commands = next(op)
        while True:
            if len(commands) == 1:
                # Without a generator of its own for what nearly always succeeds at once: a tenth of what a call costs here.
                step, began_s = _step(commands[0], link), time.monotonic()
                if sent_once.get() is commands[0].resend:
                    sent_once.set(not commands[0].resend)
                replies = [(yield step)]
                if not isinstance(step, Send) or isinstance(replies[0], Failed):
                    reply, resent = yield from _persistently(step, commands, link, replies.pop(), began_s)
                    replies = Resent([reply]) if resent else [reply]
            else:
                replies = yield from _replies(commands, link)
            commands = op.send(replies)
    except StopIteration as done:
        result: T = done.value
        return result
    except MISREADINGS as error:
        # Before the first reply, it is the caller who passed what can't be used.
        misread = translate_misreading(error, link.address) if commands else None
        if misread is None:
            raise
    finally:
        op.close()  # frees what it holds now, not when the error that ended it is dropped
    raise misread


def _replies(commands: list[Command], link: Link) -> Plan[list[Any]]:
    """The replies to several commands: side by side if each has its node."""
    if all(command.node for command in commands):
        of_each = [list(group) for _, group in groupby(commands, attrgetter("node"))]
        tried = list(chain(*_unwrap((yield Together([_at_once(group, link) for group in of_each])))))
    else:
        tried = yield from _at_once(commands, link)
    kind = Resent if any(resent for _, resent in tried) else list
    return kind(reply for reply, _ in tried)


def _at_once(commands: list[Command], link: Link) -> Plan[list[_Tried]]:
    """The replies to commands of the same node, pipelined. Scripts that redis-py has to route go one by one."""
    if len(commands) == 1 or (commands[0].node is None and any(command.script for command in commands)):
        tried: list[_Tried] = []
        for command in commands:
            tried += [(yield from _first_try(_step(command, link), [command], link))]
        return tried
    sends, known = [], set()
    for command in commands:
        # A script that the node doesn't know yet is there once the first of them has been sent whole.
        sends.append(Send(command, again=False, with_source=command.script not in known and command.script is not None))
        known.add(command.script)
    replies, resent = yield from _first_try(Pipeline(sends, commands[0].node), commands, link)
    return [(reply, resent) for reply in replies]


def _step(command: Command, link: Link) -> Step:
    if command is EMULATED:
        return partial(bool, link.emulated)
    if command.batch:
        return Bulk(command)
    return Primaries() if command is PRIMARIES else Send(command, link.client_resends or command.again)


def _first_try(step: Step, commands: list[Command], link: Link) -> Plan[_Tried]:
    began_s = time.monotonic()
    sent_once.set(not all(command.resend for command in commands))
    return (yield from _persistently(step, commands, link, (yield step), began_s))


def _persistently(step: Step, commands: list[Command], link: Link, outcome: Any, began_s: float) -> Plan[_Tried]:
    """Try a step until it succeeds, while another try may help and is allowed. An optional command's error is its reply.

    `outcome` is that of its first try, which began at `began_s`.
    """
    tries, resent, told = 1, False, False
    resend, first_s = all(command.resend for command in commands), began_s
    while True:
        failure = _failure(step, outcome, link)
        if failure is None:
            return outcome, resent
        if isinstance(failure, redis_errors.NoScriptError) and isinstance(step, Send) and not step.with_source:
            # EVAL loads and runs it in one: between two commands the script could be flushed again, or the server fail over.
            step = step._replace(with_source=True)
            began_s = time.monotonic()
            outcome = yield step
            continue
        name = str(step.arguments()[0]) if isinstance(step, Send) else "a command"
        translation = translate(failure, commands[0].key, link.address, cluster=link.cluster, sent=name)
        if translation is None:
            raise failure
        error, passing, unsent = translation
        crowded = isinstance(failure, redis_errors.MaxConnectionsError)
        first_pause_s, longest_s = _CROWD_BACKOFF_S if crowded else _BACKOFF_S
        pause_s = min(first_pause_s * 2.0 ** min(tries - 1, 10), longest_s)
        now_s = time.monotonic()
        # What can be done without is not waited for.
        may = resend or crowded or (unsent and not commands[0].even_away)
        if not passing or not may or now_s + pause_s + (now_s - began_s) > first_s + link.deadline_s:
            outcome = failure = None
            if isinstance(step, Send) and step.command.optional and (step.command.even_away or not is_away(error)):
                return error, False
            raise error
        if not told and now_s - first_s > _TELL_AFTER_S:
            told = True
            log.info("%s: trying for up to %g s", error.message, link.deadline_s)
        tries += 1
        if not unsent:
            resent = True
            if isinstance(step, Send):
                step = step._replace(again=True)
        yield Wait(pause_s * random.uniform(0.5, 1))
        began_s = time.monotonic()
        outcome = yield step


def _failure(step: Step, outcome: Any, link: Link) -> Exception | None:
    """What went wrong with a whole step. In a pipeline or batch, a refusal that is allowed becomes the reply."""
    if isinstance(outcome, Failed):
        return outcome.error
    if not isinstance(step, Send) and isinstance(step, Pipeline | Bulk):
        for number, reply in enumerate(outcome):
            if isinstance(reply, Exception):
                command = step.command if isinstance(step, Bulk) else step.sends[number].command
                translation = translate(reply, command.key, link.address, cluster=link.cluster)
                # Where another node has that key, to ask this one again would not help.
                gone = command.even_away or (command.node and isinstance(reply, _ELSEWHERE))
                allowed = command.optional or command.batch
                if translation is None or not allowed or (is_away(translation.error) and not gone):
                    return reply
                outcome[number] = translation.error
    return None


def _followed(client: Any, step: Send, send: Callable[[Any, list[Call]], Any]) -> Plan[list[Any]]:
    """Send a command and the one behind it on the same connection; on a cluster, follow redirections as redis-py (8.1) does.

    Returns both replies. Raises what the first was answered by; if the second was refused, the error (ours) is its reply.
    """
    command = step.command
    calls = [(step.arguments(), step.options()), (Send(Command(command.followed_by), again=False).arguments(), {})]
    if not hasattr(client, "get_primaries"):
        return _both((yield partial(send, client, calls)), command)
    if hasattr(client, "initialize"):  # asyncio's
        _unwrap((yield partial(client.initialize)))
    slots, slot = client.nodes_manager, client.keyslot(command.redis_keys[0] if command.script else command.args[1])
    # Our own clients are tried again by the plan of the whole operation.
    retries = _CALLERS_RETRIES if step.again and not isinstance(client, Cluster | AsyncCluster) else 0
    node = asked = None
    left = _REDIRECTIONS
    while True:
        try:
            node = asked or slots.get_node_from_slot(slot)
            at = client.get_redis_connection(node) if hasattr(client, "get_redis_connection") else node
            return _both((yield partial(send, at, [(("ASKING",), {}), *calls] if asked else calls)), command)
        except redis_errors.AskError as redirection:
            left -= 1
            if not left:
                raise
            if isinstance(redirection, redis_errors.MovedError):
                _unwrap((yield partial(slots.move_slot, redirection)))
                asked = None
                continue
            asked = client.get_node(host=redirection.host, port=redirection.port)
            if asked is None:  # a node that had no slot when the slots were asked for
                _unwrap((yield partial(slots.initialize)))
                raise
        except redis_errors.MaxConnectionsError:
            raise
        except (*BROKEN, redis_errors.ClusterDownError, redis_errors.RedisClusterException):
            if node is not None:
                slots.move_node_to_end_of_cached_nodes(node.name)
            _unwrap((yield partial(slots.initialize)))
            if not retries:
                raise
            retries -= 1
            asked = None


def _unwrap(outcome: Any) -> Any:
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def _sole(replies: list[Any]) -> Any:
    [reply] = replies
    if isinstance(reply, Exception):
        raise reply
    return reply


def _both(outcome: Any, command: Command) -> list[Any]:
    *_, first, second = _unwrap(outcome)
    if isinstance(first, Exception):
        raise first
    translation = translate(second, command.key, "Redis") if isinstance(second, Exception) else None
    return [first, translation.error if translation else second]


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
            case Send() if not (step.command.followed_by or step.command.meanwhile):
                return client.execute_command(*step.arguments(), **step.options())
            case Send() if step.command.followed_by:
                return _carry_out(client, _followed(client, step, exchange))
            case Send() if isinstance(client, redis.Redis):
                return _sole(exchange(client, [(step.arguments(), step.options())], step.command.meanwhile))
            case Send():
                return client.execute_command(*step.arguments(), **step.options())
            case Pipeline(sends, None) if not isinstance(client, redis.Redis):
                return _filled(client.pipeline(transaction=False), sends).execute(raise_on_error=False)
            case Pipeline(sends, node):
                return exchange(client if node is None else client.get_redis_connection(node), _calls(sends))
            case Bulk(Command(node=node, batch=batch)):
                return send_batch(client if node is None else client.get_redis_connection(node), batch)
            case Wait(seconds):
                return time.sleep(seconds)
            case Primaries():
                return client.get_primaries() if hasattr(client, "get_primaries") else [None]
            case Together(plans):
                return side_by_side([partial(_carry_out, client, plan) for plan in plans])
            case partial():
                return step()
    except Exception as error:  # noqa: BLE001 - the plan raises again what it doesn't know
        return Failed(error)


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls at the same time; their results in order, or the first error once all have ended.

    Each call but the first has a thread that doesn't delay the end of the process: a background scan that is running then is
    cut off silently, where the standard library's pool would refuse to start threads. Started by `_thread`, since a signal
    handler that raises within `threading.Thread.start` becomes a RuntimeError (python/cpython #78667).
    """
    results: list[Any] = [None] * len(calls)
    errors: dict[int, BaseException] = {}
    ended: SimpleQueue[None] = SimpleQueue()

    def make(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors[number] = error
        ended.put(None)

    for number in range(1, len(calls)):
        try:
            start_new_thread(make, (number,))
        except RuntimeError:  # none can be started now
            make(number)
    make(0)
    for _ in calls:
        ended.get()
    if errors:
        raise errors[min(errors)]
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
        case Send() if not (step.command.followed_by or step.command.meanwhile):
            return await client.execute_command(*step.arguments(), **step.options())
        case Send() if step.command.followed_by:
            async with _admission(client):
                return await _acarry_out(client, _followed(client, step, aexchange))
        case Send() if isinstance(client, redis.asyncio.Redis):
            return _sole(await aexchange(client, [(step.arguments(), step.options())], step.command.meanwhile))
        case Send():
            return await client.execute_command(*step.arguments(), **step.options())
        case Pipeline(sends, None) if not isinstance(client, redis.asyncio.Redis):
            return await _filled(client.pipeline(transaction=False), sends).execute(raise_on_error=False)
        case Pipeline(sends, node):
            async with _admission(client):
                return await aexchange(client if node is None else node, _calls(sends))
        case Bulk(Command(node=node, batch=batch)):
            async with _admission(client):
                return await asend_batch(client if node is None else node, batch)
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
        case partial():
            return await awaited(step())


def _admission(client: Any) -> AbstractAsyncContextManager[None]:
    return client.admission() if isinstance(client, AsyncCluster) else nullcontext()


def _calls(sends: list[Send]) -> list[Call]:
    return [(send.arguments(), send.options(routed=False)) for send in sends]


def _filled(pipeline: Any, sends: list[Send]) -> Any:
    for args, options in _calls(sends):
        pipeline.execute_command(*args, **options)
    return pipeline
