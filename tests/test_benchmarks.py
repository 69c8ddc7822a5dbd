"""The benchmarks run and show their results; no test judges how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_an_unknown_benchmark_is_refused():
    done = benchmarks("no-such")
    assert done.returncode == 2
    assert "no-such" in done.stderr
