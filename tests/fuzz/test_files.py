"""Legacy files: any bytes are read or refused, and what is read is what `json` reads."""

from __future__ import annotations

import json
import re
from contextlib import suppress

from hypothesis import strategies as st

from redis_sessions import InvalidSessionID, InvalidSettings, LegacyFileError, StoreSettings
from redis_sessions.keys import MAX_KEY_BYTES, Keys, check_session_id
from redis_sessions.legacy import file as legacy
from redis_sessions.legacy.shape import NO_ID
from tests.fuzz.texts import amounts, any_text, fuzz, has_half_pairs

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text | st.just("id"), inner, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(any_text, json_values | st.fixed_dictionaries({"id": any_text, "last_used_at": json_values}))
syntax = st.lists(
    st.sampled_from(["{", "}", '"a"', ":", ",", "[", "]", '"id"', '"last_used_at"', "NaN", "-Infinity", "1e999", "-0", "\\"])
    | st.sampled_from(
        ['"\\ud800"', '"\\u0000"', '{"a":"b"', '"a":1,', " ", "\ufeff", "1" * 5000, "[" * 5000, '{"a":' * 5000]
    )
    | any_text,
    max_size=12,
).map("".join)
contents = (
    st.binary(max_size=60)
    | syntax.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.tuples(documents.map(json.dumps), st.integers(0, 99), st.binary(max_size=3)).map(
        lambda drawn: drawn[0].encode()[: drawn[1]] + drawn[2] + drawn[0].encode()[drawn[1] :]
    )
)


@amounts(400, 6_000)
def test_any_bytes_are_read_or_refused(store, amount, tmp_path):
    path = tmp_path / "sessions.json"

    def check(raw):
        path.write_bytes(raw)
        store.client.flushdb()
        try:
            entries = legacy.read(path)
            result = store.import_legacy(path, assume_used_at="mtime")
        except LegacyFileError as error:
            assert error.line
            assert store.client.dbsize() == 0
        else:
            assert result.total == len(entries)
            assert result.imported + result.expired + result.kept + result.rejected == result.total
            assert store.client.dbsize() - store.client.exists(Keys(store.settings.namespace).settings()) == result.imported
            rejects = [(reject.within, reject.source) for reject in result.rejects]
            legacy.write_rejects(tmp_path / "rejects.json", rejects)
            assert len(legacy.read(tmp_path / "rejects.json")) == result.rejected
        with suppress(InvalidSettings):
            StoreSettings.from_json_file(path)

    fuzz(amount, contents, check)


@amounts(300, 6_000)
def test_an_entry_is_read_like_json_reads_it(amount, tmp_path):
    """The usual shape is read by a regular expression; what is only similar must be read the same as by `json`."""
    path = tmp_path / "sessions.json"

    def check(drawn):
        document, escaped, indent = drawn
        path.write_bytes(json.dumps(document, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass"))
        try:
            entries = list(legacy.read(path))
        except LegacyFileError as error:
            assert "UTF-8" in str(error)
            assert not escaped
            return
        assert [entry.key for entry in entries] == list(document)
        for entry, (key, record) in zip(entries, document.items(), strict=True):
            assert entry.session_id == record["id"]
            right = is_key(key) and is_id(record["id"]) and record["last_used_at"] > 0
            assert (entry.problem is None) == right
            assert entry.used_at_ms == (in_ms[record["last_used_at"]] if right else None)

    ids = st.sampled_from(["ID-1", "0190c3e2-5b1f", "-x", "", "ID\n", "a" * 256, "a" * 257]) | any_text
    in_ms = {1_732_250_000: 1_732_250_000_000, 1_732_250_000_000: 1_732_250_000_000, 10**18: 10**12}
    times = st.sampled_from([*in_ms, -1_732_250_000_000])
    records = st.fixed_dictionaries({"id": ids, "last_used_at": times})
    usual = st.dictionaries(any_text | st.sampled_from(["k" * 128, "k" * 513, 'a"b', "a\\b"]), records, max_size=4)
    fuzz(amount, st.tuples(usual, st.booleans(), st.sampled_from([None, 0, 1])), check)


def is_key(text):
    return not has_half_pairs(text) and 1 <= len(text.encode()) <= MAX_KEY_BYTES


def is_id(text):
    with suppress(InvalidSessionID):
        return check_session_id("k", text) is not None and not re.fullmatch(NO_ID, text)
    return False
