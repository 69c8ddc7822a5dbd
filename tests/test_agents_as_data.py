"""Runtimes as TOML files: every known one loads, a wrong one says where, and one from a file is what Python would build."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from redis_sessions import InvalidSettings, Verdict, agents
from redis_sessions.agents import Agent, RecordField, Refusal, ResumePlace, UnknownAgent, Verified
from redis_sessions.agents.agent import KNOWN
from redis_sessions.agents.evidence import of_claude_sdk
from tests import test_cli_support
from tests.over import over
from tests.test_cli_support import run

no_variables = test_cli_support.no_variables

FILES = sorted(KNOWN.glob("*.toml"), key=lambda path: path.stem)
OBSERVATIONS = [json.loads(line) for line in (Path(__file__).parent / "observations.jsonl").read_text("utf-8").splitlines()]
MINE = """
name = "mine"
executables = ["mine"]
keeps_sessions = "7d"
bound_to = ["host"]
session_id = '[0-9]+'
resume = ["--again={id}"]
session_id_at = [{ path = "session.id", record = { type = "end" } }]
turn_began = [{ type = "step", number = "..." }]
turn_ended = [{ type = "end" }]
turn_failed = [{ type = "end", error = "..." }]
error_paths = ["error.message"]
refusals = [
  { verdict = "gone", pattern = 'no session {id}' },
  { verdict = "unusable", pattern = 'full', within_turn = true },
]
error_reader = "claude_sdk"

[place]
subcommands = ["ask"]

[[verified]]
versions = ["1", "2"]
evidence = "documents"
"""


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(agents, "_agents", {})
    agents._files.cache_clear()
    yield
    agents._files.cache_clear()


def written(directory, text, name="mine.toml"):
    path = directory / name
    path.write_text(text, "utf-8")
    return path


class TestKnown:
    @over("path", FILES)
    def test_every_file_loads_under_its_name(self, path):
        assert agents.load(path) == agents.get_agent(path.stem)
        assert agents.load(path).name == path.stem
        assert agents.load(path).verified
        assert agents.file_of(path.stem) == path

    def test_which_there_are(self):
        clis = ["amp", "auggie", "claude", "codex", "copilot", "cursor", "droid", "gemini"]
        clis += ["goose", "grok", "hermes", "kilo", "kimi", "opencode", "pi", "qwen"]
        assert [path.stem for path in FILES] == sorted([*clis, "agentcore", "claude-agent-sdk", "openai"])
        assert [agent.name for agent in agents.known_agents() if agent.executables] == clis

    def test_every_observed_version_is_verified(self):
        observed = {(each["agent"], each["version"]) for each in OBSERVATIONS}
        assert observed <= {
            (agent.name, version)
            for agent in agents.known_agents()
            for each in agent.verified
            if each.evidence == "ran offline"
            for version in each.versions
        }

    def test_the_documented_example_has_every_key(self):
        lines = inspect.getdoc(agents).splitlines()
        example = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
        table = tomllib.loads(example)
        assert table.keys() == {*Agent.model_fields, "like"}
        assert table["place"].keys() == {*ResumePlace._fields}
        assert table["verified"][0].keys() == {*Verified._fields}
        assert {key for each in table["refusals"] for key in each} == {*Refusal._fields}
        del table["like"]
        assert Agent(**table).place.subcommands == ("exec", "e")

    def test_one_file_is_read_when_one_runtime_is_asked_for(self):
        code = """
import sys
opened = []
sys.addaudithook(lambda event, given: event == "open" and str(given[0]).endswith(".toml") and opened.append(given[0]))
from redis_sessions import agents
print(len(opened))
for name in sys.argv[1:]:
    agents.get_agent(name)
    agents.get_agent(name)
    print(len(opened))
"""
        done = subprocess.run([sys.executable, "-c", code, "claude", "codex"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["0", "1", "2"]


class TestLoad:
    def test_a_file_is_what_python_builds(self, tmp_path):
        assert agents.load(written(tmp_path, MINE)) == Agent(
            name="mine",
            executables=("mine",),
            keeps_sessions="7d",
            bound_to=("host",),
            session_id="[0-9]+",
            resume=("--again={id}",),
            session_id_at=(RecordField("session.id", {"type": "end"}),),
            turn_began=({"type": "step", "number": ...},),
            turn_ended=({"type": "end"},),
            turn_failed=({"type": "end", "error": ...},),
            error_paths=("error.message",),
            refusals=(Refusal(Verdict.gone, "no session {id}"), Refusal(Verdict.unusable, "full", within_turn=True)),
            error_reader=of_claude_sdk,
            place=ResumePlace(subcommands=("ask",)),
            verified=(Verified(("1", "2"), "documents"),),
        )

    def test_it_judges(self, tmp_path):
        mine = agents.load(written(tmp_path, MINE))
        assert mine.keeps_sessions_ms == 7 * 86_400_000
        assert mine.judge(exit_code=1, stderr='no session "7"', requested="7").verdict is Verdict.gone
        assert mine.judge(exit_code=1, stderr='no session "7"', requested="8").verdict is Verdict.other
        for number, began in ((0, False), (1, True)):
            stdout = json.dumps({"type": "step", "number": number}) + '\n{"type": "end", "session": {"id": "9"}}'
            judgement = mine.judge(exit_code=0, stdout=stdout)
            assert (judgement.session_id, judgement.turn_began) == ("9", began)

    def test_a_byte_order_mark_is_skipped(self, tmp_path):
        assert agents.load(written(tmp_path, f"\ufeff{MINE}")) == agents.load(written(tmp_path, MINE))

    def test_like_another(self, tmp_path):
        mine = agents.load(written(tmp_path, 'name = "kilo"\nlike = "opencode"\nexecutables = ["kilo"]'))
        known = agents.get_agent("opencode")
        assert (mine.name, mine.executables, mine.verified) == ("kilo", ("kilo",), ())
        assert (mine.refusals, mine.place, mine.session_id_at) == (known.refusals, known.place, known.session_id_at)

    @over(
        ("text", "says"),
        [
            ("", "name is missing"),
            ('name = ""', "name is empty"),
            ("name = 5", "name must be text"),
            ("name = ", "is not TOML (Invalid value (at end of document))"),
            ("like = []", "like must be one of agentcore, amp, "),
            ('like = "../known/claude"', "like must be one of agentcore, amp, "),
            ('refusal = "x"', "refusal is not a known key"),
            ('resume = "--resume={id}"', "resume must be a list"),
            ('resume = ["--resume"]', "resume must have {id} in it"),
            ("executables = [1]", "executables[0] must be text"),
            ("session_id = '['", "session_id is not a regular expression (unterminated character set at position 0)"),
            ("turn_failed_line = '(?P<a>'", "turn_failed_line is not a regular expression (missing ), "),
            ("session_id = 'a{99999999999}'", "session_id is not a regular expression (the repetition number is too large)"),
            ("session_id_line = 'session: .*'", "session_id_line must have {id} or a group (?P<id>…) in it"),
            ('keeps_sessions = "a month"', "keeps_sessions must be a duration such as 15m, 24h or 30d"),
            ('bound_to = ["home", "user"]', "bound_to[1] must be 'host', 'home' or 'directory'"),
            ('error_reader = "bot"', "error_reader must be one of process, claude_sdk, openai"),
            ("error_reader = []", "error_reader must be one of process, claude_sdk, openai"),
            ("turn_began = [1]", "turn_began[0] must be a table"),
            ('session_id_at = ["x"]', "session_id_at[0] must be a table"),
            ("session_id_at = [{}]", "session_id_at[0].path is missing"),
            ('place = { after = "exec" }', "place.after is not a known key"),
            ('place = "first"', "place must be a table"),
            ("verified = [{ versions = [], evidence = 'documents' }]", "verified[0].versions is empty"),
            ("verified = [{ versions = ['1'], evidence = 'hearsay' }]", "verified[0].evidence must be 'ran offline' or "),
            ('mint = ["--session-id"]', "mint must have {id} in it"),
            ('ephemeral = ["nothing"]', "ephemeral must be options"),
            ("session_id_stdout_line = 'id: .*'", "session_id_stdout_line must have {id} or a group (?P<id>…) in it"),
            ("answered_line = '('", "answered_line is not a regular expression (missing ), "),
            ("answer_on_stdout = 'maybe'", "answer_on_stdout must be a valid boolean"),
            ('silent_refusal = ["yaml"]', "silent_refusal"),
            ("context_tokens_at = { paths = ['x'] }", "context_tokens_at[0].record is missing"),
            ("context_tokens_at = { record = {}, paths = [] }", "context_tokens_at[0].paths is empty"),
            ("refusals = [{ verdict = 'gone' }]", "refusals[0].pattern is missing"),
            ("refusals = [{ verdict = 'lost', pattern = 'x' }]", "refusals[0].verdict must be 'ok', 'gone', "),
            ("refusals = [{ verdict = 'other', pattern = 'x' }]", "refusals[0].verdict must be a way to refuse"),
            (
                "refusals = [{ verdict = 'gone', pattern = 'x' }, { verdict = 'busy', pattern = '(' }]",
                "refusals[1].pattern is not a regular expression (missing ), unterminated subpattern at position 0)",
            ),
            ("refusals = [{ verdict = 'gone', pattern = 'x', within_turn = 'maybe' }]", "refusals[0].within_turn must be "),
        ],
    )
    def test_what_is_wrong_is_named_by_file_and_key(self, tmp_path, text, says):
        begin = "" if text.startswith("name") or not text else 'name = "mine"\n'
        path = written(tmp_path, begin + text)
        with pytest.raises(InvalidSettings) as caught:
            agents.load(path)
        assert str(caught.value).startswith(f"{path}: {says}")

    def test_what_can_not_be_read(self, tmp_path):
        latin = tmp_path / "latin.toml"
        latin.write_bytes(b'name = "\xe9"')
        for path, says in (
            (tmp_path / "none.toml", "can't be read (No such file or directory): name a TOML file"),
            (tmp_path, "can't be read (Is a directory): name a TOML file"),
            (latin, "is not UTF-8: save it as UTF-8"),
        ):
            with pytest.raises(InvalidSettings) as caught:
                agents.load(path)
            assert str(caught.value) == f"{path}: {says}"

    def test_python_is_checked_the_same_way(self):
        for wrong, says in (
            ({"refusals": (Refusal(Verdict.gone, "("),)}, "refusals[0].pattern is not a regular expression"),
            ({"refusals": (Refusal(Verdict.ok, "x"),)}, "refusals[0].verdict must be a way to refuse"),
            ({"commands": ("x",)}, "commands is not a known key"),
        ):
            with pytest.raises(InvalidSettings) as caught:
                Agent(name="mine", **wrong)
            assert str(caught.value).startswith(says)

    def test_it_never_changes(self):
        with pytest.raises(ValueError, match="frozen"):
            agents.get_agent("claude").name = "x"


@pytest.mark.usefixtures("registry")
class TestDirectories:
    def test_its_files_go_before_ours(self, tmp_path):
        assert agents.get_agent("claude").executables == ("claude",)
        written(tmp_path, MINE)
        mine = written(tmp_path, 'name = "claude"\nlike = "claude"\nexecutables = ["claude-2"]', "claude.toml")
        agents.register_directory(tmp_path)
        assert agents.get_agent("claude").executables == ("claude-2",)
        assert agents.file_of("claude") == mine
        assert [agent.name for agent in agents.known_agents()] == sorted(["mine", *(path.stem for path in FILES)])

    def test_what_is_registered_last_counts(self, tmp_path):
        agents.register_directory(written(tmp_path, MINE).parent)
        agents.register(Agent(name="mine"))
        assert agents.get_agent("mine") == Agent(name="mine")
        assert agents.file_of("mine") is None
        agents.register_directory(tmp_path)
        assert agents.get_agent("mine").executables == ("mine",)

    def test_a_file_is_called_like_its_runtime(self, tmp_path):
        path = written(tmp_path, MINE, "other.toml")
        agents.register_directory(tmp_path)
        with pytest.raises(InvalidSettings) as caught:
            agents.get_agent("other")
        assert str(caught.value) == f"{path}: name is 'mine': write 'other', or rename the file"

    def test_no_name_is_a_path(self, tmp_path):
        for name in ("../known/claude", "", "claude.toml", str(KNOWN / "claude")):
            with pytest.raises(UnknownAgent, match="name one of agentcore, amp, "):
                agents.get_agent(name)
        with pytest.raises(InvalidSettings, match="can't be read \\(No such file"):
            agents.register_directory(tmp_path / "none")


@pytest.mark.usefixtures("no_variables", "registry")
class TestCommand:
    def test_the_list(self):
        heading, *rows = run("agents").stdout.splitlines()
        assert heading.split() == ["name", "executables", "bound", "to", "keeps", "sessions", "verified"]
        assert [row.split()[0] for row in rows] == [path.stem for path in FILES]
        for row in rows:
            if row.startswith("claude "):
                assert row.split()[1:5] == ["claude", "host,", "home", "30d"]
                assert "ran offline: 0.2.126 to 2.1.330 (19 versions)" in row
            if row.startswith("agentcore "):
                assert row.split()[1:] == ["-", "-", "15m", "documents:", "November", "2026"]

    def test_as_json(self, tmp_path):
        rows = [json.loads(line) for line in run("agents", "--json").stdout.splitlines()]
        assert [(row["name"], row["keeps_sessions_ms"]) for row in rows] == [
            (agent.name, agent.keeps_sessions_ms) for agent in agents.known_agents()
        ]
        for row in rows:
            assert json.loads(run("agents", row["name"], "--json").stdout) == row
            del row["keeps_sessions_ms"]
            assert Agent(**row) == agents.get_agent(row["name"])

    @over("name", [path.stem for path in FILES])
    def test_one_in_full(self, name):
        shown = run("agents", name).stdout
        agent = agents.get_agent(name)
        for key, value in agent:
            assert (f"\n{key} " in shown) is (value != Agent.model_fields[key].default)
        for refusal in agent.refusals:
            assert f"{refusal.verdict}: {refusal.pattern}".rstrip() in shown

    @over("name", [path.stem for path in FILES])
    def test_one_to_start_from(self, name, tmp_path):
        text = run("agents", name, "--toml").stdout
        assert text == agents.file_of(name).read_text("utf-8")
        assert agents.load(written(tmp_path, text)) == agents.get_agent(name)

    def test_those_of_a_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("REDIS_SESSIONS_AGENTS", str(written(tmp_path, MINE).parent))
        assert "\nmine " in run("agents").stdout
        assert run("agents", "mine", "--toml").stdout == MINE
        written(tmp_path, 'name = "bad"\nsession_id = "("', "bad.toml")
        assert f"{tmp_path}/bad.toml: session_id is not a regular expression" in run("agents", code=2).stderr

    @over(
        ("given", "says"),
        [
            (["nobody"], "no agent runtime 'nobody' is known: name one of agentcore, amp, "),
            (["--toml"], "--toml prints one runtime: name it"),
            (["claude", "--toml", "--json"], "--toml and --json exclude each other"),
        ],
    )
    def test_what_is_refused(self, given, says):
        assert says in run("agents", *given, code=2).stderr

    def test_a_directory_that_is_not_there(self, monkeypatch):
        monkeypatch.setenv("REDIS_SESSIONS_AGENTS", "/nowhere")
        assert "/nowhere can't be read (No such file or directory)" in run("agents", code=2).stderr
