"""`run` in a shell's job control: Ctrl-Z stops it together with its agent, `fg` and `bg` continue both."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import test_cli_support
from tests.run.stage import DEADLINE_S, SAID, TURN, E, Stage
from tests.run.terminal import Terminal
from tests.servers import exists, wait_until

# The program by which a shell starts its jobs: it tells their number, so that the test can look.
JOB = 'import os, sys; open(sys.argv[1], "w").write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])'
CTRL_Z = b"\x1a"


def state(pid: int) -> str:
    """As the kernel tells it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Shell(Terminal):
    """An interactive shell on a terminal of its own."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        def start(*words: str, **streams: Any) -> subprocess.Popen[bytes]:
            return stage.launch(*words, "/bin/sh", "-i", env={"PS1": "ready> "}, **streams)

        super().__init__(start)
        self.stage, self.folder = stage, folder

    def line(self, words: str) -> None:
        self.type(words.encode() + b"\n")

    def seen(self, text: str) -> None:
        wait_until(lambda: text in self.shown, f"{text!r} on the terminal")

    def start(self, *options: str, before: str = "", after: str = "") -> int:
        """Start a job, and return its process ID when its agent has asked for it."""
        told = self.folder / "pid"
        words = [sys.executable, "-c", JOB, str(told), *test_cli_support.PROGRAM, *self.stage.arguments(*options)]
        self.line(f"{before}{shlex.join(words)}{after}")
        wait_until(lambda: told.exists() and told.read_text() != "", "the job")
        return int(told.read_text())


@pytest.fixture
def shell(stage: Stage, tmp_path: Path) -> Iterator[Shell]:
    with Shell(stage, tmp_path) as shell:
        shell.seen("ready> ")
        yield shell


def test_ctrl_z_and_fg_at_an_agent_that_has_the_terminal(stage: Stage, shell: Shell) -> None:
    stage.script(fresh=[["tell", "ready"], ["line"], *SAID])
    job = shell.start()
    agent = stage.hear("ready")["pid"]
    wait_until(lambda: shell.in_front() == os.getpgid(agent), "the agent in the foreground")
    shell.type(CTRL_Z)
    # The shell has its terminal back, and says so.
    wait_until(lambda: shell.in_front() == shell.process.pid, "the shell in the foreground")
    wait_until(lambda: state(job) == state(agent) == "T", "both are stopped")
    shell.line("fg")
    wait_until(lambda: shell.in_front() == os.getpgid(agent), "the agent in the foreground again")
    shell.line("yes")
    assert stage.hear("read")["size"] == 4
    shell.seen(TURN)
    wait_until(lambda: not exists(job), "the end of the job")
    assert stage.saved(E)


def test_bg_and_fg(stage: Stage, shell: Shell) -> None:
    """In the background it runs until it wants to read, and is stopped then, as everything is."""
    stage.script(fresh=[["tell", "ready"], ["await", "go"], ["line"], *SAID])
    job = shell.start()
    agent = stage.hear("ready")["pid"]
    wait_until(lambda: shell.in_front() == os.getpgid(agent), "the agent in the foreground")
    shell.type(CTRL_Z)
    wait_until(lambda: state(job) == state(agent) == "T", "both are stopped")
    shell.line("bg")
    wait_until(lambda: "T" not in (state(job), state(agent)), "both go on")
    stage.go("go")
    wait_until(lambda: state(job) == state(agent) == "T", "both are stopped, for it reads")
    assert shell.in_front() == shell.process.pid
    shell.line("fg")
    shell.line("yes")
    assert stage.hear("read")["size"] == 4
    shell.seen(TURN)
    wait_until(lambda: not exists(job), "the end of the job")
    assert stage.saved(E)


def test_a_pipeline_whose_agent_reads_from_it(stage: Stage, shell: Shell) -> None:
    """Ctrl-Z reaches the programs of the pipeline, and its agent by this one."""
    stage.plant()
    stage.script(resumed=[["read"], ["tell", "ready"], ["await", "go"], *SAID])
    job = shell.start(before="echo hello | ", after=" | cat")
    agent = stage.hear("ready")["pid"]
    assert shell.in_front() == os.getpgid(job) != os.getpgid(agent)
    shell.type(CTRL_Z)
    wait_until(lambda: state(job) == state(agent) == "T", "both are stopped")
    wait_until(lambda: shell.in_front() == shell.process.pid, "the shell in the foreground")
    shell.line("fg")
    wait_until(lambda: "T" not in (state(job), state(agent)), "both go on")
    stage.go("go")
    shell.seen(TURN)


def test_an_agent_that_asks_at_the_terminal_whatever_its_input_is(stage: Stage, shell: Shell) -> None:
    """As ssh does for a password."""
    stage.plant(E)
    stage.script(resumed=[["tell", "ready"], ["ask"], *SAID])
    job = shell.start(before="echo hello | ", after="; echo it ended")
    agent = stage.hear("ready")["pid"]
    wait_until(lambda: shell.in_front() == os.getpgid(agent), "the agent in the foreground")
    shell.line("secret")
    assert stage.hear("read")["size"] == 7
    shell.seen(f"{TURN}it ended")
    wait_until(lambda: not exists(job), "the end of the job")
    assert shell.in_front() == shell.process.pid
    assert stage.saved(E)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_that_was_stopped_receives_signals(stage: Stage, number: signal.Signals) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"]])
    process = stage.start()
    agent = stage.hear("ready")["pid"]
    os.kill(agent, signal.SIGSTOP)
    wait_until(lambda: state(agent) == "T", "it is stopped")
    process.send_signal(number)
    assert process.wait(timeout=DEADLINE_S) == 128 + number


def test_without_a_shell_nothing_stops(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    process = stage.start()
    stage.hear("ready")
    process.send_signal(signal.SIGTSTP)
    stage.go("go")
    assert process.wait(timeout=DEADLINE_S) == 0
    assert stage.saved(E)
