"""What people reported from the field, and its siblings: verdicts, real sessions, silence, runs that were cut short."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from redis_sessions import Verdict
from redis_sessions.agents import Agent, ContextTokens, RecordField, Refusal, get_agent
from redis_sessions.agents.judge import RunObserver
from redis_sessions.agents.output import asks_for_json, matches
from tests.over import over

CASES = [json.loads(line) for line in (Path(__file__).parent / "field_cases.jsonl").read_text("utf-8").splitlines()]
R = "35814092-99b2-4a66-99e1-1dc2cbd7fc10"
E = "aaaaaaaa-2222-4333-8444-555555555555"
S = "ses_080a90511ffe0Nddg5kYCCeD3E"
INIT = {"type": "system", "subtype": "init", "session_id": R}
SAID = {"type": "assistant", "message": {"model": "claude-opus-4-8", "content": []}, "session_id": R}
DONE = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "session_id": R, "result": "ok"}
STREAM = ["claude", "-p", "--output-format", "stream-json", "--verbose"]


def lines(*records):
    return "".join(f"{json.dumps(record)}\n" for record in records)


def failed(text, **more):
    """What Claude Code prints for an error of the API."""
    return DONE | {"is_error": True, "result": text} | more


@over("case", CASES)
def test_every_case_of_the_field_gets_its_verdict(case):
    """What a run printed is as its source quotes it."""
    run = {part: case[part] for part in ("exit_code", "stdout", "stderr", "requested", "command")}
    judgement = get_agent(case["agent"]).judge(**run)
    assert judgement.verdict == case["verdict"], case["why"]
    assert judgement.cut_short is (case["exit_code"] == 124)
    assert judgement.previous_gone is ("old one was gone" in case["why"])
    answered = judgement.verdict is Verdict.ok or '"working"' in case["stdout"]
    assert (judgement.session_id is not None) is answered


class TestHistory:
    """The API refuses a message of the history, so every further turn fails the same way."""

    @over(
        "says",
        [
            "messages.3.content.101: `thinking` or `redacted_thinking` blocks in the latest message cannot be modified.",
            "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`.",
            "messages.7: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_01.",
            "messages.12.content.2: unexpected `tool_use_id` found in `tool_result` blocks: toolu_01.",
            "messages.4.content.1: `tool_use` ids must be unique",
            "messages.2.content.0.tool_result.content.0.image.source.base64: image exceeds 5 MB maximum",
            "messages: text content blocks must be non-empty",
            "messages.5: all messages must have non-empty content except for the optional final assistant message",
            'messages: roles must alternate between "user" and "assistant"',
            "The content field in the Message object at messages.5 is empty.",
        ],
    )
    def test_claude(self, says):
        raw = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": says}})
        for text in (f"API Error: 400 {says}", f"API Error: 400 {raw}"):
            for command in (None, ["claude", "-p", "--output-format", "json"]):
                judgement = get_agent("claude").judge(exit_code=1, stdout=lines(failed(text)), command=command)
                assert (judgement.verdict, judgement.turn_began) == ("unusable", True)

    @over(
        "says",
        [
            "messages.0.content.4.cache_control: A maximum of 4 blocks with cache_control may be provided. Found 5.",
            "max_tokens: 64000 > 32000, which is the maximum allowed number of output tokens",
            "tools.3.custom.input_schema: JSON schema is invalid.",
        ],
    )
    def test_a_request_that_is_wrong_whatever_the_history(self, says):
        judgement = get_agent("claude").judge(exit_code=1, stdout=lines(failed(f"API Error: 400 {says}")))
        assert judgement.verdict is Verdict.other

    @over(
        "says",
        [
            "No tool output found for function call call_1.",
            "No tool call found for function call output with call_id call_1.",
            "Item 'rs_68' of type 'reasoning' was provided without its required following item.",
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.",
        ],
    )
    def test_those_that_speak_to_openai(self, says):
        body = json.dumps({"error": {"message": says, "type": "invalid_request_error", "code": None}})
        for message in (
            body,
            f"unexpected status 400 Bad Request: {body}",
            f"stream disconnected before completion: {says}",
        ):
            stdout = lines({"type": "turn.started"}, {"type": "turn.failed", "error": {"message": message}})
            assert get_agent("codex").judge(exit_code=1, stdout=stdout).verdict is Verdict.unusable
        data = {"message": says, "statusCode": 400, "responseBody": body}
        stdout = lines({"type": "error", "sessionID": S, "error": {"name": "APIError", "data": data}})
        assert get_agent("opencode").judge(exit_code=0, stdout=stdout).verdict is Verdict.unusable
        session_error = {
            "type": "session.error",
            "data": {"errorType": "query", "message": f"400 {says}", "statusCode": 400},
        }
        stdout = lines(session_error, {"type": "result", "sessionId": R, "exitCode": 1})
        assert get_agent("copilot").judge(exit_code=1, stdout=stdout).verdict is Verdict.unusable

    @over(
        "says",
        [
            "Please ensure that function call turn comes immediately after a user turn or after a function response turn.",
            "Please ensure that the number of function response parts is equal to the number of function call parts.",
            "Request contains an invalid argument.",
        ],
    )
    def test_gemini_by_itself_and_in_opencode(self, says):
        body = json.dumps({"error": {"code": 400, "message": says, "status": "INVALID_ARGUMENT"}})
        stderr = json.dumps({"session_id": R, "error": {"type": "Error", "message": body, "code": 400}}, indent=2)
        judgement = get_agent("gemini").judge(exit_code=144, stderr=stderr)
        assert (judgement.verdict, judgement.turn_began) == ("unusable", True)
        data = {"message": says, "statusCode": 400, "responseBody": body}
        stdout = lines({"type": "error", "sessionID": S, "error": {"name": "APIError", "data": data}})
        assert get_agent("opencode").judge(exit_code=1, stdout=stdout).verdict is Verdict.unusable


class TestRefusals:
    @over(
        ("agent", "line", "verdict"),
        [
            ("codex", f"Error: thread/resume: thread/resume failed: thread not loaded: {R} (code -32600)", "gone"),
            ("codex", f"Error: thread/read: thread/read failed: no rollout found for thread id {R} (code -32600)", "gone"),
            ("codex", f"Error: thread/resume: thread/resume failed: thread not found: {R}", "gone"),
            ("codex", f"thread not loaded: {E}", "other"),
            ("codex", "Error: thread/read: thread/read response decode error: missing field `turns`", "unusable"),
            ("codex", "Error: stream did not contain valid UTF-8", "unusable"),
            ("codex", "Error: thread/start: thread/start response decode error: missing field `id`", "other"),
            ("claude", "Failed to resume session: EISDIR: illegal operation on a directory, read", "unusable"),
            ("claude", "Failed to resume session: Unexpected end of JSON input", "unusable"),
            ("claude", "Failed to resume session: EACCES: permission denied, open '/x'", "other"),
            ("opencode", f"\x1b[91m\x1b[1mError: \x1b[0mSession not found: {S}", "gone"),
            ("opencode", "Error: Session not found: ses_another", "other"),
        ],
    )
    def test_siblings(self, agent, line, verdict):
        requested = S if agent == "opencode" else R
        judgement = get_agent(agent).judge(exit_code=1, stderr=f"{line}\n", requested=requested)
        assert (judgement.verdict, judgement.turn_began) == (verdict, False)

    def test_a_shims_record_does_not_begin_a_turn(self):
        shim = lines({"type": "message", "message": "Detected an AI agent environment"}, {"type": "init"}, {"type": "text"})
        for agent in ("gemini", "opencode", "claude", "codex", "copilot"):
            observer = RunObserver(get_agent(agent), json=True)
            observer.stdout(shim.encode())
            assert (observer.turn_began, observer.answered, observer.closed, observer.taken) == (False, False, None, False)


class TestUnavailable:
    @over(
        "text",
        [
            "You've hit your limit · resets 3pm (Europe/Berlin)",
            "You've hit your weekly limit · resets Mon 9am",
            "Claude AI usage limit reached|1755806400",
            "5-hour limit reached ∙ resets 3pm",
            "OAuth token has expired. Please obtain a new token or refresh your existing token. · Please run /login",
            'API Error: 401 {"type":"error"} · Please run /login',
            "API Error: 503 upstream connect error",
            "API Error: Repeated 529 Overloaded errors",
            "API Error: Request timed out.",
            "Credit balance is too low",
        ],
    )
    @over("exit_code", [0, 1])
    def test_claude(self, text, exit_code):
        claude = get_agent("claude")
        assert claude.judge(exit_code=exit_code, stdout=lines(INIT, failed(text))).verdict is Verdict.unavailable
        judgement = claude.judge(exit_code=1, stdout=f"{text}\n", command=["claude", "-p", "hi"], requested=R)
        assert (judgement.verdict, judgement.session_id) == (Verdict.unavailable, None)

    def test_a_status_without_words_that_are_known(self):
        stdout = lines(failed("Something new", api_error_status=529))
        assert get_agent("claude").judge(exit_code=1, stdout=stdout).verdict is Verdict.unavailable

    def test_the_last_words_of_a_transcript_on_stderr(self):
        said = f"session id: {R}\nuser\nhi\ncodex\nERROR: unexpected status 503 is what the tool said\n"
        for end, verdict in (
            ("ERROR: unexpected status 503 Service Unavailable: x\ntokens used\n0\n", "unavailable"),
            ("x\n" * 9, "other"),
        ):
            assert (
                get_agent("codex").judge(exit_code=1, stderr=said + end, command=["codex", "exec", "hi"]).verdict == verdict
            )

    def test_a_success_that_speaks_of_it(self):
        text = "API Error: 529 Overloaded"
        for stdout in (lines(INIT, SAID, DONE | {"result": text}), f"{text}\n"):
            assert get_agent("claude").judge(exit_code=0, stdout=stdout).verdict is Verdict.ok


class TestAnswered:
    def follow(self, *records, agent="claude", **how):
        observer = RunObserver(get_agent(agent), **{"json": True, **how})
        seen = []
        for record in records:
            observer.stdout(lines(record).encode())
            seen.append((observer.turn_began, observer.answered_id, observer.closed))
        return observer, seen

    def test_it_is_known_while_the_run_goes_on(self):
        observer, seen = self.follow(INIT, SAID, DONE)
        assert seen == [(True, None, None), (True, R, None), (True, R, "ok")]
        # Nothing more comes: the caller may end the process, which undoes nothing.
        judgement = observer.judge(-15)
        assert (judgement.verdict, judgement.session_id, judgement.cut_short) == (Verdict.other, R, True)

    @over(
        "record",
        [SAID | {"message": {"model": "<synthetic>"}}, SAID | {"error": "rate_limit"}, {"type": "user", "session_id": R}],
    )
    def test_an_error_in_place_of_an_answer(self, record):
        observer, seen = self.follow(INIT, record, failed("API Error: 529 Overloaded", usage={"output_tokens": 0}))
        assert seen[-1] == (True, None, "failed")
        assert observer.judge(1).session_id is None

    def test_one_record_at_the_end_says_how_much_was_answered(self):
        for record in (failed("Prompt is too long", usage={"output_tokens": 5}), failed(None, subtype="error_max_turns")):
            observer, [(_, answered, closed)] = self.follow(record)
            assert (answered, closed, observer.judge(1).session_id) == (R, "failed", R)

    def test_a_second_turn_opens_it_again(self):
        _, seen = self.follow(INIT, SAID, DONE, INIT, DONE)
        assert [closed for _, _, closed in seen] == [None, None, "ok", None, "ok"]

    def test_a_spurious_failure_after_success(self):
        spurious = {"type": "result", "subtype": "error_during_execution", "is_error": True, "num_turns": 0, "session_id": E}
        observer, seen = self.follow(INIT, SAID, DONE, spurious)
        assert seen[-1] == (True, R, "ok")
        assert observer.judge(1).session_id == R
        # Not spurious: the success was an earlier turn's, or there was none.
        for records in ((INIT, SAID, DONE, INIT, spurious), (spurious,)):
            observer, _ = self.follow(*records)
            assert observer.judge(1).verdict is Verdict.other

    def test_codex(self):
        started = {"type": "thread.started", "thread_id": R}
        warning = {"type": "item.completed", "item": {"type": "error", "message": "x"}}
        tool = {"type": "item.started", "item": {"type": "command_execution"}}
        retry = {"type": "error", "message": "Reconnecting... 1/5"}
        _, seen = self.follow(started, warning, {"type": "turn.started"}, tool, retry, agent="codex")
        assert [answered for _, answered, _ in seen] == [None, None, None, R, R]
        assert {closed for *_, closed in seen} == {None}

    def test_opencode_between_two_steps(self):
        start, finish = (
            {"type": "step_start", "sessionID": S},
            {"type": "step_finish", "sessionID": S, "part": {"reason": "tool-calls"}},
        )
        _, seen = self.follow(start, finish, finish | {"part": {"reason": "stop"}}, agent="opencode")
        assert [(answered, closed) for _, answered, closed in seen] == [(S, None), (S, None), (S, "ok")]

    def test_text_mode(self):
        codex = RunObserver(get_agent("codex"), json=False)
        codex.stderr(f"session id: {R}\n--------\nuser\nhi\n".encode())
        assert (codex.answered_id, codex.taken) == (None, True)
        codex.stderr(b"codex\n")
        assert codex.answered_id == R
        gemini = RunObserver(get_agent("gemini"), R, json=False)
        assert (gemini.answered_id, gemini.taken) == (None, False)
        gemini.stdout(b"H")
        # It names no session, but keeps the ID of the one that it resumes.
        assert (gemini.answered_id, gemini.taken) == (R, True)
        assert gemini.judge(-9) == get_agent("gemini").judge(
            exit_code=137, stdout="H", requested=R, command=["gemini", "-p", "x"]
        )

    def test_what_is_taken(self):
        for agent, json_asked, taken in (("claude", False, True), ("claude", True, False), ("claude", None, False)):
            observer = RunObserver(get_agent(agent), R, json=json_asked)
            observer.stdout(b"\n ")
            assert not observer.taken
            observer.stdout(b"hi\n")
            assert observer.taken is taken

    def test_context_tokens(self):
        usage = {"input_tokens": 10, "cache_read_input_tokens": 200, "cache_creation_input_tokens": 3000, "output_tokens": 9}
        said = SAID | {"message": {"model": "m", "usage": usage}}
        observer, _ = self.follow(INIT, said, said, DONE | {"num_turns": 2, "usage": {**usage, "input_tokens": 20}})
        assert observer.context_tokens == 3210
        assert self.follow(DONE | {"usage": usage})[0].context_tokens == 3210
        # Added up over several requests.
        assert self.follow(DONE | {"num_turns": 2, "usage": usage})[0].context_tokens is None


class TestSilence:
    @over("agent", ["claude", "codex", "gemini", "opencode", "copilot"])
    def test_exit_code_0_without_a_word(self, agent):
        runtime = get_agent(agent)
        as_json = runtime.json_output.split()
        for command in (None, [agent, "hi"], [agent, *as_json], ["./script"]):
            assert runtime.judge(exit_code=0, stdout="\n", command=command).verdict is Verdict.other
        noise = {"stderr": "a warning\n", "exit_code": 0}
        assert runtime.judge(**noise, command=[agent, "hi"]).verdict is Verdict.other
        assert runtime.judge(**noise, stdout="Hello.\n", command=[agent, *as_json]).verdict is Verdict.other
        # What was asked for is not known.
        assert runtime.judge(**noise).verdict is Verdict.ok

    def test_text_before_records(self):
        claude, stdout = get_agent("claude"), "Now using node v22\n" + lines(INIT, SAID, DONE)
        shell = ["bash", "-lc", "cd /srv && claude -p --output-format stream-json --verbose 'print json'"]
        for command, session_id in ((STREAM, R), (shell, R), (None, None), (["claude", "-p", "hi"], None)):
            judgement = claude.judge(exit_code=0, stdout=stdout, command=command)
            assert (judgement.verdict, judgement.session_id) == (Verdict.ok, session_id)

    def test_records_in_text_mode_are_what_the_assistant_said(self):
        gone = lines(INIT, failed(f"No conversation found with session ID: {R}"))
        for agent in ("claude", "codex", "gemini"):
            runtime = get_agent(agent)
            assert runtime.judge(exit_code=0, stdout=gone, command=[agent, "hi"]).verdict is Verdict.ok
            judgement = runtime.judge(exit_code=1, stdout=gone, stderr=gone, command=[agent, "hi"])
            assert (judgement.verdict, judgement.turn_began) == (Verdict.other, False)

    @over(
        ("command", "wants"),
        [
            (STREAM, True),
            (["/usr/bin/claude", "-p", "--output-format=json"], True),
            (["claude", "-p", "print it as json"], False),
            (["npx", "@anthropic-ai/claude-code@latest", "-p", "hi"], False),
            (["npx", "-y", "@anthropic-ai/claude-code", "-p", "--output-format", "json"], True),
            (["bash", "-c", "claude -p --output-format json"], True),
            (["bash", "-c", "claude -p 'as json'"], None),
            (["bash", "-c", "it's not closed json"], None),
            (["./review.sh", "42"], None),
            ([], None),
        ],
    )
    def test_whether_json_is_asked_for(self, command, wants):
        assert get_agent("claude").wants_json(command) is wants

    def test_in_any_runtimes_option(self):
        for words in (
            "--json",
            "--experimental-json",
            "-ojson",
            "--format=json",
            "--output-format streaming-json",
            "-o json",
        ):
            assert asks_for_json(words.split())
        for words in ("--stream-json", "--mode json", "--format json", "--output-format stream-json", "x -p --json"):
            assert asks_for_json(words.split())
        for words in ("--json-schema", "x.json", "jsonl", "", "notjson", "json", "-p json", "--output-format text json"):
            assert not asks_for_json(words.split())


class TestCutShort:
    @over("exit_code", [-2, -9, -15, 124, 129, 130, 137, 143])
    def test_by_its_exit_code(self, exit_code):
        judgement = get_agent("claude").judge(exit_code=exit_code, stdout=lines(INIT))
        assert (judgement.verdict, judgement.cut_short) == (Verdict.other, True)
        gone = get_agent("claude").judge(exit_code=exit_code, stderr=f"No conversation found with session ID: {R}")
        assert (gone.verdict, gone.cut_short) == (Verdict.gone, False)

    def test_others_are_not(self):
        for exit_code in (0, 1, 2, 42, 126, 127, 144, 255, None):
            assert not get_agent("claude").judge(exit_code=exit_code, stdout=lines(INIT)).cut_short

    def test_by_what_was_raised(self):
        out = subprocess.TimeoutExpired(STREAM, 60, lines(INIT, SAID).encode(), b"")
        for agent, error, session_id in (
            ("claude", out, R),
            ("claude-agent-sdk", TimeoutError(), None),
            ("openai", TimeoutError(), None),
        ):
            judgement = get_agent(agent).judge(error)
            assert (judgement.verdict, judgement.session_id, judgement.cut_short) == (Verdict.other, session_id, True)

    def test_the_command_comes_with_the_error(self):
        for command, verdict in ((["claude", "-p"], "other"), (STREAM, "gone"), ("claude -p", "other")):
            stdout = "a banner\n" + lines(failed(None, errors=[f"No conversation found with session ID: {R}"], num_turns=0))
            assert get_agent("claude").judge(subprocess.CalledProcessError(1, command, stdout)).verdict == verdict


class TestKeepsItsID:
    def test_another_session_means_that_the_old_one_was_gone(self):
        run = {"exit_code": 0, "stdout": lines(INIT, SAID, DONE)}
        claude = get_agent("claude")
        assert claude.judge(**run, requested=E).previous_gone
        assert not claude.judge(**run, requested=E, command=[*STREAM, "--fork-session"]).previous_gone
        assert not claude.judge(**run, requested=R.upper()).previous_gone
        assert not claude.judge(**run).previous_gone

    def test_which_do(self):
        assert {name for name in ("claude", "codex", "gemini", "opencode", "copilot") if get_agent(name).keeps_id} == {
            "claude",
            "codex",
            "gemini",
            "opencode",
            "copilot",
        }
        assert not get_agent("openai").keeps_id


class TestDescriptions:
    """What no runtime of this package needs yet."""

    BOT = Agent(
        name="bot",
        executables=("bot",),
        keeps_id=True,
        json_output="--json",
        session_id_stdout_line="Session: {id}",
        failed_stdout_line="  error: ",
        answer_on_stdout=True,
        turn_closed=({"type": "bye"},),
        turn_ended=({"type": "end"},),
        session_id_at=(RecordField("id"),),
        context_tokens_at=ContextTokens(("used.in", "used.cache"), {"type": "end"}),
        refusals=(Refusal(Verdict.gone, "  error: no session {id}"),),
    )

    def test_lines_on_stdout(self):
        run = {"stdout": "banner\nSession: 7\nHello.\n", "exit_code": 0, "command": ["bot"]}
        assert self.BOT.judge(**run).session_id == "7"
        for exit_code in (0, 1):
            run = {"stdout": "banner\n  error: no session 7\n", "exit_code": exit_code}
            assert self.BOT.judge(**run, requested="7").verdict is Verdict.gone
            assert self.BOT.judge(**run, requested="8").verdict is Verdict.other

    def test_the_last_record(self):
        observer = self.BOT.observer(None, ["bot", "--json"])
        observer.stdout(lines({"type": "end", "id": "7", "used": {"in": 5, "cache": [1, 2]}}).encode())
        assert (observer.closed, observer.context_tokens) == (None, 7)
        observer.stdout(lines({"type": "bye"}).encode())
        assert (observer.closed, observer.answered_id) == ("ok", "7")

    def test_what_a_record_stands_for(self):
        record = {
            "type": "end",
            "model": {"name": "x-1"},
            "parts": [{"kind": "a"}, {"kind": "b", "text": "[API Error: 401]"}],
        }
        for wanted in (
            {"model": {"name": "x-1"}},
            {"model": "..."},
            {"parts": {"kind": "b"}},
            {"parts": {"text": "[API Error: ..."}},
            {},
        ):
            assert matches(record, wanted)
        for wanted in (
            {"model": {"name": "x"}},
            {"parts": {"kind": "c"}},
            {"type": {"name": "x"}},
            {"model": "e..."},
            {"none": "..."},
        ):
            assert not matches(record, wanted)


class TestAClosingRecordWithoutItsLineBreak:
    """An agent that hangs with its output open may never end the line of its closing record."""

    DOCUMENT = '{\n  "session_id": "11111111-2222-4333-8444-555555555555",\n  "response": "done"\n}'

    def test_it_is_seen_while_the_run_goes_on(self):
        observer = get_agent("gemini").observer(None, ["gemini", "-p", "x", "--output-format", "json"])
        observer.stdout(self.DOCUMENT[:-1].encode())
        assert observer.closed is None
        observer.stdout(b"}")
        assert observer.closed == "ok"
        judgement = observer.judge(0)
        assert (judgement.verdict, judgement.session_id) == (Verdict.ok, "11111111-2222-4333-8444-555555555555")

    def test_more_output_shows_that_it_was_none(self):
        observer = get_agent("claude").observer(None, ["claude", "-p", "--output-format", "json"])
        observer.stdout(b'{"type": "result", "num_turns": 1}')
        assert observer.closed == "ok"
        observer.stdout(b" is what it prints\n")
        assert observer.closed is None


TITLE, CURSOR, BELL, BOM = "\x1b]0;claude-code\x07", "\x1b[?25l", "\x07", "\ufeff"


class TestTerminalCodes:
    """What a program prints for a terminal, also into a pipe, is neither part of a record nor an answer."""

    @over("before", ["", TITLE, CURSOR, BELL, BOM, "\x1b7\x1b(B", TITLE + BOM, BOM + CURSOR, "\x1b]0;{x}\x1b\\"])
    @over("after", ["", "\x1b[?25h", BELL, TITLE, "\x1b8\r"])
    @over("size", [1, 5, 1000])
    def test_around_a_record(self, before, after, size):
        for stdout in (lines(DONE)[:-1], json.dumps(DONE, indent=2)):
            raw = f"{before}{stdout}{after}".encode()
            for end in (b"", b"\n"):
                observer = get_agent("claude").observer(None, STREAM)
                for start in range(0, len(raw + end), size):
                    observer.stdout((raw + end)[start : start + size])
                assert observer.closed == "ok"
                assert observer.judge(0).session_id == R

    @over("size", [1, 2, 1000])
    @over("code", [TITLE, CURSOR, BELL, TITLE + CURSOR + "\r\n", "\x1b]0;half a tit", "\x1b[?2"])
    def test_alone(self, code, size):
        command = ["opencode", "run", f"--session={S}", "hi"]
        observer = get_agent("opencode").observer(S, command)
        for start in range(0, len(code), size):
            observer.stdout(code[start : start + size].encode())
        assert (observer.taken, observer.answered_id) == (False, None)
        assert observer.judge(0).verdict is Verdict.other
        observer.stdout(b"\x07h")
        assert (observer.taken, observer.answered_id) == (True, S)


def test_a_byte_that_is_not_utf_8():
    for record in (json.dumps(DONE), json.dumps(DONE, indent=2)):
        raw = record.encode().replace(b"ok", b"caf\xc3")
        for end in (b"", b"\n"):
            observer = get_agent("claude").observer(None, STREAM)
            observer.stdout(raw + end)
            assert observer.closed == "ok"
            assert observer.judge(0).session_id == R


def test_a_session_that_a_log_on_stderr_names():
    run = {"exit_code": 0, "stdout": lines({"session_id": R, "response": "x"}), "stderr": lines({"session_id": E})}
    command = ["gemini", "-p", "x", "--output-format", "json"]
    for requested in (None, R):
        judgement = get_agent("gemini").judge(**run, requested=requested, command=command)
        assert (judgement.session_id, judgement.previous_gone) == (R, False)


@over(
    ("command", "wanted"),
    [
        (["doppler", "run", "--json", "--", "claude", "-p", "hi"], False),
        (["doppler", "run", "--", "claude", "-p", "--output-format", "json"], True),
        (["claude", "-p", "--", "--output-format=json"], False),
        (["bash", "-lc", "claude -p --output-format json hi"], True),
        (["bash", "-lc", "cd x && claude -p --output-format json hi"], True),
        (["./wrapper", "--output-format", "json"], True),
        (["./wrapper", "ask for --output-format json"], None),
    ],
)
def test_only_the_words_of_the_agent_ask_for_json(command, wanted):
    assert get_agent("claude").wants_json(command) is wanted
