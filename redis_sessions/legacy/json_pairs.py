"""A JSON object taken apart pair by pair: names that occur twice are seen, and each pair keeps its source.

Values are what `json` makes of them, but for objects, which are tuples of (name, value). A caller who knows what most pairs
look like gives a pattern of them, and where it matches gets the match instead, in a third of the time.
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


def pairs(text: str, usual: re.Pattern[str]) -> Iterator[tuple[str, Any, int, int]]:
    """Names and values of the top-level object, and where each pair begins and ends. Raises JSONDecodeError or NoObject.

    `usual` matches a pair and what follows it, up to the next pair or past the closing brace. Its groups: the pair; a
    name without escapes; any others; last the comma or brace.
    """
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
        more = True
        while more:
            if found := usual.match(text, at):
                yield found[2], found, at, found.end(1)
                at, more = found.end(), found[found.re.groups] == ","
                continue
            key, value, end = pair(text, at)
            yield key, value, at, end
            at = _skip(text, end)
            more = text.startswith(",", at)
            if not more and not text.startswith("}", at):
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip(text, at + 1)
    if _skip(text, at) != len(text):
        raise JSONDecodeError("Extra data", text, _skip(text, at))


def pair(text: str, at: int) -> tuple[str, Any, int]:
    """The name and value of the pair that begins there, and where it ends. Raises JSONDecodeError."""
    if not text.startswith('"', at):
        raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    key, end = _value(text, at)
    colon = _skip(text, end)
    if not text.startswith(":", colon):
        raise JSONDecodeError("Expecting ':' delimiter", text, colon)
    return (key, *_value(text, _skip(text, colon + 1)))


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
