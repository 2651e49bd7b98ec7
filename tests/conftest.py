"""What the end-to-end tests share: a place for runs, small parameters, and the command."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1") # one core a worker, for what it starts too

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SMALL = {"max_steps": 4, "eval_words": 60, "test_words": 200, "term_occurrences": 1, "logging_steps": 1, "eval_steps": 2, "save_steps": 2,
         "early_stopping_patience": 100} # sixty words are too few to stop by: the runs end at max_steps on every machine


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder of its own for the test's runs."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(folder))
    monkeypatch.setenv("PALEOTRAIN_PRESET", "demo")
    return folder


def options(parameters: dict) -> list[str]:
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


def command(*words: str, cwd: Path = ROOT, timeout: int = 400) -> subprocess.CompletedProcess:
    """Run a program of the environment to its end."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run([str(BIN / words[0]), *words[1:]], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment,
                          stdin=subprocess.DEVNULL)


def only_run(runs: Path) -> Path:
    (folder,) = [p for p in runs.iterdir() if p.is_dir()]
    return folder


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().split("\n") if line]


DYING = """import json, os, signal, sys
import paleotrain.loop as loop
given, die = json.loads(sys.argv[1]), int(sys.argv[2])
log = loop.log_train
def dying(callback, step): # kill -9 at a step that is no checkpoint
    log(callback, step)
    if step == die: os.kill(os.getpid(), signal.SIGKILL)
loop.log_train = dying
"""


def train_process(script: str, given: dict, die: int = -1) -> int:
    """Run a script that trains what is `given` in a process of its own, killed at step `die`; its exit status."""
    done = subprocess.run([sys.executable, "-c", DYING + script, json.dumps(given), str(die)], cwd=ROOT, capture_output=True, text=True, timeout=400,
                          env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"})
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def killed_at(file: str, runs: Path, *words: str) -> Path:
    """Run `paleotrain` and kill -9 it, with its kernel, as soon as a file of that pattern is there; the run's folder."""
    process = psutil.Popen([str(BIN / "paleotrain"), *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list(runs.glob(file)):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(.005)
    for one in [*process.children(recursive=True), process]: one.kill() # a kernel that only saw its parent gone would go on for a second
    process.wait()
    from paleotrain.runs import derive_status
    folder = only_run(runs)
    while derive_status(folder) == "running" and time.monotonic() < until: time.sleep(.1)
    return folder


HOSTILE = """<script>alert("x")</script><img src='http://evil.invalid/x.png' onerror=alert(1)>"""


def examples(notebook: str) -> dict:
    """What the cells of a notebook tagged `example` define: the functions that write an invented run."""
    from paleotrain import journal
    names = dict(vars(journal))
    for cell in json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if "example" in cell["metadata"].get("tags", []): exec("".join(cell["source"]), names)
    return names


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")
