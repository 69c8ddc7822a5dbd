"""Names of keys and IDs: all are distinct, and none is more than a name."""

from __future__ import annotations

from hypothesis import strategies as st
from redis.crc import key_slot

from redis_sessions import InvalidSessionID
from redis_sessions.keys import COUNTERS, Keys, check_session_id, escape
from tests.fuzz.texts import amounts, any_text, fuzz, keys, namespaces, pieces


@amounts(250, 30_000)
def test_two_conversations_or_kinds_never_share_a_key(amount):
    def check(pair):
        names = {}
        for namespace, key in pair:
            scheme = Keys(namespace)
            for name in (scheme.session_id(key), scheme.lease(key)):
                assert names.setdefault(name, (namespace, key)) == (namespace, key)
                assert key_slot(name) == key_slot(escape(key).encode())
                assert not any(byte < 0x20 or byte == 0x7F for byte in name)
            assert scheme.session_id(key) != scheme.lease(key)
            assert not {scheme.counter(counter) for counter in COUNTERS} & {scheme.session_id(key), scheme.lease(key)}
            for other, _ in pair:
                found = Keys(other).conversation(scheme.session_id(key))
                assert found == (key if other == namespace else None)
                assert Keys(other).conversation(scheme.lease(key)) is None

    related = st.tuples(namespaces, keys, namespaces, keys).map(
        lambda drawn: [(drawn[0], drawn[1]), (drawn[2], drawn[3]), (drawn[0], drawn[3]), (drawn[0] + "x", drawn[1])]
    )
    fuzz(amount, related, check)


@amounts(250, 20_000)
def test_a_foreign_name_is_never_taken_for_ours(amount):
    scheme = Keys("ns")

    def check(raw):
        for name in (raw, b"ns:id:{" + raw + b"}", b"ns:id:" + raw, raw + b"}"):
            key = scheme.conversation(name)
            assert key is None or scheme.session_id(key) == name

    fuzz(amount, st.binary(max_size=20) | pieces.map(str.encode), check)


@amounts(250, 10_000)
def test_a_session_id_is_one_word_and_not_a_flag(amount):
    def check(text):
        try:
            raw = check_session_id("the-key", text)
        except InvalidSessionID as error:
            assert error.key == "the-key"
        else:
            assert raw.decode() == text
            assert text.isascii()
            assert text[0].isalnum()
            assert not set(text) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")

    fuzz(amount, any_text | st.from_regex(r"[-A-Za-z0-9._:]{1,9}\s?"), check)
