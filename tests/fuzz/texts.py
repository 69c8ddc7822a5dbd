"""Texts that try to be more than data, and a decorator for tests that use many of them: 100,000 in all if long. No tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from redis_sessions.keys import MAX_KEY_BYTES

# What means something to Redis, a glob, Lua, a shell, JSON, a URL or a terminal; bidi, zero width, C1.
FRAGMENTS = [
    *("\r\n", "\n", "\t", " ", "\x00", "\x7f", "\x85", "\x1b[2J", "\x1b]0;t\x07", "\x1b]8;;http://h\x1b\\", "\x9b31m"),
    *("\u202e", "\u2066", "\u200b", "\u200d", "\u2028", "\ufeff", "\U000e0041", "\ue000", "é", "日本", "😀", "e\u0301"),
    *("{", "}", "{}", "%", "%7B", "%7b", "%25", ":", ":id:{", ":lease:{", "}:id:{", "*", "?", "[a-z]", "[^a]", "\\"),
    *("\\x1b", "\\u0000", "'", '"', "]]", "[[", "--", "--resume", "-", "$(id)", "`id`", ";", "|", "&", "<", ">", "#", "@"),
    *("*1\r\n$8\r\nFLUSHALL\r\n", "return redis.call('FLUSHALL')", "[red]", "[/]", "[link=x]", "x" * 300),
    *("/", "//", "A", "a", "1", ".", "\x90q"),
]
pieces = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8).map("".join)
# With half pairs, as from a JSON file or a command line that is not UTF-8.
any_text = pieces | st.text(st.characters(codec=None, exclude_categories=[]), max_size=8)
keys = pieces.filter(lambda key: 1 <= len(key.encode()) <= MAX_KEY_BYTES)
namespaces = st.from_regex(r"[A-Za-z0-9_.@-]{1,8}", fullmatch=True)


def amounts(default, long):
    return pytest.mark.parametrize(
        "amount", [default, pytest.param(long, marks=[pytest.mark.long, pytest.mark.timeout(1800)])], ids=["", "long"]
    )


def fuzz(amount, strategy, check, *, phases=(Phase.generate, Phase.shrink)):
    """Check as many inputs. A failure says which one it was."""
    relaxed = settings(
        max_examples=amount, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=phases
    )
    relaxed(given(strategy)(lambda drawn: check(drawn)))()  # noqa: PLW0108 - hypothesis looks at the signature


def has_half_pairs(text):
    return any(0xD800 <= ord(character) < 0xE000 for character in text)
