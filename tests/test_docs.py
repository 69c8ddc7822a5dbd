"""The manual as a whole: its command, links, sizes, error messages, and tables of runtimes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from redis_sessions import ResumeResult, SessionStore, Turn, Verdict, errors
from redis_sessions.agents import get_agent
from redis_sessions.keys import RECORD_FIELDS
from tests.manual import DOCS, PAGES, ROOT, prose, read
from tests.over import over
from tests.test_cli_support import run

# Not what other tests have registered.
OURS = [get_agent(file.stem) for file in sorted((ROOT / "redis_sessions/agents/known").glob("*.toml"))]

NAMES = [name for name in PAGES if name != "README"]
LINKS = [
    (name, *link) for name in PAGES for link in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", prose(name))
]  # page, path, anchor


def docs(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "redis_sessions", "docs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def anchors(path):
    """The anchors that a page has, as GitHub makes them from its headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_without_a_page_it_lists_them_with_their_first_lines():
    done = docs()
    assert (done.returncode, done.stderr) == (0, "")
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert listed == {name: read(name).splitlines()[0].removeprefix("# ") for name in NAMES}
    assert next(iter(listed)) == "index"


@over("name", NAMES)
def test_in_a_pipe_a_page_is_plain_markdown(name):
    done = run("docs", name)
    assert (done.stdout, done.stderr) == (read(name), "")


def test_a_page_may_be_named_by_its_file():
    assert docs("keys.md").stdout == read("keys")


SHOW = """
import sys
from redis_sessions.cli.app import app
for page in sys.argv[1:]:
    try:
        app(["docs", page])
    except SystemExit as ended:
        assert not ended.code
"""


def at_a_terminal(columns, *pages):
    """Show pages at a terminal by one process, and return what is written there."""
    leader, follower = pty.openpty()
    try:
        command = [sys.executable, "-c", SHOW, *pages]
        environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"}
        with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
            os.close(follower)
            printed = b""
            # Linux reports the end of a terminal as an error.
            try:
                while piece := os.read(leader, 65_536):
                    printed += piece
            except OSError:
                pass
    finally:
        os.close(leader)
    assert process.returncode == 0
    return printed.decode()


def test_at_a_terminal_a_page_is_formatted():
    text = at_a_terminal(100, "keys")
    assert "\x1b[" in text
    assert "# Keys" not in text
    assert "| --- |" not in text
    assert "ns:lease:{key}" in text


def test_nothing_is_cut_off_at_a_narrow_terminal():
    assert at_a_terminal(60, *NAMES).count("…") == sum(read(name).count("…") for name in NAMES)


def test_an_unknown_page_names_those_there_are():
    done = docs("nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert all(name in done.stderr for name in NAMES)


def test_the_pages_are_part_of_the_package():
    # What hatchling takes into the wheel is all of this folder but what Git ignores.
    assert DOCS.parent == ROOT / "redis_sessions"
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert not {"docs/", "*.md", "*.svg"} & set(ignored)


def test_the_readme_is_short_and_so_are_the_pages():
    lines = {name: read(name).count("\n") for name in PAGES}
    assert lines.pop("README") <= 160
    del lines["speed"]
    assert max(lines.values()) <= 250


@over(("page", "path", "anchor"), LINKS)
def test_links_lead_somewhere(page, path, anchor):
    target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
    assert target.is_file()
    assert target.is_relative_to(ROOT if page == "README" else DOCS), "a link that the wheel does not have"
    if anchor:
        assert anchor in anchors(target)


@over("start", ["README", "index"])
def test_every_page_is_one_click_away(start):
    linked = {Path(path).stem for page, path, _ in LINKS if page == start}
    assert set(NAMES) - {start} <= linked


@over("name", NAMES)
def test_every_page_links_back_to_the_index(name):
    assert name == "index" or read(name).splitlines()[2] == "[Manual](index.md)"


def test_messages_in_the_troubleshooting_are_messages_of_the_code():
    texts = [
        node.value
        for path in (ROOT / "redis_sessions").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    said = "\n".join(texts)
    section = read("troubleshooting").split("## By error message")[1].split("## Questions")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 20
    assert [message for message in messages if message not in said] == []


def rows(section):
    """The rows of a table in agents.md whose first cell is the name of a runtime: the other cells by that name."""
    text = read("agents").split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", text, re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in found}


FIELDS = {field.name: field.default for field in dataclasses.fields(Turn)}
OPTIONS = inspect.signature(SessionStore.resume).parameters.values()
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__}


@over(
    ("page", "section", "names"),
    [
        ("turns", "The result", {*ResumeResult._fields}),
        ("turns", "Options of resume", {each.name for each in OPTIONS if each.kind is each.KEYWORD_ONLY} | {*Verdict}),
        ("python", "What run returns", {*FIELDS}),
        ("python", "Errors", ERRORS - {"SessionStoreError"}),
        ("keys", "The record", {*RECORD_FIELDS}),
    ],
)
def test_a_table_has_all_that_there_is(page, section, names):
    found = re.findall(r"^\| ([^|]*) \|", read(page).split(f"\n## {section}\n")[1].split("\n## ")[0], re.MULTILINE)
    # In the cell of an error stands what it is a kind of, too.
    assert {name for cell in found for name in re.findall(r"`(\w+)`", cell.partition(", a `")[0])} == names


def test_defaults_of_a_turn_are_those_of_the_code():
    cells = re.findall(r"^\| `(\w+)` \| ?(\w*) \|", read("python").split("\n## What run returns\n")[1], re.MULTILINE)
    said = dict(cells[: len(FIELDS)])
    assert said == {name: "" if default is dataclasses.MISSING else str(default) for name, default in FIELDS.items()}


def test_the_table_of_max_ages_is_that_of_the_runtimes():
    kept = {name: cells[1] for name, cells in rows("How to choose the max age").items()}
    assert kept == {agent.name: agent.keeps_sessions or "not established" for agent in OURS}
    for name, (*_, only_with) in rows("How to choose the max age").items():
        assert {word for word in ("host", "home") if word in only_with} == {*get_agent(name).bound_to} - {"directory"}
        assert "directory" in only_with or "directory" not in get_agent(name).bound_to


def test_the_table_of_arguments_is_that_of_the_runtimes():
    table = rows("The known runtimes")
    assert {*table} == {agent.name for agent in OURS if agent.resume and agent.executables}
    for name, (resume, asks_for_json, session_id, mint) in table.items():
        agent = get_agent(name)
        assert resume.startswith(f"`{' '.join(agent.resume)}`")
        assert asks_for_json == (f"`{agent.json_output}`" if agent.json_output else "–")
        assert mint == (f"`{' '.join(agent.mint)}`" if agent.mint else "–")
        paths = re.match(r"(?:`[\w.]+`(?:, )?)*", session_id)[0]
        assert {field.path for field in agent.session_id_at} == {*re.findall(r"`(.*?)`", paths)}
        assert ("on stderr" in session_id) == bool(agent.session_id_line)
        assert ("on stdout" in session_id) == bool(agent.session_id_stdout_line)
