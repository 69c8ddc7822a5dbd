"""The two drivers of the resume flow: do what it says, run the agent, and keep the lease meanwhile.

An exception that unwinds a forked child through here leaves its parent's lease alone.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

from redis_sessions.operations.conversation import Operations
from redis_sessions.resume.flow import Do, Flow, Pause, Run
from redis_sessions.resume.renewal import AsyncExecute, AsyncKept, Keeper
from redis_sessions.resume.turn import NoTurn, ResumeResult

T = TypeVar("T")
V = TypeVar("V")


def drive(keeper: Keeper, flow: Flow[ResumeResult[V]], run: Callable[[str | None], Any]) -> ResumeResult[V]:
    """Drive a resume flow to its result, or to what it raises."""
    parent = os.getpid()
    try:
        step = next(flow)
        while True:
            reply: Any = None
            try:
                match step:
                    case Do(op):
                        reply = keeper.execute(op)
                    case Run(session_id, lease):
                        with keeper.kept(lease) if lease else nullcontext():
                            reply = run(session_id)
                    case Pause(seconds):
                        time.sleep(seconds)
            except BaseException as error:
                if os.getpid() != parent:
                    raise
                step = flow.throw(error)
            else:
                step = flow.send(reply)
    except StopIteration as done:
        result: ResumeResult[V] = done.value
        return result


async def adrive(
    ops: Operations,
    execute: AsyncExecute,
    flow: Flow[ResumeResult[V]],
    run: Callable[[str | None], Awaitable[Any]],
) -> ResumeResult[V]:
    """Same as drive, for asyncio. A cancellation takes effect when the step to Redis that is under way has ended."""
    parent = os.getpid()
    try:
        step = next(flow)
        while True:
            reply: Any = None
            try:
                match step:
                    case Do(op):
                        reply = await _finished(execute(op))
                    case Run(session_id, lease):
                        async with AsyncKept(ops, execute, lease) if lease else nullcontext():
                            reply = await _awaitable(run(session_id))
                    case Pause(seconds):
                        await asyncio.sleep(seconds)
            except BaseException as error:
                if os.getpid() != parent:
                    raise
                step = flow.throw(error)
            else:
                step = flow.send(reply)
    except StopIteration as done:
        result: ResumeResult[V] = done.value
        return result


def _awaitable(given: Awaitable[T]) -> Awaitable[T]:
    if isinstance(given, Awaitable):
        return given
    raise NoTurn(f"run must be async, and return a redis_sessions.Turn; it returned {type(given).__name__} at once")


async def _finished(step: Coroutine[Any, Any, T]) -> T:
    """Await a step to its end, cancelled or not: what it does to the lease must not be left open."""
    task = asyncio.ensure_future(step)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Looked at, so that a failure of the step is not reported as never retrieved.
        task.exception()
        raise cancelled
    return task.result()
