"""Parses as much of RESP 2 and 3 as is needed to separate messages and to read a command. No tests."""

from __future__ import annotations


class Messages:
    """Cuts a stream of RESP into whole messages, wherever the chunks of it begin or end."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete."""
        self._buffer += data
        whole, start = [], 0
        while (end := _end(self._buffer, start)) is not None:
            whole.append(self._buffer[start:end])
            start = end
        self._buffer = self._buffer[start:]
        return whole


def words(message: bytes) -> list[bytes]:
    """Name and arguments of a command."""
    found, at = [], message.index(b"\r\n") + 2
    while at < len(message):
        line_end = message.index(b"\r\n", at)
        size = int(message[at + 1 : line_end])
        found.append(message[line_end + 2 : line_end + 2 + size])
        at = line_end + 4 + size
    return found


def _end(data: bytes, start: int) -> int | None:
    """Where the message that begins at `start` ends; None if it isn't all there."""
    left = 1
    while left:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return None
        kind, head = data[start : start + 1], data[start + 1 : line_end]
        start = line_end + 2
        left -= 1
        if kind in b"$=!" and head != b"-1":
            start += int(head) + 2
            if start > len(data):
                return None
        elif kind in b"*~>" and head != b"-1":
            left += int(head)
        elif kind == b"%":
            left += 2 * int(head)
    return start
