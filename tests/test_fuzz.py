"""Whatever text keys, IDs, URLs, names and files are made of: it stays data. The long versions take 100 000 inputs."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot
from typer.testing import CliRunner

from redis_sessions import (
    InvalidKey,
    InvalidSessionID,
    InvalidSettings,
    LegacyFileError,
    SessionStore,
    StoreSettings,
    legacy,
)
from redis_sessions.cli.app import app
from redis_sessions.cli.tables import show_import, show_report, show_sessions
from redis_sessions.keys import COUNTERS, MAX_KEY_BYTES, Keys, check_session_id, escape
from redis_sessions.migrate import ImportResult, Reject
from redis_sessions.ops import Held
from redis_sessions.report import ReportFold
from redis_sessions.scan import Page, SessionRow, session_rows
from redis_sessions.server import EmbeddedServer
from redis_sessions.urls import parse

# What means something to Redis, a glob, Lua, a shell, JSON, a URL or a terminal; bidi, zero width, C1, half a pair.
FRAGMENTS = [
    *(
        "\r\n",
        "\n",
        "\t",
        " ",
        "\x00",
        "\x7f",
        "\x85",
        "\x1b[2J",
        "\x1b]0;t\x07",
        "\x1b]8;;http://h\x1b\\",
        "\x9b31m",
        "\x90q",
    ),
    *("\u202e", "\u2066", "\u200b", "\u200d", "\u2028", "\ufeff", "\U000e0041", "\ue000", "é", "日本", "😀", "e\u0301"),
    *(
        "{",
        "}",
        "{}",
        "%",
        "%7B",
        "%7b",
        "%25",
        ":",
        ":id:{",
        ":lease:{",
        "}:id:{",
        "*",
        "?",
        "[a-z]",
        "[^a]",
        "\\",
        "\\x1b",
        "\\u0000",
    ),
    *(
        "'",
        '"',
        "]]",
        "[[",
        "--",
        "--resume",
        "-",
        "$(id)",
        "`id`",
        ";",
        "|",
        "&",
        "<",
        ">",
        "#",
        "@",
        "/",
        "//",
        "A",
        "a",
        "1",
        ".",
    ),
    *("*1\r\n$8\r\nFLUSHALL\r\n", "return redis.call('FLUSHALL')", "[red]", "[/]", "[link=x]", "x" * 300),
]
pieces = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8).map("".join)
# With half pairs, as from a JSON file or a command line that is no UTF-8.
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


def is_safe(shown, *, tabs=False):
    """Whether text can do nothing at a terminal but be read."""
    return all(line.replace("\t", "" if tabs else "\t").isprintable() for line in shown.split("\n"))


class TestNames:
    @amounts(600, 30_000)
    def test_two_conversations_or_kinds_never_share_a_key(self, amount):
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

    @amounts(600, 20_000)
    def test_a_foreign_name_is_never_taken_for_ours(self, amount):
        scheme = Keys("ns")

        def check(raw):
            for name in (raw, b"ns:id:{" + raw + b"}", b"ns:id:" + raw, raw + b"}"):
                key = scheme.conversation(name)
                assert key is None or scheme.session_id(key) == name

        fuzz(amount, st.binary(max_size=20) | pieces.map(str.encode), check)

    @amounts(600, 10_000)
    def test_a_session_id_is_one_word_and_no_flag(self, amount):
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


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def store(server):
    with SessionStore.from_url(server.url, StoreSettings(namespace="ns")) as store:
        yield store


class TestServer:
    @amounts(100, 2_500)
    def test_nothing_but_the_keys_that_were_meant(self, store, amount):
        """Ten texts an input. A command, glob or Lua would leave other traces; neighbours stay out of sight and unharmed."""
        raw, scheme = store.client, store._ops.keys

        def check(texts):
            raw.flushdb()
            neighbours = {
                f"{near}:id:{{{number}}}".encode() for number, near in enumerate(("nS", "ns2", "n", "xns", "ns:id", "n?"))
            }
            neighbours |= {b"ns:idx:{a}", b"ns:id:a", b"ns:id:{%41}", b"ns", b"*", b"ns:id:{a}b"}
            raw.mset(dict.fromkeys(neighbours, "ID-other"))
            saved, leased = {}, {}
            for number, text in enumerate(texts):
                try:
                    store.set(text, f"ID-{number}")
                    saved[text] = f"ID-{number}"
                    leased[text] = store.acquire(text, f"{text}")
                except InvalidKey:
                    continue
                assert leased[text].session_id == saved[text]
                assert leased[text].token == text
                assert isinstance(store.acquire(text, text + "!"), Held)
                assert store.renew(leased[text])
            assert {row.key: row.session_id for row in store.sessions()} == saved
            report = store.report()
            assert (report.live, report.invalid) == (len(saved), 1)  # the one whose name could only be ours
            assert set(raw.keys()) == neighbours | {name(key) for key in saved for name in (scheme.session_id, scheme.lease)}
            for text, lease in leased.items():
                assert store.get(text) == saved[text]
                assert not store.delete(text, "ID-none")
                assert store.reject(lease)
                assert store.release(lease)
            assert set(raw.keys()) == neighbours
            assert set(raw.mget(neighbours)) == {b"ID-other"}

        fuzz(amount, st.lists(any_text, max_size=10, unique=True), check)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What a function wrote, into a pipe and at a terminal of a kind that Rich draws without escapes for."""
    monkeypatch.setenv("TERM", "dumb")

    def shown(function, *arguments, **options):
        for kind in (io.StringIO, Terminal):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", kind())
                function(*arguments, **options)
                yield sys.stdout.getvalue()

    return shown


class TestScreen:
    @amounts(50, 2_000)
    def test_tables(self, shown, amount):
        def check(texts):
            found = [SessionRow(key, "ID-1", 5, None, 0) for key in texts]
            fold = ReportFold(StoreSettings(namespace="ns"))
            for text in texts:
                fold.add(text.encode("utf-8", "surrogatepass"), 5, b"\x1b[2J")
                fold.add(b"ns:id:{" + text.encode("utf-8", "surrogatepass") + b"}", 5, b"ID")
            rejects = tuple(Reject(key=text, reason=text, source="") for text in texts)
            result = ImportResult(total=9, imported=0, expired=0, kept=0, rejected=len(texts), rejects=rejects)
            counters = dict.fromkeys(COUNTERS, 1)
            assert all(is_safe(output, tabs=True) for output in shown(show_sessions, found))
            assert all(is_safe(output) for output in shown(show_report, fold.finish(counters, approximate=False), "ns"))
            assert all(is_safe(output) for output in shown(show_import, result, dry_run=False))

        fuzz(amount, st.lists(any_text, max_size=6), check)

    @amounts(25, 1_000)
    def test_every_command_that_shows_what_it_was_given(self, server, store, amount, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options = ["--url", server.url, "--namespace", "ns"]

        def run(command, *words):
            result = CliRunner().invoke(app, [command, *options, *words])
            assert isinstance(result.exception, SystemExit | None), result.exception
            assert result.exit_code in (0, 1, 2), result.output
            assert is_safe(result.stderr)
            assert is_safe(result.stdout, tabs=command == "list")
            return result

        def check(given):
            text, planted, name = given
            store.client.flushdb()
            store.client.set(b"ns:id:{" + planted + b"}", planted)
            store.client.lpush("ns:lease:{held}", "x")
            set_it = run("set", "--", text, "ID-1").exit_code == 0
            assert set_it == (0 < len(text.encode("utf-8", "surrogatepass")) <= MAX_KEY_BYTES and not has_half_pairs(text))
            for words in (["get", "--", text], ["delete", "--", f"{text}!"], ["set", "--", "k", text], ["list"], ["report"]):
                run(*words)
            for words in (["get", "--max-age", text, "k"], ["get", "--url", text, "k"], ["get", f"--{text}"], ["run", text]):
                run(*words)
            run("import", "--assume-used-at", text, "--", "nowhere.json")
            if set_it:
                assert json.loads(run("get", "--json", "--", text).stdout)["key"] == text
                rows = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
                assert [row["key"] for row in rows if row["session_id"] == "ID-1"] == [text]
            json.loads(run("report", "--json").stdout)
            file = tmp_path / os.fsdecode(name)
            path = str(file)
            file.write_text(json.dumps({text: "-" + text, "": text, "k": {"id": text, "last_used_at": text}}))
            run("import", "--dry-run", "--rejects", f"{path}.rejects", "--", path)
            rejects = json.loads(run("import", "--json", "--", path).stdout)["rejects"]
            assert text in [reject["key"] for reject in rejects]
            run("export", "--", path)
            file.write_bytes(b'{"a": \xff' + planted)
            run("import", "--", path)
            run("list", "--config", path)
            for leftover in tmp_path.iterdir():
                leftover.unlink()

        names = st.binary(min_size=1, max_size=12).map(lambda name: b"f" + name.replace(b"\0", b"").replace(b"/", b""))
        names |= pieces.map(lambda text: b"f" + text.replace("/", "").replace("\0", "").encode()[:60])
        inputs = st.tuples(any_text, st.binary(max_size=12) | pieces.map(str.encode), names)
        fuzz(amount, inputs, check, phases=[Phase.generate])  # 25 commands each: too slow to look for a smaller one


def has_half_pairs(text):
    return any(0xD800 <= ord(character) < 0xE000 for character in text)


class TestURLs:
    SECRET = "s3cretw0rd"

    @amounts(1_000, 15_000)
    def test_any_text_is_a_target_or_refused_unquoted(self, amount):
        def check(given):
            scheme, user, before, after, rest = given
            url = f"{scheme}://{user}:{before}{self.SECRET}{after}@{rest}"
            for text in (url, scheme + before + rest):
                try:
                    target = parse(text)
                except InvalidSettings as error:
                    assert self.SECRET not in str(error)
                    assert error.__cause__ is None
                else:
                    assert self.SECRET not in target.address
                    assert self.SECRET not in repr(target)

        schemes = [
            "redis",
            "rediss",
            "unix",
            "redis+sentinel",
            "rediss+sentinel",
            "redis+cluster",
            "rediss+cluster",
            "http",
            "",
        ]
        ends = (
            st.sampled_from(["h", "h:1/0", "h1:1,h2:2/main/3", "/run/a.sock?db=1", "[::1]:7", "h?ssl_ca_certs=/c"])
            | any_text
        )
        inside = st.sampled_from(["", "1", "6379/", "/", "@", "?", "#", "%2F", ":", ",", "1/0?", "[", "]"]) | any_text
        fuzz(amount, st.tuples(st.sampled_from(schemes), st.sampled_from(["", "user"]), inside, inside, ends), check)


class TestFiles:
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.just(10**4000),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text | st.just("id"), inner, max_size=3),
        max_leaves=6,
    )
    documents = st.dictionaries(any_text, json_values | st.fixed_dictionaries({"id": any_text, "last_used_at": json_values}))
    syntax = st.lists(
        st.sampled_from(
            ["{", "}", '"a"', ":", ",", "[", "]", '"id"', '"last_used_at"', "NaN", "-Infinity", "1e999", "-0", "\\"]
        )
        | st.sampled_from(
            ['"\\ud800"', '"\\u0000"', '{"a":"b"', '"a":1,', " ", "\ufeff", "1" * 5000, "[" * 5000, '{"a":' * 5000]
        )
        | any_text,
        max_size=12,
    ).map("".join)
    raw = (
        st.binary(max_size=60)
        | syntax.map(lambda text: text.encode("utf-8", "surrogatepass"))
        | st.tuples(documents.map(json.dumps), st.integers(0, 99), st.binary(max_size=3)).map(
            lambda drawn: drawn[0].encode()[: drawn[1]] + drawn[2] + drawn[0].encode()[drawn[1] :]
        )
    )

    @amounts(400, 6_000)
    def test_any_bytes_are_read_or_refused(self, store, amount, tmp_path):
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
                assert store.client.dbsize() == result.imported
                legacy.write_rejects(tmp_path / "rejects.json", (reject.source for reject in result.rejects))
                assert len(legacy.read(tmp_path / "rejects.json")) == result.rejected
            with suppress(InvalidSettings):
                StoreSettings.from_json_file(path)

        fuzz(amount, self.raw, check)

    @amounts(300, 6_000)
    def test_an_entry_is_read_as_json_reads_it(self, amount, tmp_path):
        """The usual shape has a way of its own past `json`; what nearly has it must not slip through."""
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
                right = is_key(key) and is_id(record["id"]) and record["last_used_at"] > 10**11
                assert (entry.problem is None) == right
                assert entry.used_at_ms == (record["last_used_at"] if right else None)

        ids = st.sampled_from(["ID-1", "0190c3e2-5b1f", "-x", "", "ID\n", "a" * 256, "a" * 257]) | any_text
        times = st.sampled_from([1_732_250_000, 1_732_250_000_000, -1_732_250_000_000, 10**18])
        records = st.fixed_dictionaries({"id": ids, "last_used_at": times})
        documents = st.dictionaries(any_text | st.sampled_from(["k" * 128, "k" * 513, 'a"b', "a\\b"]), records, max_size=4)
        fuzz(amount, st.tuples(documents, st.booleans(), st.sampled_from([None, 0, 1])), check)

    @amounts(300, 6_000)
    def test_a_page_is_read_as_its_keys_are_one_by_one(self, amount):
        chosen = StoreSettings(namespace="ns")
        scheme = Keys("ns")

        def check(rows):
            sessions = list(session_rows(chosen, Page(*map(list, zip(*rows, strict=True)), 10**13)))
            alone = [each for row in rows for each in session_rows(chosen, Page(*([cell] for cell in row), 10**13))]
            assert sessions == alone
            for session in sessions:
                assert (scheme.session_id(session.key), check_session_id("k", session.session_id)) in {
                    (redis_key, value) for redis_key, _, value in rows
                }
            together, one_by_one = ReportFold(chosen), ReportFold(chosen)
            together.add_page(*zip(*rows, strict=True))
            for row in rows:
                one_by_one.add(*row)
            first, second = (fold.finish({}, approximate=False).model_dump() for fold in (together, one_by_one))
            assert first | {"scan_ms": 0} == second | {"scan_ms": 0}

        names = st.one_of(st.binary(max_size=9), pieces.map(str.encode), st.just(b"a")).map(
            lambda raw: b"ns:id:{" + raw + b"}"
        )
        values = (
            st.none() | st.binary(max_size=9) | pieces.map(str.encode) | st.sampled_from([b"ID-1", b"ID\n", b"ID ID", b""])
        )
        rows = st.tuples(names | st.binary(max_size=9), st.integers(-2, 10**9), values)
        usual = st.tuples(keys.map(scheme.session_id), st.integers(-2, 10**9), st.sampled_from([b"ID-1", b"ID-2"]))
        fuzz(amount, st.lists(rows, min_size=1, max_size=5) | st.lists(usual | rows, min_size=1, max_size=5), check)


def is_key(text):
    return not has_half_pairs(text) and 1 <= len(text.encode()) <= MAX_KEY_BYTES


def is_id(text):
    with suppress(InvalidSessionID):
        return check_session_id("k", text) is not None
    return False
