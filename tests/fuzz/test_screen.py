"""What is shown at a terminal can do nothing there but be read, whatever a command was given or found."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from typer.testing import CliRunner

from redis_sessions import StoreSettings
from redis_sessions.cli.app import app
from redis_sessions.cli.output import display
from redis_sessions.cli.tables import report_sections, show_import, show_sessions
from redis_sessions.keys import COUNTERS, MAX_KEY_BYTES
from redis_sessions.legacy.transfer import ImportResult, Reject
from redis_sessions.operations.report import ReportFold
from redis_sessions.operations.scan import Page, SessionRow
from tests.fuzz.texts import amounts, any_text, fuzz, has_half_pairs, pieces


def is_safe(shown, *, tabs=False):
    """Whether text can do nothing at a terminal but be read."""
    return all(line.replace("\t", "" if tabs else "\t").isprintable() for line in shown.split("\n"))


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


@amounts(25, 2_000)
def test_tables(shown, amount):
    def check(texts):
        found = [SessionRow(key, "ID-1", 5, None, 0) for key in texts]
        fold = ReportFold(StoreSettings(namespace="ns"))
        for text in texts:
            raw = text.encode("utf-8", "surrogatepass")
            fold.add_page(Page([raw, b"ns:id:{" + raw + b"}"], [5, 5], [b"\x1b[2J", b"ID"], 0))
        rejects = tuple(Reject(key=text, reason=text, source="") for text in texts)
        result = ImportResult(total=9, imported=0, expired=0, kept=0, rejected=len(texts), rejects=rejects)
        counters = dict.fromkeys(COUNTERS, 1)
        assert all(is_safe(output, tabs=True) for output in shown(show_sessions, found))
        report = fold.finish(counters, approximate=False)
        assert all(is_safe(output) for output in shown(lambda: display(*report_sections(report, "ns"))))
        assert all(is_safe(output) for output in shown(show_import, result, dry_run=False))

    fuzz(amount, st.lists(any_text, max_size=6), check)


@amounts(12, 1_000)
def test_every_command_that_shows_what_it_was_given(server, store, amount, tmp_path, monkeypatch):
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
