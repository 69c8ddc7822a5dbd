"""Runs the blocks of the README and of the manual's pages exactly as they are written.

`python -m tests.manual` writes into every page what its `console` and `text` blocks print now: look at the difference
before you commit it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from redis_sessions.server import EmbeddedServer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "redis_sessions" / "docs"
PAGES = {"README": ROOT / "README.md"} | {path.stem: path for path in sorted(DOCS.glob("*.md"))}
DEFAULT_URL = "redis://127.0.0.1:6379/"
SESSION_ID = "5f2c9a7e-1d3b-4c58-8f60-2b7a9c4e6d15"

# What Claude Code and Codex print at the end of a turn, in a session that they resume or start.
CLAUDE = f"""#!/bin/sh
session={SESSION_ID}
for word; do case $word in --resume=*) session=${{word#--resume=}};; esac; done
printf '{{"type": "result", "is_error": false, "session_id": "%s", "result": "Looks good to me."}}\\n' $session
"""
CODEX = f"""#!/bin/sh
session={SESSION_ID}
for word; do [ "$before" = resume ] && session=$word; before=$word; done
printf '{{"type": "thread.started", "thread_id": "%s"}}\\n{{"type": "turn.started"}}\\n' $session
printf '{{"type": "item.completed", "item": {{"type": "agent_message", "text": "%s: done"}}}}\\n' "$word"
printf '{{"type": "turn.completed"}}\\n'
"""
# The agent that agents.md describes.
MINE = """#!/bin/sh
printf '{"type": "end", "session": {"id": "s-1"}, "arguments": "%s"}\\n' "$*"
"""


class Block(NamedTuple):
    """A fenced block of a page: its language, the rest of that line, its text, and where the text begins and ends."""

    language: str
    info: str
    text: str
    span: tuple[int, int]


def read(name: str) -> str:
    return PAGES[name].read_text("utf-8")


def blocks(name: str) -> list[Block]:
    found = re.finditer(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", read(name), re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], match[3], match.span(3)) for match in found]


def prose(name: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", read(name), flags=re.DOTALL | re.MULTILINE)


class Shell:
    """A folder, and a shell with `redis-sessions` and stand-ins for agents on its PATH."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        programs = folder / "bin"
        programs.mkdir()
        (programs / "redis-sessions").write_text(f'#!/bin/sh\nexec {sys.executable} -m redis_sessions "$@"\n')
        (programs / "claude").write_text(CLAUDE)
        (programs / "codex").write_text(CODEX)
        (programs / "mine").write_text(MINE)
        for program in programs.iterdir():
            program.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{programs}:/usr/bin:/bin",
            "REDIS_SESSIONS_URL": url,
            # As at a terminal, so that stdout and stderr come in their order.
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command: its exit code, and what it prints on stdout and stderr, in their order."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    def python(self, code: str) -> str:
        """Run code and return what it prints. A warning is an error."""
        code = code.replace(DEFAULT_URL, self.url.removesuffix("0"))
        status, printed = self.run(sys.executable, "-W", "error", "-c", code)
        assert status == 0, printed
        return printed

    def console(self, block: Block) -> str:
        """The console session of a block, run now: its commands, each with what it prints."""
        shown = ""
        for command in re.findall(r"^\$ (.*)\n", block.text, re.MULTILINE):
            status, printed = self.run("sh", "-c", command)
            assert status == int(block.info.removeprefix("exits ") or 0), (command, printed)
            shown += f"$ {command}\n{printed}"
        return shown

    def paste(self, script: str) -> str:
        """Run the lines of a script and return what they print; none of them may fail."""
        status, printed = self.run("sh", "-ec", script)
        assert status == 0, printed
        return printed


def play(name: str, folder: Path) -> list[tuple[Block, str]]:
    """Run the blocks of a page from top to bottom, in a folder and on a server of its own.

    Returns the blocks that show an output, each with what it prints now.
    """
    with EmbeddedServer(directory=folder / "data") as server:
        return list(_outputs(name, Shell(folder, server.url)))


def _outputs(name: str, shell: Shell) -> Iterator[tuple[Block, str]]:
    code = None
    for block in blocks(name):
        if block.language == "python" and not block.info:
            code = block.text
        elif block.language == "text" and code is not None:
            yield block, shell.python(code)
            code = None
        elif block.language == "toml":
            (shell.folder / block.info).write_text(block.text)
        elif block.language == "console":
            yield block, shell.console(block)
        # Continuous integration runs those that make a virtual environment.
        elif block.language == "sh" and "-m venv" not in block.text:
            shell.paste(block.text)
    assert code is None, "a block of code does not say what it prints"


def timeless(printed: str) -> str:
    """Replace what differs between runs, and nothing else: times, sizes, the server's version."""
    printed = re.sub(r"(_ms\": |_seconds{.*} )[\d.e-]+", r"\1…", printed)
    printed = re.sub(r"(last_used_at\": )\d+", r"\1…", printed)
    return re.sub(r"[\d.,]+ (ms|MB)( ahead of| behind)?|(Valkey) [\d.]+", r"… \1\3", printed)


def rewrite(name: str) -> None:
    """Write into a page what its blocks print now, if that differs by more than times."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = play(name, Path(folder))
    text = read(name)
    for block, printed in reversed(outputs):
        if timeless(printed) != timeless(block.text):
            start, end = block.span
            text = text[:start] + printed + text[end:]
    PAGES[name].write_text(text, "utf-8")


if __name__ == "__main__":
    for page in PAGES:
        rewrite(page)
