"""The default judge of `resume`: only Claude Code's phrase is a refusal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from redis_sessions import Turn
from tests.resume.stand_in import KEY, Agent, AgentError

TEXT = "No conversation found with session ID: R"


def test_it_knows_the_phrase_from_the_refusal_to_the_counter(store, counters):
    store.set(KEY, "R")

    def run(session_id):
        code = f"import sys; sys.exit({TEXT!r} if {session_id!r} else 0)"
        subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, stderr=subprocess.PIPE)
        return Turn("E", "ran")

    result = store.resume(KEY, run)
    assert (result.how, result.value, store.get(KEY)) == ("restarted", "ran", "E")
    assert store.resume_failures_total() == 1
    assert counters() == (1, 0, 1)


@pytest.mark.parametrize(
    "error",
    [
        AgentError("Not logged in"),
        subprocess.CalledProcessError(1, ["claude", "-p", TEXT], stderr="overloaded"),
        subprocess.CalledProcessError(1, ["claude"], output=TEXT, stderr=b""),
        subprocess.TimeoutExpired(["claude", "-p", TEXT], 1),
    ],
)
def test_it_knows_nothing_else_and_reads_neither_command_nor_output(store, counters, error):
    store.set(KEY, "R")
    with pytest.raises(type(error)):
        store.resume(KEY, Agent(error))
    assert store.get(KEY) == "R"
    assert counters() == (0, 0, 0)
