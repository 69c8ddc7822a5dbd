"""A JSON object taken apart pair by pair: names that occur twice are seen, and each pair keeps its source.

Values are what `json` makes of them, but for objects, which are tuples of (name, value).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder(object_pairs_hook=tuple).raw_decode


class NoObject(Exception):
    """The text is JSON, and no object; the message says what it is."""


def pairs(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Names and values of the top-level object, and where each pair begins and ends. Raises JSONDecodeError or NoObject."""
    at = _skip(text, 0)
    if not text.startswith("{", at):
        value, end = _value(text, at)
        if _skip(text, end) != len(text):
            raise JSONDecodeError("Extra data", text, _skip(text, end))
        raise NoObject(shape(value))
    at = _skip(text, at + 1)
    if text.startswith("}", at):
        at += 1
    else:
        while True:
            if not text.startswith('"', at):
                raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
            key, end = _value(text, at)
            colon = _skip(text, end)
            if not text.startswith(":", colon):
                raise JSONDecodeError("Expecting ':' delimiter", text, colon)
            value, end = _value(text, _skip(text, colon + 1))
            yield key, value, at, end
            at = _skip(text, end)
            if text.startswith("}", at):
                at += 1
                break
            if not text.startswith(",", at):
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip(text, at + 1)
    if _skip(text, at) != len(text):
        raise JSONDecodeError("Extra data", text, _skip(text, at))


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern matches the empty string
    return found.end()


def _value(text: str, at: int) -> tuple[Any, int]:
    try:
        return _decode(text, at)
    except JSONDecodeError:
        raise
    except ValueError:
        raise JSONDecodeError("Number with too many digits", text, at) from None
    except RecursionError:
        raise JSONDecodeError("Nested too deeply", text, at) from None


def shape(value: Any) -> str:
    """What a value is, in words."""
    names = {dict: "an object", tuple: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
