"""The benchmarks run and show their results; no test judges how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__
from tests.benchmarks.rows import Row

ROOT = Path(__file__).parents[1]


def benchmarks(*arguments):
    command = [sys.executable, "-m", "tests.benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_quick_run_prints_its_table_and_writes_it_as_markdown(tmp_path):
    done = benchmarks("--quick", "--markdown", tmp_path / "table.md", "get", "dispatch", "bytes")
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.strip() for line in done.stdout.splitlines()]
    rows = (tmp_path / "table.md").read_text().splitlines()
    for name, work in (("get", "get, async"), ("dispatch", "acquire + save"), ("bytes", "bytes a session, Valkey")):
        assert f"python -m tests.benchmarks {name}" in shown
        assert any(row.startswith(f"| {work}") and f"`python -m tests.benchmarks {name}`" in row for row in rows)
    # Counts, unlike times, are the same on every machine.
    for work in ("acquire + save: round trips", "acquire + save, async: round trips"):
        assert any(row.startswith(f"| {work} | 2 |") and "| yes |" in row for row in rows)
    assert "Valkey" in done.stdout
    assert "redis 8" in done.stdout


def test_a_bound_that_is_not_held_fails_the_run(monkeypatch, capsys):
    rows = [Row("held", "1 µs", ratio="0.80", to_reach="≤ 0.85", reached=True), Row("shown", "1 µs")]
    monkeypatch.setattr(__main__, "BENCHMARKS", {"get": lambda _: rows})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "get"])
    __main__.main()
    rows.append(Row("missed", "1 µs", ratio="0.90", to_reach="≤ 0.85", reached=False))
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.endswith("1 bounds are not held: missed 0.90, ≤ 0.85\n")


def test_an_unknown_benchmark_is_refused():
    done = benchmarks("no-such")
    assert done.returncode == 2
    assert "no-such" in done.stderr
