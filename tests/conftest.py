"""What the end-to-end tests share: a place for runs, small parameters, and the command."""
import contextlib
import csv
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from unittest import mock

import psutil
import pytest

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1") # as in a run, see `start_kernel`
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1") # one core a worker, for what it starts too

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SMALL = {"max_steps": 4, "eval_words": 60, "test_words": 200, "term_occurrences": 1, "logging_steps": 1, "eval_steps": 2, "save_steps": 2,
         "early_stopping_patience": 100, # sixty words are too few to stop by: the runs end at max_steps
         "rare_term_patience": 100, "general_patience": 100}
QUICK = SMALL | {"eval_words": 20, "test_words": 20, "terms": "tests/terms.csv", "general": None, "max_seq_length": 64, "per_device_train_batch_size": 4,
                 "gradient_accumulation_steps": 1} # where a run's course is tested and not what it measures: a second of judging where SMALL takes thirty


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: "test_readme" not in item.nodeid)


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


class NotebookError(Exception):
    """What ended a notebook that was executed here, as papermill tells it."""
    def __init__(self, error: BaseException):
        from paleotrain.core.settings import UserError
        self.ename, self.evalue = type(error).__name__, str(error)
        self.traceback = [f"UserError: {error}"] if isinstance(error, UserError) else traceback.format_exception(error)
        super().__init__(f"{self.ename}: {error}")


def execute_here(notebook: Path, output: Path, parameters: dict) -> BaseException | None:
    """A run notebook's cells in this process, as `cli.execute` has papermill and a kernel do it: the same cells, ten seconds less."""
    import nbformat

    from paleotrain.runs.session import after_cell
    cells, names = nbformat.read(notebook, as_version=4), {"__name__": "__main__", "In": [""]}
    at = next(number for number, cell in enumerate(cells.cells) if "parameters" in cell.metadata.get("tags", []))
    given = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
    cells.cells.insert(at + 1, nbformat.v4.new_code_cell(given, metadata={"tags": ["injected-parameters"]}))
    nbformat.write(cells, output)
    for number, cell in enumerate(cells.cells):
        if cell.cell_type != "code": continue
        names["In"].append(cell.source)
        try: exec(compile(cell.source, f"{notebook.name}, cell {number}", "exec"), names)
        except BaseException as error:  # noqa: BLE001 - a kernel hands on whatever a cell raises
            after_cell(types.SimpleNamespace(error_in_exec=error))
            return NotebookError(error)
    return None


def here(*words: str, cwd: Path = ROOT, encoding: str = "") -> subprocess.CompletedProcess:
    """The command in this process, its notebook too; what it prints is caught, as a terminal of an encoding would show it where one is named.

    Kernels are started where a test is about them, and by test_readme.
    """
    from paleotrain.app import cli
    from paleotrain.runs.session import leave_run
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) if encoding else io.StringIO() for _ in range(2))
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with mock.patch.object(cli, "execute", execute_here), contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = cli.main(list(map(str, words)))
            except SystemExit as stop: code = stop.code
    finally:
        for number, handler in kept: signal.signal(number, handler)
        os.environ.pop("PALEOTRAIN_RUN_ID", None)
        leave_run()
    for one in (out, err): one.seek(0)
    return subprocess.CompletedProcess(words, code, out.read(), err.read())


def only_run(runs: Path) -> Path:
    (folder,) = [p for p in runs.iterdir() if p.is_dir()]
    return folder


def wait_for(condition, process, seconds: int = 240) -> None:
    """Poll until the condition holds, while the process is at work."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the process ended or hung too early"
        time.sleep(0.1) # polling, with a limit


def table(folder: Path, name: str) -> list[dict[str, str]]:
    """A table of a run, as text."""
    with (folder / f"tables/{name}.csv").open(encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().split("\n") if line]


def _trains(script: str, given: dict, die: int, environment: dict, log: str) -> None:
    """In a process of its own: execute the script, killed with -9 behind step `die`, which is no checkpoint."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2): os.dup2(descriptor, stream)
    os.environ.clear(); os.environ.update(environment); os.chdir(ROOT)
    from paleotrain.training import callbacks as loop
    logged = loop.log_train
    def dying(callback, step):
        logged(callback, step)
        if step == die: os.kill(os.getpid(), signal.SIGKILL)
    loop.log_train = dying
    exec(script, {"given": given})


def train_process(script: str, given: dict, die: int = -1) -> int:
    """Run a script that trains what is `given` in a process of its own, killed at step `die`; its exit status.

    The processes are forked from a server that has imported torch and has computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["paleotrain.phases.qlora", "paleotrain.phases.pretrain_causal", "paleotrain.phases.sft", "transformers.trainer", "peft"])
    with tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=_trains, args=(script, json.loads(json.dumps(given)), die, dict(os.environ), log.name))
        process.start(); process.join(400)
        assert process.exitcode in (0, -signal.SIGKILL), Path(log.name).read_text()[-3000:]
    return process.exitcode


def killed_at(file: str, runs: Path, *words: str) -> Path:
    """Run `paleotrain` and kill -9 it, with its kernel, as soon as a file of that pattern is there; the run's folder."""
    process = psutil.Popen([str(BIN / "paleotrain"), *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list(runs.glob(file)):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(.005)
    for one in [*process.children(recursive=True), process]: one.kill() # a kernel that only saw its parent gone would go on for a second
    process.wait()
    from paleotrain.runs.directory import derive_status
    folder = only_run(runs)
    while derive_status(folder) == "running" and time.monotonic() < until: time.sleep(.1)
    return folder


def beginnings(name: str, folder: Path, characters: int = 200) -> Path:
    """A file of the sample with the beginning of each document alone: as many documents, a fraction of the time."""
    rows = [json.loads(line) for line in (ROOT / f"data/sample/{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": (row.get("text") or row["raw_text"])[:characters]}) + "\n" for row in rows), encoding="utf-8")
    return path


def useless_model():
    """A small model under tiny-base's tokenizer whose head is random: worse than word frequencies."""
    import torch
    from transformers import AutoTokenizer

    from paleotrain.models.masked import new_mlm
    torch.manual_seed(0)
    model = new_mlm(AutoTokenizer.from_pretrained(ROOT / "artifacts/tiny-base"), 32, 1, 2, 512)
    with torch.no_grad(): model.lm_predictions.lm_head.bias.normal_(0, 2)
    return model


HOSTILE = """<script>alert("x")</script><img src='http://evil.invalid/x.png' onerror=alert(1)>"""


def examples(notebook: str) -> dict:
    """What the cells of a notebook tagged `example` define: the functions that write an invented run."""
    from paleotrain.report import record as journal
    names = dict(vars(journal))
    for cell in json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if "example" in cell["metadata"].get("tags", []): exec("".join(cell["source"]), names)
    return names


def sections(page: str) -> list[str]: return re.findall(r"<h2[^>]*>([^<]+)", page)


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")
