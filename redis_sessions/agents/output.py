"""An agent's output as it comes: JSON records and lines of text, out of bytes that arrive in any pieces.

A record is a JSON object: on a line of its own, inside a list, or printed over several lines that begin with `{` or `[` and
end with `}` or `]` at the margin. Memory is bounded: of a longer line than MAX_BYTES only the last record of a list is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, Final, TypeAlias

Record: TypeAlias = dict[str, Any]

MAX_BYTES: Final = 16 * 1024 * 1024
MAX_LINE_CHARS: Final = 16_384
# Where a description wants a value, this stands for any but null, false, zero and empty; at the end of a text, for its rest.
ANY: Final = "..."

_UUID: Final = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
_ID: Final = r"['\"“]?(?P<id>[A-Za-z0-9][A-Za-z0-9._:-]*)['\"”]?"
# A word of a command that asks for JSON, in any option of any runtime.
_FORMAT: Final = r"(?:stream-|streaming-|streaming-messages-)?json(?:-thinking)?"
# An option by itself; an option and its value in one word; and an option whose value is the next word.
_JSON: Final = re.compile(rf"(?:--|--experimental-|-o|-.*=){_FORMAT}")
_JSON_VALUE: Final = re.compile(_FORMAT)
_TAKES_FORMAT: Final = re.compile(r"-o|--mode|--.*(?:format|output)")
# Control sequences, such as colors; strings that have an end, such as a window's title; and all others (ECMA-48).
_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\-~])")
# The beginning of one, at the end of a piece.
_CUT = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[]PX^_][^\x07\x1b]*\x1b?|[ -/]*)\Z")
_BOM: Final = b"\xef\xbb\xbf"
_CONTROLS: Final = bytes({*range(32), 127} - {*b"\t"})
_TAIL_BYTES: Final = 256
_LAST_RECORD_BYTES: Final = 65_536
_ELEMENT: Final = re.compile(r"[\[,]\s*(?=\{)")
_DECODER: Final = json.JSONDecoder()


class Reader:
    """Turns a stream that comes in pieces into records (dict) and lines of text (str) without ANSI codes.

    With `records` false, all is text.

    Attributes:
        spoke: whether anything has come but white space and codes for a terminal, such as a title.
        skipped: whether anything was too long to be read whole.
        line: the text of the line that the last record stood on; empty if it had several.
    """

    def __init__(self, *, records: bool = True) -> None:
        self.spoke = self.skipped = False
        self.line = ""
        self._records = records
        self._code = b""
        self._rest = bytearray()
        # The first character of a line that is too long.
        self._start: bytes | None = None
        self._document: list[bytes] = []
        self._document_bytes = 0

    def feed(self, piece: bytes) -> Iterator[Record | str]:
        """Take a further piece; yields what it completes."""
        if not self.spoke:
            self._look(piece)
        *lines, rest = piece.split(b"\n")
        for line in lines:
            self._rest += line
            yield from self._end_line()
        self._rest += rest
        if self._start is not None:
            del self._rest[:-_LAST_RECORD_BYTES]
        elif len(self._rest) > MAX_BYTES:
            self._start, self.skipped = _bare(self._rest[:_TAIL_BYTES]).lstrip()[:1], True
            del self._rest[:-_LAST_RECORD_BYTES]

    def _end_line(self) -> Iterator[Record | str]:
        line, self._rest = bytes(self._rest), bytearray()
        start, self._start = self._start, None
        if start is None:
            yield from self._line(line)
        elif start == b"[" and self._records:
            yield from _last_record(line)

    def unfinished(self) -> Iterator[Record]:
        """Yield the records that would be there if the stream ended now, without its last line break. Takes nothing."""
        if self._start is None and self._records and _bare(self._rest[-_TAIL_BYTES:]).rstrip()[-1:] in (b"}", b"]"):
            with suppress(ValueError, RecursionError):
                yield from _records(_parsed(b"\n".join([*self._document, _bare(self._rest)])))

    def close(self) -> Iterator[Record | str]:
        """Yield what is left when the stream has ended."""
        if self._rest:
            yield from self._end_line()
        lines, self._document = self._document, []
        for line in lines:
            yield _text(line)

    def _look(self, piece: bytes) -> None:
        piece = self._code + piece
        cut = _CUT.search(piece)
        self._code = cut[0] if cut else b""
        # A title has an end.
        shown = piece if len(self._code) > MAX_LINE_CHARS else piece.removesuffix(self._code)
        self.spoke = bool(_bare(shown).translate(None, _CONTROLS + b" \t"))

    def _line(self, line: bytes) -> Iterator[Record | str]:
        line = _bare(line)
        if self._document:
            yield from self._continued(line)
            return
        start = line.lstrip()[:1]
        if self._records and start in (b"{", b"["):
            try:
                value = _parsed(line)
                self.line = _text(line[:MAX_LINE_CHARS])
                yield from _records(value)
            except (ValueError, RecursionError):
                if line[:1] != start:
                    yield _text(line)
                else:
                    self._document, self._document_bytes = [line], len(line)
        else:
            yield _text(line)

    def _continued(self, line: bytes) -> Iterator[Record | str]:
        self._document.append(line)
        self._document_bytes += len(line) + 1
        closing = b"}" if self._document[0][:1] == b"{" else b"]"
        if line.rstrip() == closing:
            try:
                value = _parsed(b"\n".join(self._document))
                self.line = ""
                yield from _records(value)
            except (ValueError, RecursionError):
                pass
            else:
                self._document = []
                return
        # It can't be a document any more, so it was text.
        too_long = self._document_bytes > MAX_BYTES
        self.skipped |= too_long
        if too_long or line[:1] not in (b" ", b"\t", b"", closing, b"}", b"]"):
            lines, self._document = self._document, []
            yield from (_text(each) for each in lines[:1])
            for each in lines[1:]:
                yield from self._line(each)


def _records(value: Any) -> Iterator[Record]:
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list):
        yield from (each for each in value if isinstance(each, dict))


def _last_record(end: bytes) -> Iterator[Record]:
    """Yield the last record of a list, of which this is the end."""
    text = _bare(end).decode("utf-8", "replace")
    for element in _ELEMENT.finditer(text):
        with suppress(ValueError, RecursionError):
            record, at = _DECODER.raw_decode(text, element.end())
            if text[at:].strip() == "]":
                yield record
                return


def _bare(line: bytes | bytearray) -> bytes:
    """A line without codes for a terminal, which JSON never has, and a byte order mark."""
    if b"\x1b" in line:
        line = _ANSI.sub(b"", line)
    return bytes(line.strip(_CONTROLS).removeprefix(_BOM))


def _parsed(text: bytes) -> Any:
    # A byte that is not UTF-8, as of a text that was cut, must not cost the whole record.
    return json.loads(text.decode("utf-8", "replace"))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")[:MAX_LINE_CHARS].rstrip("\r\n ")


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression as descriptions write them, with `{id}` and `{uuid}`. Raises re.error."""
    return re.compile(pattern.replace("{id}", _ID).replace("{uuid}", _UUID))


def asks_for_json(words: Iterable[str]) -> bool:
    """Whether a command asks for JSON: `--json`, `--output-format=json`, `-o json`. The word alone is a prompt."""
    before = ""
    for word in words:
        if _JSON.fullmatch(word) or (_JSON_VALUE.fullmatch(word) and _TAKES_FORMAT.fullmatch(before)):
            return True
        before = word
    return False


def pick(record: Record, path: str, *, numbers: bool = False) -> Iterator[str]:
    """The texts at a dotted path, `error.message`, also inside lists; what is not text (or a number) is left out."""
    for value in _at(record, path):
        if isinstance(value, str):
            yield value
        elif numbers and isinstance(value, int) and not isinstance(value, bool):
            yield str(value)


def size(record: Record, paths: Iterable[str]) -> int:
    """The sum of the last whole number at each of the paths; what can't be a size, such as -1, is left out."""
    found = [[value for value in _at(record, path) if type(value) is int and 0 <= value < 10**15] for path in paths]
    return sum(numbers[-1] for numbers in found if numbers)


def _at(record: Record, path: str) -> list[Any]:
    found: list[Any] = [record]
    for name in path.split("."):
        inside = [value[name] for value in found if isinstance(value, dict) and name in value]
        found = [each for value in inside for each in (value if isinstance(value, list) else [value])]
    return found


def matches(value: Any, wanted: Any) -> bool:
    """Whether a record has all the wanted names and values, also inside it; "x..." is any text that begins with x.

    ANY alone is any true value. Of a list, one value is enough.
    """
    if wanted == ANY:
        return bool(value)
    if isinstance(value, list) and not isinstance(wanted, list):
        return any(matches(each, wanted) for each in value)
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(matches(value.get(name), each) for name, each in wanted.items())
    if isinstance(wanted, str) and wanted.endswith(ANY):
        return isinstance(value, str) and value.startswith(wanted.removesuffix(ANY))
    return bool(value == wanted)
