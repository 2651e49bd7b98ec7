"""Downloads against a real local server that breaks off, lies about length, redirects and changes its file."""
import errno
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from paleotrain.core.settings import UserError, load_settings
from paleotrain.core.config import validated
from paleotrain.data.download import CHUNK, RETRIES, Controls, download, fetch, from_environment, is_there, record_of
from paleotrain.data.readers import MissingSource

BODY = random.Random(7).randbytes(500_000)
OTHER = random.Random(8).randbytes(500_000)


def sha(data: bytes) -> str: return hashlib.sha256(data).hexdigest()


@dataclass
class Page:
    """What one address answers, and how badly."""
    body: bytes = BODY
    ranges: bool = True # honours Range
    if_range: bool = True # honours If-Range
    etag: str | None = "" # "": a hash of the body; None: no header
    modified: str | None = None
    length: int | None = None # a lie; None: the truth
    no_length: bool = False
    no_rest_length: bool = False # of the answers to ranges alone
    breaks: int = 0 # answers that break off, from the first
    cut: int = 200_000 # bytes sent before each break
    code: int = 200
    codes: list[int] = field(default_factory=list) # of the first answers
    location: str = ""
    changes_to: bytes | None = None # from the second answer on
    gate: threading.Event | None = None # the bytes after `cut` wait for it


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        page = self.server.pages[self.path]
        self.server.asked.append(dict(self.headers) | {"path": self.path})
        code = page.codes.pop(0) if page.codes else page.code
        if page.location:
            self.send_response(code)
            self.send_header("Location", page.location)
            return self.end_headers()
        if code != 200: return self.send_error(code)
        tag = f'"{sha(page.body)[:8]}"' if page.etag == "" else page.etag
        start = self.start(page, tag)
        if start >= len(page.body) > 0: return self.out_of_range(page)
        self.send_response(206 if start else 200)
        if start: self.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        length = len(page.body) if page.length is None else page.length
        if not page.no_length and not (start and page.no_rest_length): self.send_header("Content-Length", str(length - start))
        if tag: self.send_header("ETag", tag)
        if page.modified: self.send_header("Last-Modified", page.modified)
        self.end_headers()
        self.send(page, page.body[start:])

    def start(self, page: Page, tag: str | None) -> int:
        mark = self.headers.get("If-Range")
        fits = not page.if_range or mark in (None, tag, page.modified)
        return int(self.headers["Range"][6:-1]) if page.ranges and fits and "Range" in self.headers else 0

    def out_of_range(self, page: Page):
        self.send_response(416)
        self.send_header("Content-Range", f"bytes */{len(page.body)}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, page: Page, data: bytes):
        if page.breaks > 0: data = data[:page.cut]
        page.breaks -= 1
        if page.changes_to is not None: page.body, page.changes_to = page.changes_to, None
        for part in (data[:page.cut], data[page.cut:]):
            try: self.wfile.write(part)
            except OSError: return # the client is gone
            self.server.sent += len(part)
            if page.gate: page.gate.wait()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked, self.sent = {}, [], 0

    def serve(self, **page) -> str:
        self.pages["/f"] = Page(**page)
        return f"http://127.0.0.1:{self.server_port}/f"


@pytest.fixture
def server():
    ours = Server()
    threading.Thread(target=ours.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield ours
    ours.shutdown()
    ours.server_close()


def get(url: str, path: Path, sha256: str | None = None, **options) -> Path:
    return download(url, path, sha256, progress=False, wait=0, **options)


def left(folder: Path) -> list[str]: return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def said(call, *words, kind: type[UserError] = MissingSource, **options) -> str:
    with pytest.raises(UserError) as caught: call(*words, **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


WHOLE = ["f", "f.download.json"]


def test_a_file_comes_whole_and_is_asked_for_once(server, tmp_path, capsys):
    url = server.serve()
    assert download(url, tmp_path / "f").read_bytes() == BODY
    assert "500k" in capsys.readouterr().err # the bar
    record = json.loads(record_of(tmp_path / "f").read_text())
    assert (record["url"], record["sha256"], record["bytes"]) == (url, sha(BODY), len(BODY)) and record["etag"]
    assert left(tmp_path) == WHOLE and server.asked[0]["Accept-Encoding"] == "identity"
    for wanted in (None, sha(BODY), sha(BODY).upper()): get(url, tmp_path / "f", wanted)
    assert len(server.asked) == 1


def test_a_file_that_was_damaged_or_comes_from_elsewhere_is_fetched_again(server, tmp_path):
    url = server.serve()
    get(url, tmp_path / "f").write_bytes(BODY[:-1])
    assert get(url, tmp_path / "f").read_bytes() == BODY and len(server.asked) == 2
    server.pages["/g"] = Page(OTHER)
    assert get(url[:-1] + "g", tmp_path / "f").read_bytes() == OTHER


def test_a_file_put_there_by_hand_stays(server, tmp_path):
    (tmp_path / "f").write_bytes(b"by hand")
    assert get(server.serve(), tmp_path / "f").read_bytes() == b"by hand" and not server.asked
    assert get(server.serve(), tmp_path / "f", sha(BODY)).read_bytes() == BODY # but not against a sum


MONDAY = "Mon, 05 Jan 2026 10:00:00 GMT"


@pytest.mark.parametrize("marks", [{}, {"etag": None, "modified": MONDAY}, {"etag": 'W/"1"', "modified": MONDAY}])
def test_a_broken_connection_goes_on_where_it_broke(server, tmp_path, marks):
    assert get(server.serve(breaks=2, **marks), tmp_path / "f").read_bytes() == BODY
    starts = [int(asked["Range"][6:-1]) for asked in server.asked[1:]]
    assert len(starts) == 2 and 200_000 - CHUNK <= starts[0] <= 200_000 < starts[1]
    assert {asked["If-Range"] for asked in server.asked[1:]} == {marks.get("modified") or f'"{sha(BODY)[:8]}"'}
    assert left(tmp_path) == WHOLE


@pytest.mark.parametrize("page", [{"ranges": False}, {"etag": None}, {"etag": 'W/"1"'}])
def test_without_ranges_or_a_mark_of_the_version_it_starts_anew(server, tmp_path, page):
    assert get(server.serve(breaks=2, **page), tmp_path / "f").read_bytes() == BODY
    assert len(server.asked) == 3 and server.sent >= len(BODY) + 2 * 200_000


@pytest.mark.parametrize("if_range", [True, False])
def test_two_versions_are_never_spliced(server, tmp_path, if_range):
    """The file changes after the break: a right server sends it whole, one that ignores If-Range is found out by its ETag."""
    assert get(server.serve(breaks=1, changes_to=OTHER, if_range=if_range), tmp_path / "f").read_bytes() == OTHER
    assert len(server.asked) == (2 if if_range else 3)


def test_a_shorter_version_behind_a_careless_server_answers_416(server, tmp_path):
    assert get(server.serve(breaks=1, changes_to=OTHER[:1000], if_range=False), tmp_path / "f").read_bytes() == OTHER[:1000]
    assert len(server.asked) == 3


def test_a_server_that_never_finishes_is_told_in_one_line_and_gone_on_with_later(server, tmp_path):
    url = server.serve(breaks=99, cut=100_000)
    message = said(get, url, tmp_path / "f")
    assert message.startswith(f"{url}: the connection broke at ") and f"of 500000 bytes, after {RETRIES} retries too; run again to go on from " in message
    assert len(server.asked) == RETRIES + 1 and not (tmp_path / "f").exists()
    server.pages["/f"].breaks = 0
    before = server.sent
    assert get(url, tmp_path / "f").read_bytes() == BODY
    assert server.sent - before < 250_000 and left(tmp_path) == WHOLE


def test_a_length_that_is_stated_too_long(server, tmp_path):
    message = said(get, server.serve(length=len(BODY) + 10), tmp_path / "f")
    assert "of 500,010 bytes promised the server has 500,000, after 3 retries too" in message and not (tmp_path / "f").exists()
    assert len(server.asked) == RETRIES + 1


def test_a_length_that_is_stated_too_short_is_seen_by_the_sum(server, tmp_path):
    """Without a sum HTTP has nothing to compare: the file ends where the header says."""
    message = said(get, server.serve(length=len(BODY) - 10), tmp_path / "f", sha(BODY), kind=UserError)
    assert sha(BODY[:-10]) in message and sha(BODY) in message and left(tmp_path) == []
    assert get(server.serve(length=len(BODY) - 10), tmp_path / "g").read_bytes() == BODY[:-10]


def test_no_length_at_all(server, tmp_path):
    assert get(server.serve(no_length=True), tmp_path / "f").read_bytes() == BODY


def test_a_rest_without_a_length_is_measured_against_the_whole(server, tmp_path):
    """The second answer ends early and nothing in it says so."""
    assert get(server.serve(breaks=2, no_rest_length=True), tmp_path / "f").read_bytes() == BODY and len(server.asked) == 3


def test_a_part_from_another_address_is_not_continued(server, tmp_path):
    """Even where both servers call their version by the same name."""
    url = server.serve(breaks=99, cut=100_000, etag='"1"')
    said(get, url, tmp_path / "f")
    server.pages["/g"] = Page(OTHER, etag='"1"')
    assert get(url[:-1] + "g", tmp_path / "f").read_bytes() == OTHER and "Range" not in server.asked[-1]


def test_an_empty_file(server, tmp_path):
    assert get(server.serve(body=b""), tmp_path / "f").read_bytes() == b"" and left(tmp_path) == WHOLE


def test_redirects_are_followed_but_not_for_ever_and_not_to_the_disk(server, tmp_path):
    server.serve()
    base = f"http://127.0.0.1:{server.server_port}"
    server.pages |= {"/once": Page(code=302, location="/f"), "/loop": Page(code=302, location="/loop"), "/disk": Page(code=302, location="file:///etc/hosts")}
    assert get(f"{base}/once", tmp_path / "f").read_bytes() == BODY
    assert json.loads(record_of(tmp_path / "f").read_text())["url"] == f"{base}/once"
    server.asked.clear()
    assert said(get, f"{base}/loop", tmp_path / "loop").startswith(f"{base}/loop: cannot be fetched (Exceeded 5 redirects")
    assert len(server.asked) == 6
    assert "file:///etc/hosts" in said(get, f"{base}/disk", tmp_path / "disk")
    assert left(tmp_path) == WHOLE


def test_404_is_told_at_once_and_500_after_retries(server, tmp_path):
    url = server.serve(code=404)
    assert said(get, url, tmp_path / "f") == f"{url}: the server answers 404 Not Found; check the address"
    assert len(server.asked) == 1
    url = server.serve(code=500)
    assert "the server answers 500 Internal Server Error, after 3 retries too; check the address" in said(get, url, tmp_path / "f")
    assert len(server.asked) == 2 + RETRIES
    assert get(server.serve(codes=[503, 429]), tmp_path / "f").read_bytes() == BODY


def test_nobody_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free: port = free.getsockname()[1]
    message = said(get, f"http://127.0.0.1:{port}/f", tmp_path / "f")
    assert message == (f"http://127.0.0.1:{port}/f: no answer (ConnectionError), after 3 retries too; check the address and the connection, and run again")


def test_a_wrong_sum_leaves_what_was_there(server, tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    url = server.serve()
    assert said(get, url, tmp_path / "f", sha(OTHER), kind=UserError) == (
        f"{tmp_path}/f: what came from {url} has sha256 {sha(BODY)}, not {sha(OTHER)}; run again, or check address and sum")
    assert left(tmp_path) == ["f"] and (tmp_path / "f").read_bytes() == b"old"


@dataclass
class ToyFile:
    url: str | None
    path: str = "f"
    sha256: str | None = None
    environment: str | None = None


@dataclass
class Toy:
    name: str
    domain: str
    download: list
    files: list[str] = field(default_factory=list)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("PALEOTRAIN_DATA", str(tmp_path / "data"))
    return load_settings()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_): raise AssertionError("the network was touched")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_guard_notices_a_connection(no_network, tmp_path):
    with pytest.raises(AssertionError, match="the network was touched"): get("http://127.0.0.1:9/f", tmp_path / "f")


@pytest.mark.parametrize("name", ["OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_touches_nothing(no_network, settings, name):
    controls = validated(Controls, from_environment({name: "1"}))
    source = Toy("beds", "geology", [ToyFile("http://a.example/f")])
    path = settings.data / "downloads/beds/f"
    assert said(fetch, source, controls, settings) == (
        f"beds: {path}: not there as http://a.example/f has it, and nothing may be fetched; fetch it where that is allowed; OFFLINE forbids fetching it; "
        "to go on without it, set ALLOW_MISSING_DATA=1")
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert fetch(source, controls, settings) == [path]
    source.download[0].sha256 = sha(OTHER)
    said(fetch, source, controls, settings)


def test_only_and_skip_name_sources_or_domains(server, settings):
    url = server.serve()
    both = {"DOWNLOAD_ONLY": "beds", "DOWNLOAD_SKIP": "geology"}
    for given in ({"DOWNLOAD_ONLY": "other"}, {"DOWNLOAD_SKIP": "beds"}, {"DOWNLOAD_SKIP": "x, geology"}, both):
        message = said(fetch, Toy("beds", "geology", [ToyFile(url)]), validated(Controls, from_environment(given)), settings)
        assert " DOWNLOAD_ONLY does not name it;" in message or " DOWNLOAD_SKIP names it;" in message
    assert not server.asked
    for number, only in enumerate(("beds0,other", "other;geology")):
        source = Toy(f"beds{number}", "geology", [ToyFile(url)])
        (path,) = fetch(source, validated(Controls, from_environment({"DOWNLOAD_ONLY": only})), settings)
        assert path.read_bytes() == BODY and path == settings.data / f"downloads/beds{number}/f"


def test_a_failed_download_is_a_missing_source_and_names_it(server, settings):
    url = server.serve(code=404)
    assert said(fetch, Toy("beds", "geology", [ToyFile(url)]), Controls(), settings) == (
        f"beds: {url}: the server answers 404 Not Found; check the address; to go on without it, set ALLOW_MISSING_DATA=1")


def test_addresses_from_the_environment(server, settings):
    users = Toy("ddo_users", "debate", [ToyFile(None, "{data}/elsewhere/users.json", environment="DDO_USERS_URL")])
    assert "no address is known; set DDO_USERS_URL to its address, or put the file there" in said(fetch, users, Controls(), settings)
    controls = validated(Controls, from_environment({"DDO_USERS_URL": server.serve()}))
    assert fetch(users, controls, settings) == [settings.data / "elsewhere/users.json"] and len(server.asked) == 1
    with pytest.raises(UserError, match="^ddo_debates_url: "): validated(Controls, from_environment({"DDO_DEBATES_URL": "ftp://a.example/d"}))


def test_a_copy_elsewhere_needs_no_download(no_network, settings, tmp_path):
    (tmp_path / "copy.txt").write_text("marl")
    download_glob = "{data}/downloads/beds/*"
    beds = Toy("beds", "geology", [ToyFile("http://a.example/f")], [str(tmp_path / "*.txt"), download_glob])
    assert fetch(beds, Controls(), settings) == []
    (settings.data / "downloads/beds").mkdir(parents=True)
    (settings.data / "downloads/beds/half").write_text("one of two downloads")
    beds.files = [download_glob]
    said(fetch, beds, Controls(offline=True), settings)


KILLED = """
import sys
from pathlib import Path
from paleotrain.data.download import download
download(sys.argv[1], Path(sys.argv[2]), progress=False)
"""


def test_kill_9_and_go_on(server, tmp_path):
    gate = threading.Event()
    url = server.serve(body=BODY * 8, gate=gate, cut=1_500_000)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", KILLED, url, str(tmp_path / "f")], env=environment)
    part = tmp_path / ".f.part"
    while not (part.exists() and part.stat().st_size > 1_000_000): assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not (tmp_path / "f").exists()
    kept = part.stat().st_size
    gate.set()
    assert get(url, tmp_path / "f").read_bytes() == BODY * 8
    assert server.asked[1]["Range"] == f"bytes={kept}-" and 1_000_000 < kept <= 1_500_000
    assert left(tmp_path) == WHOLE


def test_killed_when_all_had_come_asks_nobody(server, tmp_path, monkeypatch):
    url = server.serve()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("paleotrain.data.download._keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        get(url, tmp_path / "f")
    assert get(url, tmp_path / "f").read_bytes() == BODY and len(server.asked) == 1


def test_two_at_once_fetch_once(server, tmp_path, monkeypatch):
    """Both have seen that nothing is there before either goes on."""
    barrier, mine, url = threading.Barrier(2), threading.local(), server.serve()
    def seen(*args):
        answer = is_there(*args)
        if not hasattr(mine, "passed"): mine.passed = barrier.wait()
        return answer
    monkeypatch.setattr("paleotrain.data.download.is_there", seen)
    both = [threading.Thread(target=get, args=(url, tmp_path / "f")) for _ in range(2)]
    for thread in both: thread.start()
    for thread in both: thread.join()
    assert (tmp_path / "f").read_bytes() == BODY and len(server.asked) == 1


def full_disk(get_it, path: Path) -> None:
    message = said(get_it, kind=UserError)
    assert message.startswith(f"{path}: the disk is full (") and message.endswith(" MB free); make room and run again: it goes on where it stopped")
    assert path.read_bytes() == b"old"


def test_full_disk_as_the_system_reports_it(server, tmp_path, monkeypatch):
    """`fsync` answers ENOSPC; what was there is untouched and the rest comes later."""
    def full(_): raise OSError(errno.ENOSPC, "No space left on device")
    url = server.serve()
    (tmp_path / "f").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr("paleotrain.data.download.os.fsync", full)
        full_disk(lambda: get(url, tmp_path / "f", sha(BODY)), tmp_path / "f")
    assert get(url, tmp_path / "f", sha(BODY)).read_bytes() == BODY


def test_full_disk_in_truth(server, tmp_path):
    """A file system of 256 KB, where this user may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        (small / "f").write_bytes(b"old")
        url = server.serve()
        full_disk(lambda: get(url, small / "f", sha(BODY)), small / "f")
        kept = (small / ".f.part").stat().st_size
        assert 0 < kept < 256_000 and subprocess.run(["mount", "-o", "remount,size=4m", str(small)]).returncode == 0
        assert get(url, small / "f", sha(BODY)).read_bytes() == BODY
        assert server.asked[-1]["Range"] == f"bytes={kept}-"
    finally: subprocess.run(["umount", str(small)], check=True)
