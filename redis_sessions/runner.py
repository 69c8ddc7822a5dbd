"""The two drivers of the resume flow: do what it says, run the agent, and keep the lease meanwhile.

The sync one keeps it with a thread, the async one with a task. After a fork the child has no such thread, so it renews
nothing of its parent's; and an exception that unwinds a child through here leaves its parent's lease alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

from redis_sessions.commands import Op
from redis_sessions.ops import Lease, Operations
from redis_sessions.resume import Do, Flow, Pause, ResumeResult, Run

log = logging.getLogger("redis_sessions")

T = TypeVar("T")
V = TypeVar("V")


class Execute(Protocol):
    """Drives one operation to its result, as SessionStore does on its client."""

    def __call__(self, op: Op[T], /) -> T: ...


class AsyncExecute(Protocol):
    """Same as Execute, awaited."""

    def __call__(self, op: Op[T], /) -> Coroutine[Any, Any, T]: ...


def drive(
    ops: Operations, execute: Execute, flow: Flow[ResumeResult[V]], run: Callable[[str | None], Any]
) -> ResumeResult[V]:
    """Drive a resume flow to its result, or to what it raises."""
    parent = os.getpid()
    try:
        step = next(flow)
        while True:
            reply: Any = None
            try:
                match step:
                    case Do(op):
                        reply = execute(op)
                    case Run(session_id, lease):
                        with _kept(ops, execute, lease):
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


@contextmanager
def _kept(ops: Operations, execute: Execute, lease: Lease | None) -> Iterator[None]:
    if lease is None:
        yield
        return
    over = threading.Event()

    def keep() -> None:
        renewals = _Renewals(ops, lease)
        while not over.wait(renewals.pause_s):
            renewals.note(_outcome(lambda: execute(ops.renew(lease))), over=over.is_set())

    # A daemon, and never waited for: a renewal that hangs must hold up neither the turn's result nor the way out.
    threading.Thread(target=keep, name=f"lease of {lease.key[:40]}", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _outcome(renew: Callable[[], bool]) -> bool | Exception:
    try:
        return renew()
    except Exception as error:  # noqa: BLE001 - whatever it was, the next third of the lease gets another try
        return error


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
                        async with _akept(ops, execute, lease):
                            reply = await run(session_id)
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


@asynccontextmanager
async def _akept(ops: Operations, execute: AsyncExecute, lease: Lease | None) -> AsyncIterator[None]:
    if lease is None:
        yield
        return

    over = asyncio.Event()

    async def keep() -> None:
        renewals = _Renewals(ops, lease)
        # Asked each time, since a cancellation that comes just as a reply does can get lost in the client.
        while not over.is_set():
            await asyncio.sleep(renewals.pause_s)
            renewals.note(await _aoutcome(execute(ops.renew(lease))), over=over.is_set())

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        over.set()
        task.cancel()
        await asyncio.wait([task])


async def _aoutcome(renew: Awaitable[bool]) -> bool | Exception:
    try:
        return await renew
    except Exception as error:  # noqa: BLE001 - whatever it was, the next third of the lease gets another try
        return error


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


class _Renewals:
    """When to renew a lease next, and what to say of how it went."""

    def __init__(self, ops: Operations, lease: Lease) -> None:
        self._lease = lease
        self.pause_s = ops.settings.lease_ms / 3000

    def note(self, outcome: object, *, over: bool) -> None:
        if outcome is True or over:
            return
        if outcome is False:
            log.error("conversation %r was taken over while its turn runs on", self._lease.key)
            self.pause_s = threading.TIMEOUT_MAX
        else:
            log.warning("lease of %r was not renewed: %r", self._lease.key, outcome)
