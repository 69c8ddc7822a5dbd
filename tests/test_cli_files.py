"""`import` and `export`, run in this process against a real server."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli.transfer import used_at
from tests import test_cli_support
from tests.test_cli_support import DAY_MS, EVIL_KEYS, Cli, spawn

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    now_ms = time.time_ns() // 1_000_000
    entries = {
        "new": {"id": "id-new", "last_used_at": now_ms - 3_600_000},
        "live": {"id": "id-file", "last_used_at": now_ms - 1_000},
        "old": {"id": "id-old", "last_used_at": now_ms - 2 * DAY_MS},
        "untimed": "id-untimed",
        "text": {"id": "id-s", "last_used_at": "yesterday"},
        "[red]flag\x1b[2J": {"id": "--resume", "last_used_at": now_ms},
    }
    file = tmp_path / "sessions.json"
    file.write_text(json.dumps(entries))
    return file


def test_import(cli: Cli, mixed: Path) -> None:
    cli.plant("live", "id-redis")
    dry = cli.json("import", "--dry-run", mixed, code=exits.PARTLY)
    assert cli.value("new") is None
    result = cli.json("import", mixed, code=exits.PARTLY)
    assert dry == result
    reasons = [reject.pop("reason") for reject in result["rejects"]]
    assert result == {
        "total": 6,
        "imported": 1,
        "expired": 2,
        "kept": 1,
        "rejected": 2,
        "rejects": [{"key": "text"}, {"key": "[red]flag\x1b[2J"}],
        "times": {"milliseconds": 3},
    }
    assert "text, not a time" in reasons[0]
    assert "can't be the session ID" in reasons[1]
    assert (cli.value("new"), cli.value("live"), cli.value("old")) == (b"id-new", b"id-redis", None)
    assert 0 <= DAY_MS - 3_600_000 - cli.pttl_ms("new") < 60_000


def test_import_shows_the_verdicts(cli: Cli, mixed: Path) -> None:
    shown = cli("import", "--dry-run", "--assume-used-at", "mtime", mixed, code=exits.PARTLY).stdout
    for line in ("imported  3  would be, this was a dry run", "expired   1", "kept      0", "rejected  2", "total     6"):
        assert re.search(rf"^  {line}", shown, re.MULTILINE)
    assert re.search(r"^  \[red\]flag\\x1b\[2J +'--resume' can't be", shown, re.MULTILINE)


def test_only_the_first_rejects_are_shown(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({f"k{n:02}": "-" for n in range(30)}))
    shown = cli("import", tmp_path / "in.json", code=exits.PARTLY).stdout
    assert "Rejected: the first 20 of 30" in shown
    assert "k19" in shown
    assert "k20" not in shown
    assert len(cli.json("import", tmp_path / "in.json", code=exits.PARTLY)["rejects"]) == 30


def test_rejects_can_be_fixed_and_imported(cli: Cli, mixed: Path, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.json"
    assert f"in {rejects}\n" in cli("import", "--rejects", rejects, mixed, code=exits.PARTLY).stderr
    again = cli.json("import", rejects, code=exits.PARTLY)
    assert (again["total"], again["rejected"]) == (2, 2)
    now_ms = time.time_ns() // 1_000_000
    fixed = {key: {"id": "id-fixed", "last_used_at": now_ms} for key in json.loads(rejects.read_text())}
    rejects.write_text(json.dumps(fixed))
    assert cli.json("import", rejects)["imported"] == 2
    none = tmp_path / "none.json"
    assert f"{none} was not written" in cli("import", "--rejects", none, rejects).stderr
    assert not none.exists()


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("lost", ["a closed pipe", "a full disk"])
def test_rejects_are_written_even_if_the_result_is_lost(cli: Cli, tmp_path: Path, options: list[str], lost: str) -> None:
    file, rejects = tmp_path / "in.json", tmp_path / "rejects.json"
    file.write_text(json.dumps({f"k{number}": "-" for number in range(300)}))
    reading, writing = os.pipe() if lost == "a closed pipe" else (os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", 1))
    os.close(reading)
    with os.fdopen(writing, "wb") as broken:
        process = spawn("import", "--rejects", rejects, *options, file, *cli.options, stdout=broken)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, b"Traceback" in said) == (exits.PARTLY, False)
    assert len(json.loads(rejects.read_text())) == 300


def test_rejects_never_replace_the_imported_file(cli: Cli, mixed: Path) -> None:
    before = mixed.read_bytes()
    (mixed.parent / "link.json").symlink_to(mixed)
    (mixed.parent / "loop").symlink_to("loop")
    for name in ("sessions.json", "../" + mixed.parent.name + "/sessions.json", "link.json", "loop/x"):
        cli("import", "--rejects", mixed.parent / name, mixed, code=exits.USAGE)
    cli("import", "--rejects", mixed.parent / "rejects.json", mixed.parent / "loop", code=exits.USAGE)
    assert mixed.read_bytes() == before


def test_export_and_import_give_the_same_sessions(cli: Cli, url: str, tmp_path: Path) -> None:
    ages_ms = {key: DAY_MS - number * 3_600_000 for number, key in enumerate(EVIL_KEYS)}
    for key, px in ages_ms.items():
        cli.plant(key, "id-1", px=px)
    cli.plant("forever", "id-2", px=None)
    cli.plant("bad", "--resume me")
    file = tmp_path / "out.json"
    result = cli("export", file)
    assert result.stdout == f"exported 7 sessions to {file}\n"
    assert "1 session of unknown age" in result.stderr
    assert "1 key left out" in result.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert cli.json("export", file) == {"exported": 7, "not_timed": 1, "skipped": 1, "approximate": False}
    other = Cli(url, f"{cli.namespace}-other")
    assert other.json("import", file)["imported"] == 7
    assert all(abs(ages_ms[key] - other.pttl_ms(key)) < 60_000 for key in ages_ms)
    other.raw.close()


def test_standard_input_and_output(cli: Cli, url: str, tmp_path: Path) -> None:
    for key in EVIL_KEYS:
        cli.plant(key)
    process = spawn("export", "-", *cli.options)
    exported, said = process.communicate(timeout=30)
    assert (process.returncode, len(json.loads(exported))) == (0, len(EVIL_KEYS))
    assert said == f"redis-sessions: exported {len(EVIL_KEYS)} sessions\n".encode()
    # A file that is open for appending is appended to.
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as stream:
        process = spawn("export", "/dev/stdout", *cli.options, stdout=stream)
        assert process.communicate(timeout=30) == (None, b"")
    assert re.fullmatch(r"before\n\{.*\}\nexported \d sessions to /dev/stdout\n", log.read_text(), re.DOTALL)
    other = Cli(url, f"{cli.namespace}-other")
    process = spawn("import", "--json", "-", *other.options, stdin=subprocess.PIPE)
    imported, _ = process.communicate(re.sub(rb"\d{13}", str(time.time_ns() // 1_000_000).encode(), exported), timeout=30)
    assert json.loads(imported)["imported"] == len(EVIL_KEYS)
    other.raw.delete(*other.raw.scan_iter(f"{other.namespace}*"))
    other.raw.close()
    cli("export", "--json", "-", code=exits.USAGE)
    cli("import", "--assume-used-at", "mtime", "-", code=exits.USAGE)
    # Nor with any other pipe, whose time is now.
    reading, writing = os.pipe()
    os.write(writing, b'{"k": "ID-1"}')
    os.close(writing)
    with os.fdopen(reading):
        said = cli("import", "--assume-used-at", "mtime", f"/dev/fd/{reading}", code=exits.USAGE).stderr
    assert "--assume-used-at mtime needs a regular file" in said


@pytest.mark.parametrize(("kind", "file"), [*((kind, "-") for kind in ("socket", "pipe", "file")), ("socket", "/dev/fd/0")])
@pytest.mark.parametrize("mode", ["blocking", "non-blocking"])
def test_standard_input_of_any_kind(cli: Cli, tmp_path: Path, kind: str, file: str, mode: str) -> None:
    entries = {f"k{number}": {"id": "ID-1", "last_used_at": time.time_ns() // 1_000_000} for number in range(5_000)}
    document = json.dumps(entries).encode()
    if kind == "socket":
        ours, theirs = socket.socketpair()
        writing, reading = ours.detach(), theirs.detach()
    elif kind == "pipe":
        reading, writing = os.pipe()
    else:
        (tmp_path / "in.json").write_bytes(document)
        reading, writing = os.open(tmp_path / "in.json", os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    os.set_blocking(reading, mode == "blocking")
    process = spawn("import", "--json", file, *cli.options, stdin=reading)
    os.close(reading)
    with os.fdopen(writing, "wb") as stream:
        stream.write(document)
    imported, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (exits.DONE, b"")
    assert json.loads(imported)["imported"] == len(entries)


def test_rejects_never_replace_standard_input(cli: Cli, mixed: Path) -> None:
    before = mixed.read_bytes()
    with mixed.open("rb") as stream:
        process = spawn("import", "--rejects", mixed, "-", *cli.options, stdin=stream)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, b"names the file that is imported" in said) == (exits.USAGE, True)
    assert mixed.read_bytes() == before


def test_times_of_last_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert used_at("mtime") == "mtime"
    assert used_at("1795336200000") == 1_795_336_200_000
    assert used_at("2026-11-22T08:30:00Z") == used_at("2026-11-22T09:30:00+01:00") == 1_795_336_200_000
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TZ", "UTC-1")
    time.tzset()
    try:
        assert used_at("2026-11-22T09:30") == 1_795_336_200_000
        assert "taken as local, 2026-11-22T09:30:00+01:00" in capsys.readouterr().err
    finally:
        monkeypatch.undo()
        time.tzset()
