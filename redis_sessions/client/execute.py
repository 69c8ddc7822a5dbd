"""The only two loops that talk to Redis: `run` and `arun` drive an operation on a redis-py client.

What to send next, after a reply or after a failure, is decided once, in `exchange.py`; the loops do it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from redis_sessions.client.exchange import (
    CALLERS,
    Exchange,
    Failed,
    Link,
    Pipeline,
    Primaries,
    Send,
    Step,
    Together,
    Wait,
    exchange,
    goes_straight,
)
from redis_sessions.operations.command import Command, Op

T = TypeVar("T")


class Client(Protocol):
    """What is used of a redis-py client, standalone or cluster, sync or async (then what it returns is awaited)."""

    def execute_command(self, *args: Any, **options: Any) -> Any: ...
    def pipeline(self, *, transaction: bool) -> Any: ...


def run(client: Client, op: Op[T], link: Link = CALLERS) -> T:
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
    if not goes_straight(commands):
        return _run_exchange(client, exchange(commands, link))
    outcome = _outcome(client, Send(commands[0], link.client_resends))
    return _run_exchange(client, exchange(commands, link, outcome)) if isinstance(outcome, Failed) else [outcome]


def _run_exchange(client: Client, under_way: Exchange[T]) -> T:
    try:
        step = next(under_way)
        while True:
            step = under_way.send(_outcome(client, step))
    except StopIteration as done:
        result: T = done.value
        return result


def _outcome(client: Client, step: Step) -> Any:
    began_s = time.monotonic()
    try:
        return _do(client, step)
    except Exception as error:  # noqa: BLE001 - the exchange raises again what it doesn't know
        return Failed(error, began_s)


def _do(client: Any, step: Step) -> Any:
    match step:
        case Send():
            return client.execute_command(*step.arguments(), **step.options())
        case Pipeline(sends):
            return _filled(client.pipeline(transaction=False), sends).execute(raise_on_error=False)
        case Wait(seconds):
            return time.sleep(seconds)
        case Primaries():
            return client.get_primaries() if hasattr(client, "get_primaries") else [None]
        case Together(exchanges):
            return side_by_side([partial(_run_exchange, client, each) for each in exchanges])


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of calls made at once, in their order; raises the first error, when all have ended.

    Each but the first has a thread. They are daemons, so none holds up the end of the process; and a scan that goes on in
    the background until then is cut off without a word, where the standard library's pool would refuse it more threads.
    """
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException | None] = [None] * len(calls)

    def make(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            errors[number] = error

    threads = [threading.Thread(target=make, args=(number,), daemon=True) for number in range(1, len(calls))]
    for thread in threads:
        thread.start()
    try:
        results[0] = calls[0]()
    finally:
        for thread in threads:
            thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results


async def arun(client: Client, op: Op[T], link: Link = CALLERS) -> T:
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
    if not goes_straight(commands):
        return await _arun_exchange(client, exchange(commands, link))
    outcome = await _aoutcome(client, Send(commands[0], link.client_resends))
    return await _arun_exchange(client, exchange(commands, link, outcome)) if isinstance(outcome, Failed) else [outcome]


async def _arun_exchange(client: Client, under_way: Exchange[T]) -> T:
    try:
        step = next(under_way)
        while True:
            step = under_way.send(await _aoutcome(client, step))
    except StopIteration as done:
        result: T = done.value
        return result


async def _aoutcome(client: Any, step: Step) -> Any:
    began_s = time.monotonic()
    task = asyncio.current_task()
    asked = task.cancelling() if task else 0
    try:
        outcome = await _ado(client, step)
    except Exception as error:  # noqa: BLE001 - see _outcome
        outcome = Failed(error, began_s)
    # redis-py may swallow a cancellation that comes together with a reply; the task still knows that it was asked for.
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
        case Together(exchanges):
            results = await asyncio.gather(*(_arun_exchange(client, each) for each in exchanges), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            return results


def _filled(pipeline: Any, sends: list[Send]) -> Any:
    for send in sends:
        pipeline.execute_command(*send.arguments(), **send.options())
    return pipeline
