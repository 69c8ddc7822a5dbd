"""A TCP proxy that injects faults: replies that are lost, late, cut in half or split into bytes; lost requests. No tests.

It parses enough of RESP to separate messages, so that a fault is for one command wherever its bytes begin or
end, in a pipeline too. As in TCP nothing is ever left out of the middle: once a reply is withheld, so is all that follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from tests.faults.resp import Messages, words
from tests.stores import Loop

# So many bytes of a reply go singly, the rest in pieces of a few.
SINGLE_BYTES: Final = 96
PIECE_BYTES: Final = 7


class Fault(StrEnum):
    """What to do to one command or its reply; `open` keeps the connection, so that the client runs into its timeout."""

    REPLY_DROPPED = "reply dropped, closed"
    REPLY_DROPPED_OPEN = "reply dropped, open"
    REPLY_LATE = "reply late"
    REPLY_HALVED = "reply cut in half, closed"
    REPLY_HALVED_OPEN = "reply cut in half, open"
    REPLY_IN_BYTES = "reply byte by byte"
    REQUEST_LOST = "request lost, closed"
    REQUEST_LOST_OPEN = "request lost, open"
    REQUEST_HALVED = "request cut in half, closed"

    @property
    def row(self) -> str:
        """Its row in the ledger."""
        return self.partition(",")[0]

    @property
    def hangs(self) -> bool:
        """Whether the client has to run into its timeout."""
        return self.endswith("open") or self is Fault.REPLY_LATE

    @property
    def never_runs(self) -> bool:
        """Whether the server never sees the command."""
        return self.startswith("request")


@dataclass(eq=False)
class Order:
    """One fault, for the n-th command from now that `match` takes, and for as many as `times` in all.

    Attributes:
        command: the last command that it hit; empty before.
        fired: set when it has hit.
    """

    fault: Fault
    nth: int
    match: Callable[[list[bytes]], bool]
    times: int
    command: list[bytes] = field(default_factory=list)
    fired: threading.Event = field(default_factory=threading.Event)


def any_command(_: list[bytes]) -> bool:
    """Match every command."""
    return True


def named(*names: str) -> Callable[[list[bytes]], bool]:
    """Match commands by their names."""
    wanted = {name.encode() for name in names}
    return lambda command: command[0].upper() in wanted


class Proxy:
    """Between clients on `url` and one server. Use it in a `with`, which closes every connection, from any thread.

    Attributes:
        late_s: how long a late reply is held back; more than the client's socket timeout.
        commands: what came from clients lately, lost ones included; clear it to see what comes next.
        injected: how many faults were carried out, by kind.
    """

    def __init__(self, server_port: int, loop: Loop, *, late_s: float) -> None:
        self.late_s = late_s
        self.commands: deque[list[bytes]] = deque(maxlen=1_000)
        self.injected: dict[Fault, int] = dict.fromkeys(Fault, 0)
        self._server_port = server_port
        self._lock = threading.Lock()
        self._orders: list[Order] = []
        self._chance: Callable[[], Fault | None] = lambda: None
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._listener = self._loop.run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._stop())

    def inject(
        self, fault: Fault, nth: int = 0, match: Callable[[list[bytes]], bool] = any_command, *, times: int = 1
    ) -> Order:
        """Spoil the n-th command from now that `match` takes, counted from 0, and what comes after it up to `times`."""
        order = Order(fault, nth, match, times)
        with self._lock:
            self._orders.append(order)
        return order

    def inject_by_chance(self, probability: float, faults: Iterable[Fault], seed: int) -> None:
        """From now on, spoil each command with this probability."""
        dice, kinds = random.Random(seed), list(faults)
        with self._lock:
            self._chance = lambda: dice.choice(kinds) if dice.random() < probability else None

    def calm(self) -> None:
        """Spoil nothing more."""
        with self._lock:
            self._orders.clear()
            self._chance = lambda: None

    def settle(self) -> None:
        """Return when all that clients had sent is on its way to the server, also what they have given up meanwhile."""
        self._loop.run(_some_rounds())

    def _fault_for(self, command: list[bytes]) -> Fault | None:
        with self._lock:
            self.commands.append(command)
            chosen = self._chance()
            for order in list(self._orders):
                if order.match(command):
                    order.nth -= 1
                    if order.nth < 0:
                        order.times -= 1
                        if not order.times:
                            self._orders.remove(order)
                        order.command = command
                        order.fired.set()
                        chosen = order.fault
            if chosen is not None:
                self.injected[chosen] += 1
            return chosen

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # An explicit task: the one that asyncio would make reports its cancellation as an error.
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            await _Connection(self, reader, writer, server_reader, server_writer).run()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _stop(self) -> None:
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()
        await _some_rounds()  # what was closed last learns it in the next round of the loop


async def _some_rounds() -> None:
    # One to see that there is something to read, one to read it, one to pass it on; and some to be sure.
    for _ in range(8):
        await asyncio.sleep(0)


class _Connection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(
        self,
        proxy: Proxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._server_reader, self._server_writer = server_reader, server_writer
        # Faults of the commands that wait for their replies, in order; None where there is none.
        self._waiting: deque[Fault | None] = deque()
        self._asked_again = asyncio.Event()
        self._closing = False

    async def run(self) -> None:
        """Pass on until the client has gone, or a fault closes the connection."""
        upward, downward = asyncio.create_task(self._requests()), asyncio.create_task(self._replies())
        try:
            await asyncio.wait([upward, downward], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (upward, downward):
                task.cancel()
            self._server_writer.close()  # before anything is awaited, where the proxy's end may cancel this
            # A peer that has gone is not an error here.
            await asyncio.gather(upward, downward, return_exceptions=True)
            with contextlib.suppress(OSError):
                await self._server_writer.wait_closed()

    async def _requests(self) -> None:
        messages = Messages()
        while data := await self._reader.read(65_536):
            self._asked_again.set()
            for message in messages.feed(data):
                fault = self._proxy._fault_for(words(message))
                if fault is None or not fault.never_runs:
                    self._waiting.append(fault)
                    self._server_writer.write(message)
                    continue
                if fault is Fault.REQUEST_HALVED:
                    self._server_writer.write(message[: len(message) // 2])
                # What was asked before it, in the same pipeline say, is still answered; all after it is lost as well.
                self._closing = fault is not Fault.REQUEST_LOST_OPEN
                while not (self._closing and not self._waiting) and await self._reader.read(65_536):
                    pass
                return
            await self._server_writer.drain()

    async def _replies(self) -> None:
        messages = Messages()
        while data := await self._server_reader.read(65_536):
            for message in messages.feed(data):
                fault = self._waiting[0]
                half = message[: len(message) // 2]
                match fault:
                    case Fault.REPLY_DROPPED:
                        return
                    case Fault.REPLY_HALVED:
                        self._writer.write(half)
                        await self._writer.drain()
                        return
                    case Fault.REPLY_DROPPED_OPEN | Fault.REPLY_HALVED_OPEN:
                        if fault is Fault.REPLY_HALVED_OPEN:
                            self._writer.write(half)
                        await asyncio.Event().wait()  # until the client closes, or the proxy ends
                    case Fault.REPLY_LATE:
                        # Sent at the latest when the client asks something else: then it is the wrong reply.
                        self._asked_again.clear()
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._asked_again.wait(), self._proxy.late_s)
                        self._writer.write(message)
                    case Fault.REPLY_IN_BYTES:
                        await self._in_bytes(message)
                    case _:
                        self._writer.write(message)
                self._waiting.popleft()
                if self._closing and not self._waiting:
                    await self._writer.drain()
                    return
            await self._writer.drain()

    async def _in_bytes(self, message: bytes) -> None:
        rest = range(SINGLE_BYTES, len(message), PIECE_BYTES)
        for start in [*range(min(SINGLE_BYTES, len(message))), *rest]:
            self._writer.write(message[start : start + (1 if start < SINGLE_BYTES else PIECE_BYTES)])
            await self._writer.drain()
            await asyncio.sleep(0)
