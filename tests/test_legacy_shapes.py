"""Other tools' files: the known shapes, the shapes that options describe, and files that are refused. Most without Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from redis_sessions import InvalidSettings, LegacyFileError
from redis_sessions.cli import exit_codes as exits
from redis_sessions.legacy import Shape, known_shapes, session_ids
from redis_sessions.legacy import file as legacy
from tests import test_cli_support
from tests.test_cli_support import Cli, spawn

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

NOW_MS = time.time_ns() // 1_000_000 - 3_600_000
ISO = datetime.fromtimestamp(NOW_MS / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def an_id(number):
    return f"{number:08x}-5b1f-4a44-9d1e-3f6f0b8f2a00"


# What real tools write, with invented keys.
KNOWN = {
    "openclaw": {
        f"agent:main:{key}": {
            "sessionId": an_id(number),
            "sessionFile": f"/data/{an_id(number)}.jsonl",
            "updatedAt": NOW_MS,
            "totalTokens": 18233,
            "cliSessionIds": {"claude-cli": an_id(number + 100)},
            "claudeCliSessionId": an_id(number + 100),
            "deliveryContext": {"channel": "mail", "to": "mail:1"},
        }
        for number, key in enumerate(("main", "mail:group:1:topic:2", "cron:0a"))
    },
    "tele-claude": {
        "version": 1,
        "sessions": {
            "mail:1:2": {
                "claude_session_id": an_id(1),
                "cwd": "/data/p",
                "created_at": NOW_MS / 1000 - 60,
                "last_activity": NOW_MS / 1000,
                "message_count": 15,
            }
        },
    },
    "per-chat-record": {"version": 1, "chat_id": 17, "session_id": "abc123", "working_dir": "/data/a", "saved_at": ISO},
    "channels": {"channels": {"C1": {"sessionId": an_id(1), "workingDir": "/data", "mode": "plan", "threads": {}}}},
    "sessions-iso": {
        "sessions": {
            "thread-1": {
                "sessionId": an_id(1),
                "threadId": "thread-1",
                "createdAt": "2026-01-01T00:00:00Z",
                "lastUsedAt": ISO,
            }
        }
    },
    "codex-registry": {"sessions": [{"id": an_id(1), "status": "active", "task_summary": "x", "last_used": ISO}]},
}
KNOWN["openclaw-claude"] = KNOWN["openclaw"]

# A document, what reads it, and the (key, session ID) that it then has. All are used at NOW_MS.
RECORD = {"sessionId": an_id(1), "updatedAt": NOW_MS}
CAMEL = {"id_fields": ("sessionId",), "used_fields": ("updatedAt",)}
SHAPES = {
    "two deep": ({"state": {"chats": {"c:1": RECORD}}, "v": 3}, {"entries": "state.chats", **CAMEL}, [("c:1", an_id(1))]),
    "any name": (
        {"hosts": {"a": {"c1": RECORD}, "b": {"c1": RECORD}}},
        {"entries": "hosts.*", **CAMEL},
        [("a:c1", an_id(1)), ("b:c1", an_id(1))],
    ),
    "any name, keyed by session ID": (
        {
            "users": {
                "u1": {an_id(1): {"chat": "c", "updatedAt": NOW_MS}},
                "u2": {an_id(2): {"chat": "c", "updatedAt": NOW_MS}},
            }
        },
        {"entries": "users.*", "key_field": "chat", "id_fields": ("@key",), "used_fields": ("updatedAt",)},
        [("u1:c", an_id(1)), ("u2:c", an_id(2))],
    ),
    "any name, lists": (
        {"users": {"u1": [{"chat": 1, **RECORD}], "u2": [{"chat": 1, **RECORD}]}},
        {"entries": "users.*", "key_field": "chat", **CAMEL},
        [("u1:1", an_id(1)), ("u2:1", an_id(1))],
    ),
    "names with dots": (
        {"hosts": {"build.example.com": {"a": {"c1": RECORD}}, "build": {}}},
        {"entries": "hosts.build.example.com.*", **CAMEL},
        [("a:c1", an_id(1))],
    ),
    "below each record": (
        {"channels": {"C1": {"threads": {"17": RECORD}}, "C2": {"threads": {}}, "C3": {}}},
        {"entries": "channels.*.threads", **CAMEL},
        [("C1:17", an_id(1))],
    ),
    "list of records": (
        [{"chat": "c1", "session_id": "s1", "ts": NOW_MS * 1000}, {"chat": 2, "session_id": "s2", "ts": NOW_MS * 1000}],
        {"key_field": "chat", "id_fields": ("session_id",), "used_fields": ("ts",)},
        [("c1", "s1"), ("2", "s2")],
    ),
    "rows of a database": (
        {"columns": ["chat", "session", "used"], "rows": [["c1", "s1", NOW_MS], ["c2", "s2", NOW_MS]]},
        {"entries": "rows", "key_field": "0", "id_fields": ("1",), "used_fields": ("2",)},
        [("c1", "s1"), ("c2", "s2")],
    ),
    "keyed by session ID": (
        {an_id(1): {"conversation": {"id": "c1"}, "seen": ISO}},
        {"key_field": "conversation.id", "id_fields": ("@key",), "used_fields": ("seen",)},
        [("c1", an_id(1))],
    ),
    "snake_case and camelCase mixed": (
        {"c1": {"session_id": "s1", "last_used": NOW_MS}, "c2": {"sessionId": "s2", "lastUsed": NOW_MS}},
        {"id_fields": ("session_id", "sessionId"), "used_fields": ("last_used", "lastUsed")},
        [("c1", "s1"), ("c2", "s2")],
    ),
    "nested fields, and a name with dots": (
        {"c1": {"agent": {"session": "s1"}, "times": {"last.used": {"$date": ISO}}}},
        {"id_fields": ("agent.session",), "used_fields": ("times.last.used.$date",)},
        [("c1", "s1")],
    ),
    "one record": (
        {"user": "u1", "sid": "s1", "at": NOW_MS},
        {"key_field": "user", "id_fields": ("sid",), "used_fields": ("at",)},
        [("u1", "s1")],
    ),
    "empty map": ({"version": 1, "sessions": {}}, {"entries": "sessions"}, []),
    "empty list": ({"sessions": []}, {"entries": "sessions", "key_field": "chat"}, []),
}


@pytest.fixture
def write(tmp_path):
    def written(document):
        path = tmp_path / "in.json"
        path.write_text(json.dumps(document))
        return path

    return written


def rows(path, shape):
    return [(entry.key, entry.session_id, entry.used_at_ms, entry.problem) for entry in legacy.read(path, shape)]


@pytest.mark.parametrize("name", SHAPES)
def test_options_read_a_shape_and_what_is_wrong_stays_readable(write, tmp_path, name):
    document, fields, expected = SHAPES[name]
    shape, path = Shape(**fields), write(document)
    assert rows(path, shape) == [(key, session_id, NOW_MS, None) for key, session_id in expected]
    assert session_ids(path, shape) == {session_id for _, session_id in expected}
    # A file of rejects is read by the same options.
    entries = legacy.read(path, shape)
    legacy.write_rejects(tmp_path / "rejects.json", [(entry.within, entry.source) for entry in entries])
    if expected:
        assert rows(tmp_path / "rejects.json", shape) == rows(path, shape)
        assert json.loads((tmp_path / "rejects.json").read_text())


def test_session_ids_are_rather_too_many_than_too_few(write):
    document = {
        "c1": {"id": an_id(1), "threads": {"c2": {"sessionId": an_id(2)}}},
        "c3": {"session_id": an_id(3)},
        "c4": {"thread_id": an_id(4)},
        "c5": an_id(5),
        "c6": {"id": an_id(6), "last_used_at": "yesterday"},
    }
    assert session_ids(write(document)) == {an_id(number) for number in range(1, 7)}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_file_is_refused_with_the_options_that_import_it(cli: Cli, write, name):
    path = write(KNOWN[name])
    refused = cli("import", path, code=exits.USAGE).stderr
    assert "nothing was written: read it with --from " in refused
    assert re.search(rf"--from [a-z -]*\b{name}\b", refused)
    options = ["--from", name]
    if name == "channels":
        assert "has no times, so that one must be assumed" in refused
        [reject] = cli.json("import", *options, path, code=exits.PARTLY)["rejects"]
        assert reject["reason"] == "no lastUsedAt or updatedAt, and no time is assumed"
        options += ["--assume-used-at", "mtime"]
    count = 3 if "openclaw" in name else 1
    result = cli.json("import", *options, path)
    assert (result["imported"], result["total"]) == (count, count)
    assert sum(result["times"].values()) == (0 if name == "channels" else count)
    # The other options that were named read the same.
    spelled = re.search(r", or (--(?!from).*)\n", refused)
    if name not in ("openclaw-claude", "codex-registry"):
        again = cli.json("import", *spelled[1].split(), *options[2:], path)
        assert again == {**result, "imported": 0, "kept": count}
    assert cli.value({"openclaw": "agent:main:main", "openclaw-claude": "agent:main:main", "tele-claude": "mail:1:2",
                      "per-chat-record": "17", "channels": "C1", "sessions-iso": "thread-1",
                      "codex-registry": an_id(1)}[name]).decode() == {
        "openclaw": an_id(0), "openclaw-claude": an_id(100), "per-chat-record": "abc123"}.get(name, an_id(1))  # fmt: skip


def test_the_known_shapes_are_all_tried_and_described(write):
    assert {shape.name for shape in known_shapes()} == set(KNOWN)
    for shape in known_shapes():
        assert shape.about
    with pytest.raises(InvalidSettings, match="name one of channels, "):
        session_ids(write({}), "nothing")
    with pytest.raises(InvalidSettings, match="id_fields is invalid"):
        Shape(id_fields=())


REFUSED = {
    "metadata": ({"version": "1.2.0", "app": "some-program"}, "name a file of conversations"),
    "nested": ({"state": {"chats": {"c1": RECORD}}}, 'Shape(entries="state.chats", id_fields=("sessionId",), '),
    "two of them": ({"hosts": {"a": {"c1": RECORD}, "b": {"c1": RECORD}}}, 'entries="hosts.*"'),
    "maps below each name": ({"a": {"C1": {"b": {"1": RECORD}}, "C2": {"b": {"2": RECORD}}}}, 'entries="a.*.b"'),
    "two kinds of records": ({"sessions": {"c": RECORD}, "users": {"7": {"id": "user-0007"}}}, 'entries="sessions"'),
    "an ID of a session in a record with another": ({"u": {"a": {"id": "user-7", "b": {"c": RECORD}}}}, 'entries="u.a.b"'),
    "several places": (
        {"channels": {"C1": {**RECORD, "threads": {"17": RECORD}}, "C2": {"threads": {"18": RECORD}}}},
        "name one of them at a time as entries: channels, channels.*.threads",
    ),
    "which are conversations?": ({"sessions": {"c": {"id": "a"}}, "x": {"7": {"id": "b"}}}, "as entries: sessions, x"),
    "a name that no path can say": ({"": {"c": RECORD}}, "name a file of conversations"),
    "bare IDs beside metadata": ({"version": 1, "sessions": {"c1": "some-session"}}, 'entries="sessions"'),
    "empty": ({"version": 1, "sessions": {}}, 'entries="sessions"'),
    "list": ([{"chat": "c1", **RECORD}], 'key_field="chat"'),
    "keyed by session ID": ({an_id(1): {"chat": "c1", "updatedAt": NOW_MS}}, 'key_field="chat", id_fields=("@key",)'),
    "one record": ({"session_id": "abcdefgh", "user": "abcdefgh"}, 'key_field="user", id_fields=("session_id",)'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_another_shape_is_refused_with_what_reads_it(write, name):
    document, says = REFUSED[name]
    path = write(document)
    with pytest.raises(LegacyFileError) as caught:
        legacy.read(path)
    assert says in caught.value.remedy.replace("'", '"')
    if found := re.search(r"Shape\(.*\)", caught.value.remedy):
        assert all(problem is None for *_, problem in rows(path, eval(found[0], {"Shape": Shape})))


def _with_ids(document, ids):
    """A drawn document in which every ID is another one; `ids` gets those."""
    if document == AN_ID:
        ids.append(an_id(len(ids)))
        return ids[-1]
    if isinstance(document, dict):
        return {_with_ids(name, ids): _with_ids(value, ids) for name, value in document.items()}
    return [_with_ids(each, ids) for each in document] if isinstance(document, list) else document


AN_ID = "an ID"
_fields = st.fixed_dictionaries({"chat": st.sampled_from(["1", 2]), "updatedAt": st.just(NOW_MS)})
_records = _fields.map(lambda fields: {**fields, "sessionId": AN_ID})
_names = st.sampled_from(["sessions", "threads", "users", "u1", "u2", "a.b", "a", "*", ""])


# In a record, only what is named as the ID of a session is taken for one.
_in_records = st.dictionaries(
    _names, st.dictionaries(_names, _records, max_size=2) | st.lists(_records, max_size=1), max_size=2
)
_nested = st.tuples(_in_records, _records).map(lambda two: two[0] | two[1])


def _maps(inner):
    return st.dictionaries(_names, inner, max_size=3) | st.lists(inner, max_size=1)


_parts = st.recursive(
    st.dictionaries(_names, _records | _nested, max_size=2)
    | st.lists(_nested, max_size=2)
    | _fields.map(lambda fields: {AN_ID: fields})
    | st.sampled_from([7, "text", {}, [], ["text"], {"mode": "plan"}, {"7": {"id": "user-0007"}}]),
    _maps,
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.dictionaries(_names, _parts, min_size=1, max_size=3))
@example({"sessions": [], "u1": {"a": {"sessionId": AN_ID}}, "u2": {"a": {"sessionId": AN_ID}}})
def test_what_a_refusal_names_reads_every_session_or_nothing_is_named(tmp_path_factory, drawn):
    ids: list[str] = []
    path = tmp_path_factory.mktemp("legacy") / "in.json"
    path.write_text(json.dumps(_with_ids(drawn, ids)))
    try:
        legacy.read(path)
    except LegacyFileError as error:
        for shape in error.shapes[-1:] if ids else ():
            entries = list(legacy.read(path, shape))
            assert {entry.session_id for entry in entries} >= set(ids)
            assert all(entry.session_id in ids for entry in entries if not entry.problem)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ("sessions.*.x", r"sessions.a in .* has no x, "),
        ("chats", r"has no chats.*name one of version, sessions"),
        ("version", r"version in .* is a number"),
    ],
)
def test_a_place_that_is_not_there(write, entries, says):
    with pytest.raises(LegacyFileError, match=says):
        legacy.read(write({"version": 1, "sessions": {"a": {}}}), Shape(entries=entries))


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (
            {"id": "ID-1", "lastUsedAt": NOW_MS, "createdAt": 1},
            "no last_used_at, but lastUsedAt looks like a time",
        ),
        ({"id": "ID-1", "created": NOW_MS // 1000, "updated_at": ISO}, "but updated_at looks like a time"),
        ({"id": "ID-1", "count": NOW_MS}, None),
        ({"session_id": "ID-1", "last_used_at": NOW_MS}, "but session_id looks like an ID"),
    ],
)
def test_a_record_with_an_unknown_time_is_never_expired(make_store, write, document, reason):
    store, path = make_store(), write({"good": {"id": "ID-0", "last_used_at": NOW_MS}, "a": document})
    result = store.import_legacy(path, dry_run=True)
    assert (result.imported, result.expired, result.rejected) == (1, 0 if reason else 1, 1 if reason else 0)
    assert reason is None or reason in result.rejects[0].reason
    if "id" in document:
        assert store.import_legacy(path, assume_used_at=NOW_MS, dry_run=True).imported == 2


TIMES = {
    "seconds": (NOW_MS // 1000, "seconds"),
    "float seconds": (NOW_MS / 1000, "seconds"),
    "float milliseconds": (float(NOW_MS), "milliseconds"),
    "text": (str(NOW_MS), "milliseconds"),
    "microseconds": (NOW_MS * 1000, "microseconds"),
    "nanoseconds": (NOW_MS * 10**6, "nanoseconds"),
    "ISO": (ISO, "ISO 8601"),
    "ISO with offset": (ISO.replace("Z", "+00:00"), "ISO 8601"),
    "ISO local": (
        datetime.fromtimestamp(NOW_MS / 1000).isoformat(),  # noqa: DTZ006
        "ISO 8601 without time zone, taken as local",
    ),
}


def test_each_time_is_recognized_and_counted(make_store, write):
    document = {name: {"id": "ID-1", "last_used_at": value} for name, (value, _) in TIMES.items()}
    entries = {entry.key: entry for entry in legacy.read(write(document))}
    for name, (_, unit) in TIMES.items():
        assert (entries[name].problem, entries[name].unit) == (None, unit)
        assert entries[name].used_at_ms in (NOW_MS, NOW_MS // 1000 * 1000)
    result = make_store().import_legacy(write(document))
    units = [unit for _, unit in TIMES.values()]
    assert result.times == {unit: units.count(unit) for unit in units}
    assert result.imported == len(TIMES)


def test_ids_of_another_agent_are_rejected(make_store, write):
    store, path = make_store(), write({"a": an_id(1), "b": "ses_1234"})
    [reject] = store.import_legacy(path, agent="claude", assume_used_at=NOW_MS).rejects
    assert (reject.key, "form" in reject.reason) == ("b", True)
    [reject] = store.import_legacy(path, agent="opencode", assume_used_at=NOW_MS, dry_run=True).rejects
    assert reject.key == "a"


def test_usual_records_behave_the_same_in_long_runs(write, tmp_path):
    """They are read many at once; odd ones, repeated keys and rejects among them must not be mixed up."""
    document = {f"k{n}": {"id": f"ID-{n}", "last_used_at": NOW_MS + n} for n in range(2500)}
    pairs = [f'"{key}": {json.dumps(value)}' for key, value in document.items()]
    pairs.insert(1200, '"odd": "ID-odd"')
    pairs.append('"k7": {"id": "ID-7", "last_used_at": 1732250000000}')
    path = tmp_path / "in.json"
    path.write_text("{" + ",\n".join(pairs) + "}")
    read = legacy.read(path)
    entries = list(read)
    assert len(entries) == len(read) == 2502
    assert [entry.source for entry in entries] == pairs
    assert [entry.key for entry in entries if entry.problem] == ["k7", "k7"]
    assert entries[1200].session_id == "ID-odd"
    assert entries[2501 - 1].used_at_ms == NOW_MS + 2499


def test_an_interrupted_import_says_how_much_was_written(cli: Cli, tmp_path, monkeypatch):
    monkeypatch.setattr(test_cli_support, "PROGRAM", test_cli_support.program_with(batch_size=10))
    file = tmp_path / "in.json"
    file.write_text(json.dumps({f"k{n}": {"id": f"ID-{n}", "last_used_at": NOW_MS} for n in range(100_000)}))
    process = spawn("import", str(file), *cli.options, stderr=subprocess.PIPE)
    while not cli.value("k600"):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == exits.INTERRUPTED
    found = re.search(rb"ended early: of 100000 entries at least ([0-9]+) were written", said)
    there = sum(1 for _ in cli.raw.scan_iter(f"{cli.namespace}:id:*", count=10_000))
    assert 0 <= there - int(found[1]) <= 10


def test_rejects_are_checked_before_anything_is_imported(cli: Cli, write, tmp_path):
    path = write({"k": {"id": "ID-1", "last_used_at": NOW_MS}, "bad": "-"})
    for place in (tmp_path / "nowhere/x", tmp_path):
        assert "can't be written" in cli("import", "--rejects", place, path, code=exits.USAGE).stderr
    assert cli.value("k") is None
    assert sorted(os.listdir(tmp_path)) == ["in.json"]
