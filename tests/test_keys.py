"""The key scheme: each conversation key has one Redis key, and each such Redis key one conversation."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from redis_sessions import InvalidKey, InvalidSessionID
from redis_sessions.keys import MAX_KEY_BYTES, Keys, are_session_ids, check_session_id, escape, is_session_id

KEYS = Keys("sessions")
texts = st.text(min_size=1, max_size=60).filter(lambda key: len(key.encode()) <= MAX_KEY_BYTES)


def test_keys_are_readable():
    assert KEYS.session_id("acme/shop#42:reviewer") == b"sessions:id:{acme/shop#42:reviewer}"
    assert KEYS.lease("spät") == "sessions:lease:{spät}".encode()
    assert KEYS.counter("resume_failures_total") == b"sessions:counter:resume_failures_total"


@pytest.mark.parametrize(
    ("key", "escaped"),
    [("100%", "100%25"), ("{a}", "%7Ba%7D"), ("a\tb\x7f", "a%09b%7F"), ("\x85", "%C2%85"), ("*?[é", "*?[é")],
)
def test_only_what_must_be_is_escaped(key, escaped):
    assert escape(key) == escaped


@given(texts)
@example("%7B")
@example("}")
@example("{")
def test_escaping_is_reversible(key):
    redis_key = KEYS.session_id(key)
    assert KEYS.conversation(redis_key) == key
    assert not any(byte < 32 or byte == 127 for byte in redis_key)


@given(texts, texts)
def test_two_conversations_never_share_a_key(one, other):
    assume(one != other)
    assert KEYS.session_id(one) != KEYS.session_id(other)


@given(texts)
def test_all_keys_of_a_conversation_share_a_slot(key):
    assert key_slot(KEYS.session_id(key)) == key_slot(KEYS.lease(key)) == key_slot(escape(key).encode())


@given(texts)
def test_the_scan_finds_it_by_its_prefix_and_no_other_kind(key):
    assert KEYS.session_id(key).startswith(KEYS.prefix)
    assert not KEYS.lease(key).startswith(KEYS.prefix)
    assert not Keys("sessions2").session_id(key).startswith(KEYS.prefix)


@given(st.binary(max_size=40))
@example(b"sessions:id:{%41}")
@example(b"sessions:id:{%7b}")
@example(b"sessions:id:{}")
@example(b"sessions:id:{a}b}")
@example(b"sessions:id:{a")
@example(b"sessions:id:{\xff}")
def test_a_scanned_key_belongs_to_the_scheme_only_if_it_is_reversible(raw):
    for redis_key in (raw, b"sessions:id:{" + raw + b"}"):
        key = KEYS.conversation(redis_key)
        assert key is None or KEYS.session_id(key) == redis_key


@given(st.text(max_size=300))
@example("-a")
@example("a\n")
@example("a" * 256)
@example("a" * 257)
def test_a_session_id_is_a_name_and_never_a_flag(text):
    try:
        raw = check_session_id("key", text)
    except InvalidSessionID as error:
        assert error.key == "key"
    else:
        assert is_session_id(raw)
        assert raw.decode() == text
        assert text.isascii()
        assert text[0].isalnum()
        assert not set(text) & set(" \t\r\n*?[]{}%'\"\\$`;|&<>()")


@given(st.text())
def test_any_text_is_a_key_or_refused(text):
    try:
        escape(text)
    except InvalidKey:
        assert not 1 <= len(text.encode("utf-8", "surrogatepass")) <= MAX_KEY_BYTES or not text.isprintable()


maybe_ours = st.one_of(
    texts.map(KEYS.session_id),
    st.from_regex(r"[a-z#/:]{1,9}", fullmatch=True).map(KEYS.session_id),
    st.sampled_from(
        [b"sessions:id:{}", b"sessions:id:{a}\nsessions:id:{b}", b"sessions:id:{a}\n", b"sessions:id:{%41}", b""]
    ),
)


@given(st.lists(maybe_ours, max_size=6))
def test_a_page_of_keys_is_read_like_each_key(redis_keys):
    each = [KEYS.conversation(redis_key) for redis_key in redis_keys]
    assert KEYS.conversations(redis_keys) == each


@given(st.lists(st.sampled_from([b"ID-1", b"a" * 256, b"a" * 257, b"", b"-x", b"a\nb", b"a\n", b"\xff", None]), max_size=4))
def test_a_page_of_values_is_read_like_each_value(values):
    assert are_session_ids([b"ID-1", *values]) == all(value is not None and is_session_id(value) for value in values)
