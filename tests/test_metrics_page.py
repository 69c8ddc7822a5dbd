"""The page of `metrics --listen`: what it shows and to whom, that nothing on it can run, and how a browser draws it."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest

from redis_sessions import Place, SessionStore, StoreSettings, StoreUnavailable, Turn
from redis_sessions.cli import exit_codes as exits
from redis_sessions.keys import COUNTERS
from redis_sessions.metrics import Collector, page
from redis_sessions.metrics.collector import LastScan, Reading
from redis_sessions.metrics.exporter import Exporter
from redis_sessions.operations.records import RecordFold
from redis_sessions.operations.report import ReportFold
from redis_sessions.operations.scan import LeaseRow
from redis_sessions.settings import DAY_MS
from tests import test_cli_support
from tests.servers import wait_until
from tests.test_cli_metrics import AWAY, exporting
from tests.test_cli_support import EVIL_KEYS, Cli, run

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

EVIL = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "${jndi} $title &amp;", *EVIL_KEYS]
UUID = "5f2c9a7e-1d3b-4c58-8f60-2b7a9c4e6d15"
SIZES = [(390, 844), (1280, 900)]


def a_reading(*, keys=(), agents=("claude",), holder="host-a:7:s3cret", error=None, known=True, namespace="sessions"):
    """What could have been read of a store, without one."""
    records = RecordFold()
    records.add([b"x", agent.encode(), None, b"1", b"2", b"7", b"42000", None, None] for agent in agents)
    report = ReportFold(StoreSettings(session_max_age_ms=DAY_MS)).finish({}, approximate=False)
    report = report.model_copy(update={"live": len(agents), "records": records.finish()})
    leases = tuple(LeaseRow(key, holder, 28_000) for key in keys)
    counters = None if error else dict.fromkeys(COUNTERS, 3)
    now_s = time.monotonic()
    scans = (LastScan(report, now_s - 12, 0.1), LastScan(leases, now_s - 2, 0.1)) if known else (None, None)
    return Reading(namespace, counters, *scans, error)


class Tags(HTMLParser):
    """The elements, attributes and text of a document."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= set(attrs)

    def handle_data(self, data):
        self.texts.append(data)


def test_nothing_on_it_can_run_or_be_loaded_from_elsewhere():
    plain = Tags(page.render([a_reading(keys=["a"])], show_keys=True))
    text = page.render(
        [a_reading(keys=EVIL, agents=EVIL, holder=f"{evil}:7:s3cret", namespace=evil) for evil in EVIL], show_keys=True
    )
    evil = Tags(text)
    assert evil.tags == plain.tags
    names = {name for name, _ in evil.attributes}
    assert names == {name for name, _ in plain.attributes}
    assert not any(name == "style" or name.startswith("on") for name in names)
    assert {value for name, value in evil.attributes if name in ("href", "src")} == {"/metrics"}
    assert "<script>alert(1)</script>" in evil.texts
    assert not any(not character.isprintable() and character != "\n" for character in text)
    policy = page.HEADERS["Content-Security-Policy"]
    for element in ("style", "script"):
        [content] = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_keys_are_shown_on_request_and_secrets_never():
    reading = a_reading(keys=["acme/shop#42"])
    assert "acme/shop#42" in page.render([reading], show_keys=True)
    hidden = page.render([reading], show_keys=False)
    assert "acme/shop#42" not in hidden
    for shown in (hidden, page.render([reading], show_keys=True)):
        assert "host-a, process 7" in shown
        assert "s3cret" not in shown


@pytest.mark.parametrize("holder", ["0190c3e2-s3cret", "worker:s3cret", "worker:s3cret:1", ":7:s3cret"])
def test_a_lease_of_another_program_is_not_taken_apart(holder):
    shown = Tags(page.render([a_reading(keys=["a"], holder=holder)], show_keys=True))
    assert "unknown" in shown.texts
    assert not any("s3cret" in text for text in shown.texts)


@pytest.mark.parametrize("known", [True, False])
def test_redis_away(known):
    error = StoreUnavailable("redis:6379 can't be reached (refused)", remedy="check that it runs")
    shown = Tags(page.render([a_reading(error=error, known=known)], show_keys=False))
    assert "Redis is away:" in shown.texts
    assert any("redis:6379 can't be reached (refused)" in text for text in shown.texts)
    assert ("role", "alert") in shown.attributes
    # What is not known is not shown as 0.
    assert shown.texts.count("unknown") == (5 if known else 7)
    assert ("12s ago" in shown.texts) == known


def test_many_agents_and_leases_are_bounded():
    agents = [f"agent-{number}" for number in range(400) for _ in range(400 - number)]
    shown = page.render([a_reading(agents=agents, keys=[f"k{number}" for number in range(230)])], show_keys=True)
    assert shown.count('<th scope="row">agent-') == 20
    assert '<th scope="row">other</th>' in shown
    assert "And 130 more." in shown


def served(exporter, path="/", **headers):
    request = urllib.request.Request(exporter.place.replace("/metrics", path), headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers, answer.read().decode()


def test_it_shows_a_store(cli: Cli):
    with SessionStore.from_url(cli.url, StoreSettings(namespace=cli.namespace)) as store:
        place = Place(host="host-a", home="/home/a", directory="/src")
        store.resume("chat:7", lambda _: Turn(UUID, None, context_tokens=42_000), agent="claude", place=place)
        store.resume("chat:7", lambda _: Turn(UUID, None, context_tokens=61_000), agent="claude", place=place)
        store.acquire("chat:8")
        with exporting(*cli.options, "--scan-max-age", "0s", "--show-keys") as exporter:
            said = []

            def scanned():
                said[:] = served(exporter)
                return "chat:8" in said[1] and "<title>1 live" in said[1]

            wait_until(scanned, "both scans have ended")
            headers, shown = said
            assert dict(page.HEADERS).items() <= dict(headers).items()
            text = "\n".join(Tags(shown).texts)
            for part in (
                f"\n{cli.namespace} \n",
                "\n0 of 1 attempt to resume\n",
                "\nclaude\n",
                "\n51 to 100 k\n",
                "\nchat:8\n",
            ):
                assert part in text
            assert "chat:7" not in shown
            assert "<title>1 live: redis_sessions</title>" in shown
            assert cli.raw.get(cli.keys.lease("chat:8")).decode().rsplit(":", 1)[1] not in shown
            # A site elsewhere, whose name was made to lead here.
            for host, status in (("evil.example", 403), ("localhost:9464", 200), ("127.0.0.1", 200), ("[::1]:1", 200)):
                try:
                    got = 200 if served(exporter, Host=host) else None
                except urllib.error.HTTPError as error:
                    got = error.code
                assert got == status, host


def test_keys_are_for_this_machine_unless_allowed():
    refused = run("metrics", "--listen", "0.0.0.0:0", "--show-keys", "--url", AWAY, code=exits.USAGE)
    assert "--show-keys-to-others" in refused.stderr
    run("metrics", "--show-keys", "--url", AWAY, code=exits.USAGE)
    with exporting("--url", AWAY, "--show-keys-to-others", listen="0.0.0.0:0") as exporter:
        place = exporter.place.replace("0.0.0.0", "127.0.0.1")
        request = urllib.request.Request(place.removesuffix("metrics"), headers={"Host": "build-7.example"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert "Redis is away:" in answer.read().decode()


class Counting(Collector):
    """Shows as many live sessions as it was read times."""

    def __init__(self):
        self.times = 0

    def read(self):
        self.times += 1
        reading = a_reading(agents=["x" * 64] * self.times, keys=[f"{number}/{'y' * 400}" for number in range(3)])
        return [reading, a_reading(error=StoreUnavailable("away"), namespace="z" * 128)]

    def describe(self):
        return ()


@contextmanager
def in_a_thread(exporter):
    thread = threading.Thread(target=exporter.serve_forever)
    thread.start()
    try:
        yield
    finally:
        exporter.shutdown()
        thread.join()


@pytest.fixture
def browse(tmp_path):
    """Load a page in a headless Chromium, for 12 s of its own time; return its document then, and its complaints."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on the PATH")

    def load(address, *options):
        command = [program, "--headless=new", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=12000", "--enable-logging=stderr", "--dump-dom", *options, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    return load


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_browser_draws_it_and_reads_it_again(browse, tmp_path, width, height):
    collector, picture = Counting(), tmp_path / "page.png"
    with Exporter("127.0.0.1", 0, collector) as exporter, in_a_thread(exporter):
        place = f"http://{exporter.place}/"
        document, complaints = browse(place, f"--window-size={width},{height}", f"--screenshot={picture}")
    # Style and script are what the policy allows, and the script has put the new figures in place of the first.
    assert [line for line in complaints if "favicon" not in line] == []
    assert collector.times >= 3
    [live] = re.findall(r"<dt>Live sessions</dt><dd>(\d+)</dd>", document)[:1]
    assert int(live) > 1
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (width, height)
    assert picture.stat().st_size > 10_000


def test_it_fits_into_a_narrow_and_a_wide_window(browse, tmp_path):
    document = html.escape(page.render(Counting().read(), show_keys=True))
    frames = "".join(f'<iframe width="{width}" height="{height}" srcdoc="{document}"></iframe>' for width, height in SIZES)
    fits = "frame => frame.document.documentElement.scrollWidth <= frame.innerWidth"
    measure = f"onload = () => document.title = [frames[0], frames[1]].map({fits})"
    (tmp_path / "frames.html").write_text(f"{frames}<script>{measure}</script>")
    shown, _ = browse(f"file://{tmp_path}/frames.html", "--window-size=1400,900")
    assert "<title>true,true</title>" in shown
