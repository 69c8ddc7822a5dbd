"""Where the resume argument goes: commands and their second turns, for every runtime and launcher; and random ones."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from redis_sessions.agents import get_agent, known_agents, launchers
from redis_sessions.agents.command_line import MARK, PlaceUnknown, guess, lacks, with_resume
from redis_sessions.agents.launchers import name_of, named
from tests.fuzz.texts import amounts, fuzz
from tests.over import over

AGENTS = [agent for agent in known_agents() if agent.executables]
PROGRAMS = [program for agent in AGENTS for program in agent.programs]
ENTRIES = tomllib.loads(Path(launchers.__file__).with_name("launchers.toml").read_text("utf-8"))["launcher"]


def agent_of(command):
    program = guess(command, PROGRAMS)
    return next(agent for agent in AGENTS if program in agent.programs)


def turns(command, agent=None, session_id="ID"):
    """The commands of the first and the second turn."""
    agent = agent or agent_of(command)
    arguments = [word.replace("{id}", session_id) for word in agent.resume]
    return tuple(with_resume(command, agent.programs, agent.place, given) for given in ([], arguments))


def rows(table):
    """Lines of commands in pairs: what is given, and the second turn."""
    lines = table.strip().splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


# -- the agents themselves. Each Codex row was tried with 0.80.0 and 0.171.0.

PLACES = """
claude -p hello
claude --resume=ID -p hello
claude
claude --resume=ID
claude -p --output-format json -- -r
claude --resume=ID -p --output-format json -- -r
/usr/local/bin/claude --model opus hello -p
/usr/local/bin/claude --resume=ID --model opus hello -p
claude --add-dir a b -p hello
claude --resume=ID --add-dir a b -p hello
claude.exe -p hello
claude.exe --resume=ID -p hello
gemini -p hello -o json
gemini --resume=ID -p hello -o json
gemini --include-directories a -p hello
gemini --resume=ID --include-directories a -p hello
copilot -p hello --allow-all-tools
copilot --resume=ID -p hello --allow-all-tools
opencode run hello
opencode run --session=ID hello
opencode run --format json -f a.png -- hello
opencode run --session=ID --format json -f a.png -- hello
opencode --print-logs --log-level DEBUG run hello --format json
opencode --print-logs --log-level DEBUG run --session=ID hello --format json
opencode -m a/b run
opencode -m a/b run --session=ID
codex exec
codex exec resume ID
codex e hello
codex e resume ID hello
codex exec --json hello
codex exec --json resume ID hello
codex exec --json -
codex exec --json resume ID -
codex exec --json -- -hello
codex exec --json resume ID -- -hello
codex exec hello --
codex exec resume ID hello --
codex exec hello --json
codex exec hello --json resume ID
codex exec hello --json -s read-only
codex exec hello --json -s read-only resume ID
codex exec hello -C sub --add-dir . --color never
codex exec hello -C sub --add-dir . --color never resume ID
codex exec hello -p work --json
codex exec hello -p work --json resume ID
codex exec hello -o out.txt --output-schema schema.json
codex exec hello -o out.txt --output-schema schema.json resume ID
codex exec - --json
codex exec - --json resume ID
codex exec '' --json
codex exec '' --json resume ID
codex exec --json hello --skip-git-repo-check
codex exec --json hello --skip-git-repo-check resume ID
codex exec --json 'resume it'
codex exec --json resume ID 'resume it'
codex exec hello -i a.png
codex exec hello resume ID -i a.png
codex exec hello --json -i a.png -i b.png
codex exec hello --json resume ID -i a.png -i b.png
codex exec --json -i a.png
codex exec --json resume ID -i a.png
codex exec -i a.png -- hello
codex exec resume ID -i a.png -- hello
codex exec -i a.png -i b.png -- hello
codex exec resume ID -i a.png -i b.png -- hello
codex exec -i a.png b.png --json hello
codex exec -i a.png b.png --json resume ID hello
codex exec hello -i a.png b.png --json
codex exec hello -i a.png b.png --json resume ID
codex exec --image=a.png hello
codex exec --image=a.png resume ID hello
codex exec -ia.png hello
codex exec -ia.png resume ID hello
codex exec hello -i=a.png
codex exec hello -i=a.png resume ID
codex exec -mgpt -c=a=b hello
codex exec -mgpt -c=a=b resume ID hello
codex -C . --search -a never exec --json hello
codex -C . --search -a never exec --json resume ID hello
codex --image=a.png exec hello
codex --image=a.png exec resume ID hello
codex --enable=web -c a=1 exec hello --json
codex --enable=web -c a=1 exec hello --json resume ID
codex exec --dangerously-bypass-approvals-and-sandbox --ephemeral hello
codex exec --dangerously-bypass-approvals-and-sandbox --ephemeral resume ID hello
cursor-agent -p hello --output-format json
cursor-agent --resume=ID -p hello --output-format json
pi -p --mode json hello
pi --session ID -p --mode json hello
pi --model x -p hello
pi --session ID --model x -p hello
qwen -p hello --output-format json
qwen --resume=ID -p hello --output-format json
qwen --yolo -p hello
qwen --resume=ID --yolo -p hello
kimi -p hello --output-format stream-json
kimi --session ID -p hello --output-format stream-json
kimi -m k2 -p hello
kimi --session ID -m k2 -p hello
grok -p hello --output-format json
grok --resume=ID -p hello --output-format json
grok --always-approve -p hello
grok --resume=ID --always-approve -p hello
amp -x hello --stream-json --no-archive-after-execute
amp threads continue ID -x hello --stream-json --no-archive-after-execute
amp -x threads
amp threads continue ID -x threads
amp --dangerously-allow-all -x hello
amp threads continue ID --dangerously-allow-all -x hello
goose run -t hello --output-format json
goose run --resume --name ID -t hello --output-format json
goose run --quiet -t hello
goose run --resume --name ID --quiet -t hello
droid exec -o json hello
droid exec --session-id ID -o json hello
droid exec --auto low -o json hello
droid exec --session-id ID --auto low -o json hello
kilo run hello --format json
kilo run --session=ID hello --format json
kilocode run hello
kilocode run --session=ID hello
hermes chat --quiet -q hello
hermes chat --resume=ID --quiet -q hello
hermes chat -q hello
hermes chat --resume=ID -q hello
auggie --print hello --output-format json
auggie --resume ID --print hello --output-format json
auggie -p hello
auggie --resume ID -p hello
npx -y @qwen-code/qwen-code -p hello
npx -y @qwen-code/qwen-code --resume=ID -p hello
npx -y @mariozechner/pi-coding-agent -p --mode json hello
npx -y @mariozechner/pi-coding-agent --session ID -p --mode json hello
timeout 60 goose run -t hello
timeout 60 goose run --resume --name ID -t hello
env A=1 grok -p hello
env A=1 grok --resume=ID -p hello
"""

# -- packages

PACKAGES = """
npx -y @anthropic-ai/claude-code -p hello
npx -y @anthropic-ai/claude-code --resume=ID -p hello
npx --yes @anthropic-ai/claude-code@2.0.1 -p hello
npx --yes @anthropic-ai/claude-code@2.0.1 --resume=ID -p hello
npx @openai/codex@latest exec hello --json
npx @openai/codex@latest exec hello --json resume ID
npx -y -p @openai/codex codex exec hello
npx -y -p @openai/codex codex exec resume ID hello
npx -- @github/copilot -p hello
npx -- @github/copilot --resume=ID -p hello
npx codex exec hello
npx codex exec resume ID hello
npx -y -c 'codex exec hello --json'
npx -y -c 'codex exec hello --json resume ID'
npm exec --yes -- @google/gemini-cli -p hello
npm exec --yes -- @google/gemini-cli --resume=ID -p hello
bunx opencode-ai@1.18 run hello
bunx opencode-ai@1.18 run --session=ID hello
bun x --bun @google/gemini-cli -p hello
bun x --bun @google/gemini-cli --resume=ID -p hello
pnpm dlx @openai/codex exec --json hello
pnpm dlx @openai/codex exec --json resume ID hello
pnpm dlx --package=opencode-ai opencode run hello
pnpm dlx --package=opencode-ai opencode run --session=ID hello
yarn dlx -q @anthropic-ai/claude-code -p hello
yarn dlx -q @anthropic-ai/claude-code --resume=ID -p hello
uvx --from something claude -p hello
uvx --from something claude --resume=ID -p hello
uv tool run claude -p hello
uv tool run claude --resume=ID -p hello
node /usr/lib/node_modules/@anthropic-ai/claude-code/cli.js -p hello
node /usr/lib/node_modules/@anthropic-ai/claude-code/cli.js --resume=ID -p hello
node --max-old-space-size=4096 node_modules/@openai/codex/bin/codex.js exec hello --json
node --max-old-space-size=4096 node_modules/@openai/codex/bin/codex.js exec hello --json resume ID
node_modules/.bin/claude -p hello
node_modules/.bin/claude --resume=ID -p hello
deno run -A npm:@google/gemini-cli -p hello
deno run -A npm:@google/gemini-cli --resume=ID -p hello
"""

# -- launchers: what stands before the agent

LAUNCHERS = """
env
env -
env -i -u A -C /tmp FOO=1 BAR=claude
env --unset=A --
env -iu A B=c
timeout 60
timeout -k 5 --signal=KILL --foreground 1.5m
timeout -vk5 -- 60s
timeout -s claude 0
gtimeout .5h
nice
nice -n 5
nice -10
nice --adjustment=-5
nohup
command
fakeroot --
dbus-run-session --
exec -a codex
stdbuf -oL -e 0
gstdbuf --output=L
setsid
setsid -w
setsid --wait --ctty
ionice -c2 -n7
ionice -t -c idle
taskset 0x3
taskset -c 0,1-3
chrt -f 10
chrt -b 0
choom -n 100 --
prlimit --nofile=1024 --core=0:0
setpriv --reuid=1000 --regid 1000 --init-groups --no-new-privs
numactl -N 0 -m 0
time -p
gtime -f %e -o codex
caffeinate -i -t 60
systemd-run --user --scope -p MemoryMax=1G
systemd-inhibit --what=sleep
sudo
sudo -nu bob -E FOO=1
sudo --user=bob --preserve-env=A --
doas -u bob
runuser -u bob --
gosu bob
gosu bob:staff
su-exec 1000:1000
chpst -u bob -e /env
chroot --userspec=1:1 /jail
unshare -rn --mount-proc
nsenter -t 1 -m -u
tini --
tini -s -g --
dumb-init -c --
catatonit -P --
firejail --noprofile --net=none --quiet
docker exec -it -e A=claude box
podman exec --user 5 -w /app box
docker compose exec -T service
kubectl exec -i pod -c codex --
doppler run -p claude -c dev --
op run --env-file=.env --
dotenvx run -f .env --
aws-vault exec codex --
mise exec node@22 --
npm x --
devbox run -c . --
nix develop .#claude -c
nix shell nixpkgs#codex --command
direnv exec .
direnv exec claude
dotenv -e .env --
poetry run
conda run -n claude --no-capture-output
uv run --no-sync --with claude
fnm exec --using 22
arch -arm64
proxychains4 -q
torsocks -i
faketime -f @2020-01-01
npx -y
bunx --bun
bun x
pnpm dlx
pnpm exec
yarn dlx
yarn exec
uvx -q --python 3.12
pipx run --spec claude
node --require ./codex.js
tsx --no-cache
bun run --silent
deno run -A
python3.12 -u -X dev
ssh -i key -p 22 bob@host
ssh -tt host --
flock -n -E 5 /tmp/claude
unbuffer -p
xvfb-run -a -s '-screen 0'
strace -f -o claude
xargs -0 -r
sh -c '"$0" "$@"'
bash -euo pipefail -c 'cd "/a b" && exec "$@"' bash
nohup timeout 60 nice -n 5
env FOO=1 timeout 60 env BAR=2 stdbuf -oL
sudo -u bob -- env -i PATH=/bin setsid -w nice -n 5
docker exec -i box timeout 60 env A=1
ssh host timeout 60 nice -n 5
"""

AGENT_ROWS = [
    ("claude -p 'look at packages/codex'", "claude --resume=ID -p 'look at packages/codex'"),
    ("claude -p bin/claude", "claude --resume=ID -p bin/claude"),
    ("codex exec claude --json -s read-only", "codex exec claude --json -s read-only resume ID"),
    ("opencode run codex --format json", "opencode run --session=ID codex --format json"),
]

# -- lines for the shell

LINES = """
sh -c 'claude -p hello'
sh -c 'claude --resume=ID -p hello'
bash -lc 'claude -p "hello $NAME" --output-format json'
bash -lc 'claude --resume=ID -p "hello $NAME" --output-format json'
zsh -ec 'exec codex exec "${PROMPT}" --json'
zsh -ec 'exec codex exec "${PROMPT}" --json resume ID'
dash -c "A=1 B='c d' timeout 60 opencode run 'hello  you'"
dash -c "A=1 B='c d' timeout 60 opencode run --session=ID 'hello  you'"
bash --norc -c 'codex exec  hello'
bash --norc -c 'codex exec resume ID hello'
bash -c "codex exec hello --json "
bash -c "codex exec hello --json resume ID "
bash -c 'claude -p "what is {resume} for"'
bash -c 'claude --resume=ID -p "what is {resume} for"'
fish -c 'claude -p hello'
fish -c 'claude --resume=ID -p hello'
busybox sh -c 'gemini -p hello'
busybox sh -c 'gemini --resume=ID -p hello'
script -qec 'claude -p hello' /dev/null
script -qec 'claude --resume=ID -p hello' /dev/null
script --quiet --command='codex exec hello --json' -e /dev/null
script --quiet --command='codex exec hello --json resume ID' -e /dev/null
script -q /dev/null -c'copilot -p hello'
script -q /dev/null -c'copilot --resume=ID -p hello'
su -l bob -c 'claude -p hello'
su -l bob -c 'claude --resume=ID -p hello'
su - bob --command='claude -p hello'
su - bob --command='claude --resume=ID -p hello'
flock /tmp/lock -c 'claude -p hello'
flock /tmp/lock -c 'claude --resume=ID -p hello'
nix-shell -p nodejs --run 'npx -y @openai/codex exec hello'
nix-shell -p nodejs --run 'npx -y @openai/codex exec resume ID hello'
ssh host claude -p hello
ssh host claude --resume=ID -p hello
ssh host 'claude -p "hello you"'
ssh host 'claude --resume=ID -p "hello you"'
ssh -p 22 host codex exec hello --json
ssh -p 22 host codex exec hello --json resume ID
ssh host 'cd' '/srv' '&&' claude '{resume}' -p
ssh host 'cd' '/srv' '&&' claude --resume=ID -p
timeout 60 docker exec -i box sh -c 'claude -p hello'
timeout 60 docker exec -i box sh -c 'claude --resume=ID -p hello'
sh -c 'claude {resume} -p "$(cat prompt.txt)"'
sh -c 'claude --resume=ID -p "$(cat prompt.txt)"'
bash -lc 'cd /srv && codex exec --json {resume} - < prompt.txt | tee log'
bash -lc 'cd /srv && codex exec --json resume ID - < prompt.txt | tee log'
sh -c 'claude -p < prompt.txt {resume}'
sh -c 'claude -p < prompt.txt --resume=ID'
sh -c '(claude -p {resume}; true)'
sh -c '(claude -p --resume=ID; true)'
ssh host 'cd /srv; claude {resume} -p < prompt.txt'
ssh host 'cd /srv; claude --resume=ID -p < prompt.txt'
ssh host cd /srv '&&' claude '{resume};' true
ssh host cd /srv '&&' claude '--resume=ID;' true
ssh host "bash -lc 'claude {resume} -p'"
ssh host "bash -lc 'claude --resume=ID -p'"
docker run --rm -i image sh -c 'claude {resume} -p'
docker run --rm -i image sh -c 'claude --resume=ID -p'
docker run --rm -i image claude {resume} -p hello
docker run --rm -i image claude --resume=ID -p hello
./wrapper --for claude {resume} -p 'ask codex'
./wrapper --for claude --resume=ID -p 'ask codex'
"""

ALL = [
    *rows(PLACES),
    *rows(PACKAGES),
    *rows(LINES),
    *(
        (f"{launcher} {given}", f"{launcher} {second}")
        for launcher in LAUNCHERS.strip().splitlines()
        for given, second in AGENT_ROWS
        # Joined to one line, such a prompt is several.
        if not (launcher.startswith("ssh") and "'" in given)
    ),
]


@over(("given", "second"), ALL)
def test_the_second_turn_of_every_form(given, second):
    command = shlex.split(given)
    fresh, resumed = turns(command)
    assert resumed == shlex.split(second)
    if MARK not in given or "is {resume} for" in given:
        assert fresh == command
    assert MARK not in fresh


def test_every_runtime_and_launcher_is_in_the_table():
    assert len(ALL) >= 120
    assert {agent_of(shlex.split(given)).name for given, _ in ALL} == {agent.name for agent in AGENTS}
    used = [given for given, _ in ALL]
    for entry in ENTRIES:
        names = [" ".join(name.split()) for name in entry["names"].split(",")]
        if "refused" not in entry:
            assert any(given.startswith(f"{name} ") or f" {name} " in given for name in names for given in used) or any(
                re.match(rf"{re.escape(name)}[0-9.]* ", given) for name in names for given in used
            ), names


@over("package", [package for agent in AGENTS for package in agent.packages])
def test_every_package(package):
    for spec in (package, f"{package}@1.2.3", f"npm:{package}", f"/x/node_modules/{package}/main.js"):
        assert named(spec, PROGRAMS) == package
    assert named(f"@else/{name_of(package)}", PROGRAMS) is None


def test_every_launcher_is_described_with_known_keys():
    assert launchers._launchers().keys() == {
        " ".join(name.split()) for entry in ENTRIES for name in entry["names"].split(",")
    }
    for launcher in launchers._launchers().values():
        assert not launcher.flags & (launcher.value_options | launcher.shell_options)
        for pattern in launcher.words:
            re.compile(pattern)


@over(
    ("given", "line"),
    [
        ("sh -c 'claude {resume} -p x'", "claude -p x"),
        ("sh -c 'claude -p x {resume}'", "claude -p x"),
        ("sh -c 'claude {resume}'", "claude"),
        ("sh -c 'claude {resume}; claude {resume} -p'", "claude; claude -p"),
        ("sh -c '(claude -p {resume})'", "(claude -p)"),
        ("ssh host 'claude {resume} -p < f'", "claude -p < f"),
    ],
)
def test_a_fresh_start_without_the_mark(given, line):
    fresh, _ = turns(shlex.split(given))
    assert " ".join(fresh[-1].split()) == line


@over(
    ("given", "quiet"),
    [
        ("claude -p x", True),
        ("timeout 60 nice env A=1 claude -p", True),
        ("npx -y @anthropic-ai/claude-code -p", True),
        ("sh -c 'claude -p x'", True),
        ("sh -c 'A=1 nice claude -p x'", True),
        ("sh -c 'exec \"$@\"' sh claude", True),
        ("sh -c 'cd /x && exec \"$@\"' sh claude", True),
        ('sh -c \'export A=1; cd "$A"; "$0" "$@"\' claude', True),
        ("ssh -p 2 host claude -p", True),
        ("docker exec -i box claude -p", True),
        ("sh -lc 'exec \"$@\"' sh claude", False),
        ("sh -c 'echo hi; exec \"$@\"' sh claude", False),
        ("sh -c '. ./nvm.sh && exec \"$@\"' sh claude", False),
        ("sh -c 'cd $(pwd; ls) && exec \"$@\"' sh claude", False),
        ("sh -c 'cd - && exec \"$@\"' sh claude", False),
        ("sh -c '\"$@\" 2>&1' sh claude", False),
        ("sh -c '\"$@\"; echo done' sh claude", False),
        ("ssh -tt host claude -p", False),
        ("docker exec -it box claude -p", False),
        ("timeout 60 yarn exec claude", False),
        ("wrapper claude {resume} -p", False),
        ("sh -c 'cat prompt | claude {resume} -p'", False),
    ],
)
def test_launchers_that_certainly_print_nothing(given, quiet):
    assert launchers.launch_of(shlex.split(given), PROGRAMS).quiet is quiet


@over(
    "given",
    [
        "env", "timeout 9", "nice", "nohup", "stdbuf -oL", "setsid -w", "ionice", "taskset 1", "chrt -o 0", "choom -n 0",
        "setpriv", "time", "strace", "xargs", "fakeroot", "flock .", "tini",
        "sh -c 'exec \"$@\"' sh", "bash -c 'exec \"$@\"' bash",
    ],
)  # fmt: skip
def test_launchers_that_are_said_to_print_nothing(given):
    words = shlex.split(given)
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    assert launchers.launch_of([*words, "true"], ["true"]).quiet
    done = subprocess.run([*words, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=True)
    assert done.stdout == b""


# -- what is refused


@over(
    ("given", "says", "remedy"),
    [
        ("wrapper claude -p", "wrapper is neither the agent nor a launcher", "as in claude {resume} …"),
        ("wrapper --with codex exec hello", "wrapper is neither", "as in codex exec {resume} …"),
        ("timeout 60 wrapper claude -p", "wrapper is neither", "claude {resume} …"),
        ("docker run --rm image claude -p", "docker is neither", "claude {resume} …"),
        ("docker -H x exec box claude -p", "docker is neither", "claude {resume} …"),
        ("npm exec claude", "npm exec has no command here without --", "claude {resume} …"),
        ("npx -y --odd claude -p", "--odd is not an option of npx", "claude {resume} …"),
        ("timeout --odd 60 claude -p", "--odd is not an option of timeout", "claude {resume} …"),
        ("timeout -q 60 claude -p", "-q is not an option of timeout", "claude {resume} …"),
        ("timeout soon claude -p", "soon is not what timeout takes", "claude {resume} …"),
        ("chrt claude -p", "claude is not what chrt takes", "claude {resume} …"),
        ("prlimit --pid 5 claude", "--pid is not an option of prlimit", "claude {resume} …"),
        ("taskset -p claude", "-p is not an option of taskset", "claude {resume} …"),
        ("python3 run.py claude -p", "run.py is neither", "claude {resume} …"),
        ("python3 -m claude", "-m is not an option of python", "claude {resume} …"),
        ("bash claude -p", "what bash runs without -c is not known", "claude {resume} …"),
        ("bash --odd -c 'claude -p'", "--odd is not an option of bash", "claude {resume} …"),
        ("sh -c 'claude -p $PROMPT'", "what the shell makes of $PROMPT", "claude {resume} …"),
        ("sh -c 'claude -p < prompt.txt'", "what the shell makes of < prompt.txt", "claude {resume} …"),
        ("sh -c 'claude -p `cat x`'", "what the shell makes of `cat x`", "claude {resume} …"),
        ("sh -c 'cd x && claude -p'", "what the shell makes of && claude -p", "claude {resume} …"),
        ("sh -c 'claude -p \"$@\"' sh hello", 'what the shell makes of "$@"', "claude {resume} …"),
        ("sh -c 'claude \"{resume}\" -p'", "{resume} is in quotes", "claude {resume} …"),
        ("sh -c '{resume} claude -p'", "what the shell makes of {resume}", "claude {resume} …"),
        ("sh -c 'claude --for={resume} -p'", "what the shell makes of", "claude {resume} …"),
        ("ssh host \"sh -c 'claude -p'\"", "a line for the shell stands in another one", "claude {resume} …"),
        ("sh -c 'wrapper claude -p'", "wrapper is neither", "claude {resume} …"),
        ("su bob claude", "su has no command here without", "claude {resume} …"),
        ("script -q log claude", "script has no command here without", "claude {resume} …"),
        ("tmux new -d claude -p", "tmux can't be used here: it keeps", "put redis-sessions run behind it"),
        ("watch -n 5 claude -p", "watch can't be used here: it runs the agent again", "put redis-sessions run behind it"),
        ("codex exec --odd hello", "--odd is not an option", "codex exec {resume} …"),
        ("codex exec -m", "-m is not an option that is known here, or has no value", "codex exec {resume} …"),
        ("codex --odd exec hello", "--odd is not an option", "codex exec {resume} …"),
        (
            "codex -i a.png exec hello",
            "-i takes all words up to the next option for its values, exec among them",
            "write it after exec",
        ),
        ("codex exec -i a.png hello", "-i takes all words up to the next option", "write -ia.png, with its own -i"),
        ("codex exec hello --image a b", "--image takes all words up to", "write --image=a, with its own --image"),
        ("codex exec hello you", '"you" is a second prompt', "in quotes"),
        ("codex exec hello -- you", '"you" is a second prompt', "in quotes"),
        ("codex exec -- hello you", '"you" is a second prompt', "in quotes"),
        ("codex exec fork x", "with fork nothing can be resumed", "leave it out"),
        ("codex exec hello --json resume ID", "resumes a session by itself (resume)", "remove that argument"),
        ("codex exec resume", "resumes a session by itself (resume)", "remove that argument"),
        ("gemini --list-sessions", "with --list-sessions nothing can be resumed", "leave it out"),
        ("timeout 60 claude --continue -p", "resumes a session by itself (--continue)", "remove that argument"),
        ("sh -c 'claude -c -p hello'", "resumes a session by itself (-c)", "remove that argument"),
        ("opencode --odd run hello", "--odd is not an option", "opencode run {resume} …"),
        ("amp threads continue T-1 -x hello", "resumes a session by itself (threads)", "remove that argument"),
        ("amp --stream-json t c T-1 -x hello", "resumes a session by itself (t)", "remove that argument"),
        ("cursor-agent resume -p", "resumes a session by itself (resume)", "remove that argument"),
        ("xargs -P2 -n1 claude -p", "with -P xargs may run the agent several times", "leave it out"),
        ("xargs -0rL 1 claude -p", "with -L xargs may run the agent several times", "leave it out"),
        ("xargs --replace=X claude -p X", "with --replace xargs may run the agent several times", "leave it out"),
        ("pnpm --package=opencode-ai dlx opencode run hello", "pnpm is neither", "opencode run {resume} …"),
    ],
)
def test_a_refusal_names_the_word_and_a_form_that_works(given, says, remedy):
    """Of the first turn, too."""
    command = shlex.split(given)
    agent = agent_of(command)
    for arguments in ([], ["--resume=ID"]):
        with pytest.raises(PlaceUnknown) as caught:
            with_resume(command, agent.programs, agent.place, arguments)
        assert says in caught.value.message
        assert remedy in caught.value.remedy


@over(
    "given",
    ["timeout 60 claude -p", "npx -y @openai/codex exec hello", "sh -c 'claude -p'", "docker run image claude -p", "claude"],
)
def test_what_runs_another_agent(given):
    """`--agent gemini` for it."""
    with pytest.raises(PlaceUnknown):
        turns(shlex.split(given), get_agent("gemini"))


@over(
    ("given", "name"),
    [
        ("env claude codex", "claude"),
        ("npx -y @google/gemini-cli", "@google/gemini-cli"),
        ("docker run image codex exec {resume} claude", "codex"),
        ("./bot claude {resume}", "claude"),
        ("sh -c 'cd /srv && codex exec {resume} claude'", "codex"),
    ],
)
def test_which_agent_a_command_runs(given, name):
    assert guess(shlex.split(given), PROGRAMS) == name


@over(
    ("given", "word"),
    [
        ("./bot", "./bot"),
        ("./bot {resume} claude", "./bot"),
        ("./bot claude codex", "./bot"),
        ("timeout 60 bot -p", "bot"),
        ("npx -y @else/codex", "@else/codex"),
        ("sh -c 'bot -p'", "bot"),
    ],
)
def test_no_known_agent(given, word):
    with pytest.raises(PlaceUnknown) as caught:
        guess(shlex.split(given), PROGRAMS)
    assert caught.value.message == f"{word} is neither the agent nor a launcher that is known here"


@over(
    ("given", "missing"),
    [
        ("timeout 60 claude hello", True),
        ("timeout 60 claude -p hello", False),
        ("npx -y @anthropic-ai/claude-code", True),
        ("npx -p @anthropic-ai/claude-code claude", True),
        ("sh -c 'claude hello'", True),
        ("sh -c 'claude --print hello'", False),
        ("sh -c 'claude {resume}'", False),
        ("./wrapper claude", False),
    ],
)
def test_whether_the_option_for_one_turn_is_missing(given, missing):
    claude = get_agent("claude")
    assert lacks(shlex.split(given), claude.programs, claude.print_mode) is missing


# -- over random commands


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
VALUES = st.sampled_from(["claude", "codex", "5", "resume", "a b", "/x/gemini", "KEY=value", "it's"])
PROMPTS = st.one_of(VALUES, TEXT.filter(lambda text: text not in ("resume", "fork", "review", "help")))


def flat(lists):
    return [*itertools.chain.from_iterable(lists)]


@st.composite
def prefixes(draw):
    """A launcher with options of its own; what follows is its command."""
    entry = draw(st.sampled_from([entry for entry in ENTRIES if not entry.keys() & SPECIAL]))
    name = draw(st.sampled_from(entry["names"].split(",")))
    words = name.split()
    for _ in range(draw(st.integers(0, 3))):
        refused = entry.get("repeats_with", "").split()
        values, flags = (
            [each for each in entry.get(key, "").split() if each not in refused] for key in ("value_options", "flags")
        )
        if flags and draw(st.booleans()):
            words.append(draw(st.sampled_from(flags)))
        elif values:
            option = draw(st.sampled_from(values))
            words += draw(st.sampled_from([[option, draw(VALUES)], [option + "=" * (option[1] == "-") + draw(VALUES)]]))
    if "after" in entry:
        return [*words, draw(VALUES), draw(st.sampled_from(entry["after"].split()))]
    if draw(st.booleans()):
        words.append("--")
    if entry.get("assignments"):
        words += draw(st.lists(st.sampled_from(["A=1", "B=claude", "C="]), max_size=2))
    own = {r"\d*\.?\d+[smhd]?": "60", r"(0x)?[0-9a-fA-F,:-]+": "0x3", r"\d+": "10"}
    return [*words, *(own.get(pattern, "box") for pattern in entry.get("words", ()))]


# Those have a test of their own.
SPECIAL = {"refused", "joins", "shell_flag", "only_shell_options"}
CODEX = get_agent("codex").place
# What "resume" takes of them (0.80 and 0.171).
TAKEN_BEHIND = {"-c", "-m", "-i", "--image", "--enable", "--disable", "--json", "--skip-git-repo-check"}


@st.composite
def codex_words(draw):
    words = draw(st.lists(codex_option(), max_size=2).map(flat))
    words.append("exec")
    options = draw(st.lists(codex_option(), max_size=4))
    if draw(st.booleans()):
        options.insert(draw(st.integers(0, len(options))), [draw(PROMPTS)])
        return words + flat(options)
    end = draw(st.sampled_from([[], ["--"], ["--", draw(PROMPTS)]]))
    return words + flat(options) + end


@st.composite
def codex_option(draw):
    kind = draw(st.integers(0, 3))
    value = draw(VALUES)
    if kind == 0:
        return [draw(st.sampled_from(CODEX.flags))]
    if kind == 1:
        return [draw(st.sampled_from(["-i", "--image"])), *draw(st.lists(VALUES, min_size=1, max_size=2))]
    option = draw(st.sampled_from([*CODEX.value_options, *CODEX.list_options]))
    return [option, value] if kind == 2 and option not in CODEX.list_options else [f"{option}={value}"]


class Wrong(Exception):
    """Codex would refuse it."""


def read_by_codex(words):
    """What `codex` makes of its arguments, as its parser (clap) was seen to read them: options, session, prompt."""
    options, positional, session, at, dashes, level = [], [], None, 0, False, "codex"
    while at < len(words):
        word = words[at]
        at += 1
        if dashes or word == "-" or not word.startswith("-"):
            if level == "codex":
                if word not in CODEX.subcommands:
                    raise Wrong
                level = "exec"
            elif level == "exec" and not dashes and word == "resume":
                level = "resume"
                session = len(positional)
            elif level == "exec" and not dashes and word in ("fork", "review", "help"):
                raise Wrong
            else:
                positional.append(word)
        elif word == "--":
            dashes = True
        else:
            name, has_value, value = word.partition("=")
            if level == "resume" and name not in TAKEN_BEHIND:
                raise Wrong
            if name in CODEX.flags and not has_value:
                options.append((name, ()))
            elif name in CODEX.value_options or name in CODEX.list_options:
                values = [value] if has_value else words[at : at + 1]
                at += not has_value
                while not has_value and name in CODEX.list_options and level != "resume" and words[at : at + 1]:
                    if words[at].startswith("-") and words[at] != "-":
                        break
                    values.append(words[at])
                    at += 1
                options.append((name, tuple(values)))
            else:
                raise Wrong
    if session is None:
        if level == "codex" or len(positional) > 1:
            raise Wrong
        return options, None, positional[:1]
    before, behind = positional[:session], positional[session:]
    if len(before) > 1 or not 1 <= len(behind) <= 2:
        raise Wrong
    return options, behind[0], behind[1:] or before


@amounts(150, 6_000)
def test_codex_reads_the_same_options_and_prompt_on_every_turn(amount):
    """Nothing that it takes at the first turn is accepted, and broken at the second."""

    def check(words):
        try:
            options, session, prompt = read_by_codex(words)
        except Wrong:
            assume(False)
        if session is not None:
            with pytest.raises(PlaceUnknown):
                turns(["codex", *words])
            return
        try:
            fresh, resumed = turns(["codex", *words])
        except PlaceUnknown as error:
            # The only forms that can't be resumed without a mark.
            assert "takes all words up to the next option" in error.message
            return
        assert fresh == ["codex", *words]
        assert read_by_codex(resumed[1:]) == (options, "ID", prompt)

    fuzz(amount, codex_words(), check)


@amounts(150, 6_000)
def test_behind_launchers_as_without_them(amount):
    """Whatever the prompt, the launchers' values and the agent's options are."""

    def check(drawn):
        launched, name, prompt, options = drawn
        agent = get_agent(name)
        inner = {
            "opencode": ["opencode", "run", *options, prompt],
            "codex": ["codex", "exec", prompt, "--json", "-s", "read-only"],
        }.get(name, [name, "-p", *options, "--", prompt])
        assume(MARK not in inner)
        try:
            fresh, resumed = turns(inner, agent)
        except PlaceUnknown:
            assume(False)
        arguments = [word.replace("{id}", "ID") for word in agent.resume]
        at = next(at for at in range(len(inner) + 1) if resumed[:at] + arguments == resumed[: at + len(arguments)])
        assert resumed == inner[:at] + arguments + inner[at:]
        assert fresh == inner
        assert guess([*launched, *inner], PROGRAMS) == name
        assert turns([*launched, *inner], agent) == ([*launched, *fresh], [*launched, *resumed])

    names = st.sampled_from(["claude", "gemini", "copilot", "opencode", "codex"])
    options = st.lists(st.sampled_from(["--model=claude", "--verbose", "-m", "x"]), max_size=2)
    fuzz(amount, st.tuples(st.lists(prefixes(), max_size=3).map(flat), names, PROMPTS, options), check)


@amounts(100, 3_000)
def test_a_line_for_the_shell_as_its_words(amount):
    def check(drawn):
        words, shell = drawn
        assume(MARK not in words)
        try:
            fresh, resumed = turns(words)
        except PlaceUnknown:
            assume(False)
        in_line = turns([*shell, shlex.join(words), *["/dev/null"] * (shell[0] == "script")])
        assert [shlex.split(turn[len(shell)]) for turn in in_line] == [fresh, resumed]

    words = st.one_of(
        codex_words().map(lambda words: ["codex", *words]),
        st.lists(TEXT, max_size=4).map(lambda words: ["claude", *words]),
    )
    shells = st.sampled_from([["sh", "-c"], ["bash", "-lc"], ["script", "-qec"], ["su", "bob", "-c"], ["ssh", "host"]])
    fuzz(amount, st.tuples(words, shells), check)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*PROGRAMS, "timeout", "60", "env", "A=1", "-p", "--", "-c", "sh", "x y", "exec", "run", "-i", MARK])
    )
)
def test_what_is_refused_is_refused_at_the_first_turn(words):
    assume(words)
    agent = get_agent("codex")
    outcomes = []
    for arguments in ([], ["resume", "ID"]):
        try:
            with_resume(words, agent.programs, agent.place, arguments)
        except PlaceUnknown as error:
            outcomes.append(str(error))
        else:
            outcomes.append("accepted")
    assert outcomes[0] == outcomes[1]


@over(
    "line",
    [
        "printf '%s.' {resume} x",
        "sh -c 'printf %s. {resume} x'",
        'sh -c "printf %s. {resume} x"',
        "true && printf '%s.' {resume} x",
        """sh -c "sh -c 'printf %s. {resume} x'" """,
    ],
)
@over("odd", ["ID", "a b", "it's", 'say "hi"', "$HOME", "`id`", "a\\b", "a;b", "*"])
def test_the_shell_gets_an_odd_id_as_one_word(line, odd):
    command = with_resume(["sh", "-c", line], ["printf"], None, [f"--resume={odd}"])
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"--resume={odd}.x."
