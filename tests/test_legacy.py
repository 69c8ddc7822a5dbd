"""sessions.json as a file: all shapes of entries, all kinds of broken files. No Redis."""

from __future__ import annotations

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_sessions import FileNotWritten, LegacyFileError
from redis_sessions.legacy import file as legacy
from redis_sessions.legacy.file import AHEAD_MS, Entry, expires_at_ms

NOW_MS = 1_732_250_000_000
DAY_MS = 86_400_000


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "sessions.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def only(path):
    [entry] = legacy.read(path)
    return entry


def test_both_shapes_mixed_in_their_order(file):
    path = file('{"a": "ID-1",\n "b": {"id": "ID-2", "last_used_at": 1732250000000, "more": [1, {"x": 2}]}}\n')
    read = legacy.read(path)
    assert [entry._replace(source="") for entry in read] == [Entry("a", "ID-1"), Entry("b", "ID-2", NOW_MS)]
    assert list(read)[1].source == '"b": {"id": "ID-2", "last_used_at": 1732250000000, "more": [1, {"x": 2}]}'
    assert read.mtime_ms == os.stat(path).st_mtime_ns // 1_000_000
    assert legacy.session_ids(path) == {"ID-1", "ID-2"}


@pytest.mark.parametrize("text", ["{}", " {\n} ", "\ufeff{}"])
def test_an_empty_file_has_no_entries(file, text):
    assert list(legacy.read(file(text))) == []


PROBLEMS = {
    '"a": "-dash"': "can't be the session ID",
    '"a": ""': "can't be the session ID",
    '"a": "two words"': "can't be the session ID",
    '"": "ID-1"': "0 bytes",
    f'"{"x" * 513}": "ID-1"': "513 bytes",
    '"\\ud800": "ID-1"': "not valid text",
    '"a": 7': "a number where",
    '"a": null': "null where",
    '"a": true': "true or false where",
    '"a": ["ID-1"]': "a list where",
    '"a": {}': "without text in id",
    '"a": {"id": 7, "last_used_at": 1732250000000}': "without text in id",
    '"a": {"id": "ID-1", "id": "ID-2"}': "occurs twice",
    '"a": {"id": "ID-1", "last_used_at": -1}': "not a time since 1973",
    '"a": {"id": "ID-1", "last_used_at": 1.5}': "not a time since 1973",
    '"a": {"id": "ID-1", "last_used_at": 1e30}': "not a time since 1973",
    '"a": {"id": "ID-1", "last_used_at": 1e400}': "not a time since 1973",
    '"a": {"id": "ID-1", "last_used_at": NaN}': "not a time since 1973",
    '"a": {"id": "ID-1", "last_used_at": "yesterday"}': "text, not a time",
    '"a": {"id": "ID-1", "last_used_at": "1969-12-31T00:00:00Z"}': "not a time since 1973",
    '"a": {"id": "ID-1", "last_used_at": {"$date": "2026-11-26T09:55:38Z"}}': "but last_used_at.$date looks like one",
    '"a": {"id": "undefined", "last_used_at": 1732250000000}': "not a session ID",
    '"a": "None"': "not a session ID",
    '"a": "2026-11-26T09:55:38.183Z"': "not a session ID",
    '"a": "v1.2.3"': "not a session ID",
    '"a": "sessions.jsonl"': "not a session ID",
    '"a": "/home/agent/p"': "can't be the session ID",
    '"a": {"id": "ID-1", "last_used_at": true}': "true or false, not a time",
    '"a": {"id": "ID-1", "last_used_at": {}}': "an object, not a time",
}


@pytest.mark.parametrize(("pair", "problem"), PROBLEMS.items(), ids=range(len(PROBLEMS)))
def test_an_invalid_entry_says_why_and_keeps_its_source(file, pair, problem):
    path = file("{" + pair + "}")
    entry = only(path)
    assert problem in entry.problem
    assert entry.source == pair


@pytest.mark.parametrize("never", ["0", "0.0", '"0"'])
def test_0_is_a_time_of_never(file, never):
    entry = only(file(f'{{"a": {{"id": "ID-1", "last_used_at": {never}}}}}'))
    assert (entry.problem, entry.used_at_ms) == (None, 0)


def test_a_key_that_occurs_twice_is_refused_each_time(file):
    entries = legacy.read(file('{"a": "ID-1", "b": "ID-2", "a": "ID-1"}'))
    assert [entry.problem for entry in entries] == ["key occurs 2 times", None, "key occurs 2 times"]


BROKEN = {
    "": (1, 1),
    "{": (1, 2),
    '{"a"': (1, 5),
    '{"a": }': (1, 7),
    '{"a": "ID-1"\n "b": "ID-2"}': (2, 2),
    '{"a": "ID-1",}': (1, 14),
    '{"a": "ID-1",\n\n  b: 1}': (3, 3),
    '{"a": "ID-1"} x': (1, 15),
    "[1] x": (1, 5),
    '{"a": "un\nfinished"}': (1, 10),
    '{"a": ' + "1" * 5000 + "}": (1, 7),
    '{"a": ' + "[" * 100_000 + "}": (1, 7),
}


@pytest.mark.parametrize(("text", "place"), BROKEN.items(), ids=range(len(BROKEN)))
def test_broken_json_is_located_by_line_and_column(file, text, place):
    with pytest.raises(LegacyFileError) as caught:
        legacy.read(file(text))
    assert (caught.value.line, caught.value.column) == place
    assert f"line {place[0]}, column {place[1]}" in str(caught.value)


def test_text_that_is_not_utf8_is_located_too(file):
    with pytest.raises(LegacyFileError) as caught:
        legacy.read(file(b'{"a":\n "\xff"}'))
    assert (caught.value.line, caught.value.column) == (2, 3)


@pytest.mark.parametrize(("text", "shape"), [("[]", "a list"), ('"x"', "text"), ("7", "a number"), ("null", "null")])
def test_a_file_of_another_shape_is_refused(file, text, shape):
    with pytest.raises(LegacyFileError, match=shape):
        legacy.read(file(text))


def test_a_missing_file(tmp_path):
    with pytest.raises(LegacyFileError, match="No such file"):
        legacy.read(tmp_path / "missing.json")
    with pytest.raises(LegacyFileError, match="Is a directory"):
        legacy.read(tmp_path)


@pytest.mark.parametrize(
    ("entry", "assumed_ms", "expected"),
    [
        (Entry("a", "ID-1", NOW_MS), None, NOW_MS + DAY_MS),
        (Entry("a", "ID-1", NOW_MS - DAY_MS), None, NOW_MS),
        (Entry("a", "ID-1", 0), NOW_MS, DAY_MS),
        (Entry("a", "ID-1"), None, DAY_MS),
        (Entry("a", "ID-1"), NOW_MS - 5, NOW_MS - 5 + DAY_MS),
        (Entry("a", "ID-1", NOW_MS + AHEAD_MS), None, NOW_MS + DAY_MS),
        (Entry("a", "ID-1", NOW_MS + AHEAD_MS + 1), None, "last used 5m in the future"),
        (Entry("a", "ID-1", NOW_MS + 2 * 86_400_000), None, "last used 2d in the future"),
        (Entry("a", "ID-1"), NOW_MS * 2, "in the future"),
    ],
)
def test_when_an_entry_expires(entry, assumed_ms, expected):
    until = expires_at_ms(entry, NOW_MS, DAY_MS, assumed_ms)
    assert until == expected or (isinstance(expected, str) and expected in until)


class TestWriter:
    def test_it_replaces_the_file_with_mode_0600(self, tmp_path):
        path = tmp_path / "out.json"
        path.write_text("old")
        with legacy.Writer(path) as writer:
            writer.add([("a", "ID-1", NOW_MS, 0)])
            writer.add([])
            writer.add([('spät "b"\n', "ID-2", NOW_MS + 1, None), ("c", "ID-3", 0, 0)])
            assert path.read_text() == "old"
        assert json.loads(path.read_text()) == {
            "a": {"id": "ID-1", "last_used_at": NOW_MS},
            'spät "b"\n': {"id": "ID-2", "last_used_at": NOW_MS + 1},
            "c": {"id": "ID-3", "last_used_at": 0},
        }
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["out.json"]

    def test_nothing_is_written_if_the_block_raises(self, tmp_path):
        path = tmp_path / "out.json"
        path.write_text("old")
        with pytest.raises(ZeroDivisionError), legacy.Writer(path) as writer:
            writer.add([("a", "ID-1", 1 // 0, 0)])
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["out.json"]

    def test_a_missing_directory(self, tmp_path):
        with pytest.raises(FileNotWritten, match="can't be written"), legacy.Writer(tmp_path / "no" / "out.json"):
            pytest.fail("must not open")

    def test_names_that_lead_to_rejects_are_any_text(self, tmp_path):
        names = ("\ud800x", "日本")
        legacy.write_rejects(tmp_path / "rejects.json", [(names, '"k": "-x"')])
        assert "日本" in (tmp_path / "rejects.json").read_text()
        assert json.loads((tmp_path / "rejects.json").read_text()) == {names[0]: {names[1]: {"k": "-x"}}}

    def test_rejects_are_written_unaltered_and_read_again(self, tmp_path, file):
        text = '{"a":7,"b" : {"id":"-x", "last_used_at":1.50},"a":"ID-1"}'
        read = legacy.read(file(text))
        legacy.write_rejects(tmp_path / "rejects.json", [(entry.within, entry.source) for entry in read])
        assert (tmp_path / "rejects.json").read_text() == (
            '{\n  "a":7,\n  "b" : {"id":"-x", "last_used_at":1.50},\n  "a":"ID-1"\n}\n'
        )
        assert list(legacy.read(tmp_path / "rejects.json")) == list(read)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "last_used_at", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.lists(st.tuples(st.text(), values), max_size=8))
def test_any_object_is_read_entry_by_entry_with_its_sources(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("legacy") / "sessions.json"
    pairs = [("good", {"id": "ID-1"}), *pairs]  # without a session the file might be of another shape
    sources = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs]
    path.write_text("{" + ", ".join(sources) + "}")
    read = legacy.read(path)
    assert [entry.key for entry in read] == [key for key, _ in pairs]
    assert [entry.source for entry in read] == sources
    assert len(read) == len(pairs)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("legacy") / "sessions.json"
    path.write_bytes(raw)
    try:
        legacy.read(path)
    except LegacyFileError as error:
        assert error.line


@given(
    key=st.one_of(st.text(max_size=130), st.from_regex(r"[a-z#/é]{1,130}", fullmatch=True)),
    session_id=st.one_of(st.text(max_size=8), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,8}", fullmatch=True)),
    used_at=st.one_of(st.integers(), st.integers(10**10, 10**15)),
    space=st.sampled_from(["", " ", "\n\t "]),
)
def test_the_usual_shape_is_read_like_any_other(tmp_path_factory, key, session_id, used_at, space):
    path = tmp_path_factory.mktemp("legacy") / "sessions.json"
    name, value = json.dumps(key, ensure_ascii=False), json.dumps(session_id)
    usual = f'{name}:{space}{{{space}"id":{space}{value},{space}"last_used_at":{used_at}}}'
    odd = f'{name}: {{"last_used_at": {used_at}, "id": {value}}}'
    entries = []
    for pair in (usual, odd):
        path.write_text(f"{{{space}{pair}{space}}}", "utf-8", "surrogatepass")
        try:
            entries.append([entry._replace(source="") for entry in legacy.read(path)])
        except LegacyFileError as error:
            assert "not UTF-8" in error.message
            return
    assert entries[0] == entries[1]
