"""A stand-in for any agent's command line: it does what a script says, and tells what it was given.

It is copied under the agents' names. `STAGE` names a directory with

- `script.json`: `{"resumed": [step, …], "fresh": [step, …]}`, which of them by its arguments;
- `told`: a FIFO that every process of it holds open, so that its end is the end of them all. It gets a line of JSON for
  each start and for each thing worth telling; `log` gets the same lines to keep.

A step is a list: its name, and what it needs. Text is Latin-1, so that it can hold any bytes.

| step | does |
| --- | --- |
| out TEXT, err TEXT | writes it |
| flood STREAM TEXT BYTES | writes TEXT over and over, that many bytes in all |
| read, line | reads its input to the end, or a line, and tells its digest and size |
| await NAME | waits until somebody writes into the FIFO of that name |
| ask | tells a line that it reads from the terminal, as a program does for a password |
| descriptors | tells what it was given besides the standard streams |
| tell WORD | tells a word |
| child STEPS | leaves a child process behind that does these |
| orphan STEPS | the same, in a session of its own and without a parent, as a tool that outlives its agent |
| on SIGNAL STEPS | does these when the signal comes |
| pause | waits for ever |
| die SIGNAL | sends itself that signal |
| exit CODE | ends |
"""

# Importing pathlib would take longer than all the rest.
# ruff: noqa: PTH110, PTH115, PTH119, PTH123
import hashlib
import json
import os
import signal
import sys

STAGE = os.environ["STAGE"]
TOLD = os.open(f"{STAGE}/told", os.O_WRONLY)
PIECE_BYTES = 65_536


def tell(event, **more):
    line = json.dumps({"event": event, "pid": os.getpid(), **more}).encode() + b"\n"
    log = os.open(f"{STAGE}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(log, line)
    os.close(log)
    os.write(TOLD, line)


def write(descriptor, data):
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def flood(descriptor, text, size):
    block = text * (PIECE_BYTES // len(text) + 1)
    # Whole texts, so that the next block goes on where this one ended.
    block = block[: len(block) // len(text) * len(text)]
    while size > 0:
        write(descriptor, block[:size])
        size -= len(block)


def read(source=0, *, line):
    digest, size = hashlib.sha256(), 0
    while piece := os.read(source, 1 if line else PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
        if line and piece == b"\n":
            break
    tell("read", sha256=digest.hexdigest(), size=size)


def do(steps):
    for name, *given in steps:
        if name in ("out", "err"):
            write(1 if name == "out" else 2, given[0].encode("latin-1"))
        elif name == "flood":
            flood(1 if given[0] == "out" else 2, given[1].encode("latin-1"), given[2])
        elif name in ("read", "line"):
            read(line=name == "line")
        elif name == "ask":
            read(os.open("/dev/tty", os.O_RDWR), line=True)
        elif name == "descriptors":
            numbers = [number for number in range(3, 256) if number != TOLD and os.path.exists(f"/proc/self/fd/{number}")]
            tell("descriptors", given={number: os.readlink(f"/proc/self/fd/{number}") for number in numbers})
        elif name == "await":
            descriptor = os.open(f"{STAGE}/{given[0]}", os.O_RDONLY)
            os.read(descriptor, 1)
            os.close(descriptor)
        elif name == "tell":
            tell(given[0])
        elif name == "child":
            if os.fork() == 0:
                tell("child")
                do(given[0])
                os._exit(0)
        elif name == "orphan":
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    tell("orphan")
                    do(given[0])
                os._exit(0)
            os.wait()
        elif name == "on":
            signal.signal(getattr(signal, given[0]), lambda *_, steps=given[1]: do(steps))
        elif name == "pause":
            while True:
                signal.pause()
        elif name == "die":
            os.kill(os.getpid(), getattr(signal, given[0]))
        elif name == "exit":
            os._exit(given[0])
        else:
            raise ValueError(name)


def main():
    for number in (signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    words = sys.argv[1:]
    resumed = "resume" in words or any(word.startswith(("--resume=", "--session=")) for word in words)
    turn = [os.environ.get(name) for name in ("REDIS_SESSIONS_HOW", "REDIS_SESSIONS_PREVIOUS_ID")]
    claudecode = os.environ.get("CLAUDECODE")
    tell("start", argv=[os.path.basename(sys.argv[0]), *words], resumed=resumed, claudecode=claudecode, turn=turn)
    with open(f"{STAGE}/script.json", encoding="ascii") as file:
        script = json.load(file)
    do(script["resumed" if resumed else "fresh"])


main()
