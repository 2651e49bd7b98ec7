"""The command where it is refused, interrupted or killed: what it says, and whose files it leaves alone."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import BIN, QUICK, ROOT, command, here, only_run, options, wait_for
from filelock import FileLock

from paleotrain.app.cli import request_stop
from paleotrain.runs.directory import derive_status


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALEOTRAIN_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("PALEOTRAIN_PRESET", "demo")
        done = here("run", "dapt", *options(QUICK | {"max_steps": 2}))
        assert done.returncode == 0, done.stderr[-2000:]
        yield only_run(Path(os.environ["PALEOTRAIN_RUNS"]))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def kernels(process) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error): # a short-lived child has gone
            if "ipykernel_launcher" in " ".join(child.cmdline()): found.append(child)
    return found


@pytest.mark.parametrize(("words", "said"), [
    ((), "already finished"),
    (("-p", "learning_rate", "1"), "resume without it or start a new run"),
    (("--preset", "dapt_11gb"), "preset: 'dapt_11gb' on resume where the run has"),
])
def test_a_refused_resume_leaves_the_run_alone(finished, words, said):
    before = contents(finished)
    done = here("run", "dapt", "--resume", finished.name, *words)
    assert done.returncode == 2 and said in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr.strip().splitlines()[-1]
    assert contents(finished) == before


def test_a_locked_run_is_left_alone(finished):
    before = contents(finished)
    with FileLock(finished / "writer.lock"): done = here("run", "dapt", "--resume", finished.name, "-p", "max_steps", "3")
    assert done.returncode == 2 and "another process is writing this run" in done.stderr.strip().splitlines()[-1]
    assert contents(finished) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_another_process_has_the_run_is_not_passed_on(finished, number):
    before = contents(finished)
    with FileLock(finished / "writer.lock"):
        words = [str(BIN / "paleotrain"), "run", "dapt", "--resume", finished.name, "-p", "max_steps", "3"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: kernels(process), process)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.strip().splitlines()[-1] == "interrupted before the run began", err[-2000:]
    assert contents(finished) == before # no `cancel` among them


def test_a_stop_is_asked_for_once_the_run_is_open(tmp_path):
    (tmp_path / "manifest.json").write_text('{"attempts": [{"attempt": 1}]}')
    kept = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        request_stop(tmp_path, before=1) # not opened by us
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
        assert not (tmp_path / "cancel").exists()
        request_stop(tmp_path, before=0)
        signal.raise_signal(signal.SIGTERM)
        assert (tmp_path / "cancel").exists()
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT) # the second does not wait
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), kept, strict=True): signal.signal(number, handler)


def test_ctrl_c_while_starting(runs):
    process = subprocess.Popen([str(BIN / "paleotrain"), "run", "dapt"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: kernels(process), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.strip().splitlines()[-1] == "interrupted before the run began"


OPENED = """import json, os, signal
from pathlib import Path
run = Path(os.environ["PALEOTRAIN_RUNS"]) / os.environ["PALEOTRAIN_RUN_ID"]
run.mkdir(parents=True)
(run / "request.json").write_text("{}")
(run / "events.jsonl").write_text('{"kind": "train", "step": 3, "loss": 2.5}\\n')
(run / "manifest.json").write_text(json.dumps({"run_id": run.name, "phase": "tiny", "attempts": [{"attempt": 1, "from_step": 0}]}))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_kernel_ends_in_one_line_and_can_be_resumed(runs, tmp_path, monkeypatch):
    """A run notebook that opens its run and is killed, as the kernel is when memory runs out."""
    import nbformat
    root = tmp_path / "root"
    shutil.copytree(ROOT / "nbs/report_template", root / "nbs/report_template")
    for name in ("settings.ini", "nbs/report.ipynb"): shutil.copy(ROOT / name, root / name)
    parameters = nbformat.v4.new_code_cell("max_steps: int = None", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(OPENED)])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(notebook, root / "nbs/run_tiny.ipynb")
    monkeypatch.setenv("PALEOTRAIN_ROOT", str(root))
    done = command("paleotrain", "run", "tiny")
    folder = only_run(runs)
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stderr.strip().splitlines()[-1] == ("error: the notebook's process was killed, by hand or for want of memory; "
                                                    f"go on with: paleotrain run tiny --resume {folder.name}")
    assert derive_status(folder) == "interrupted" and "its process ended without a word" in (folder / "report.html").read_text()
    assert f"report: {folder / 'report.html'}" in done.stdout and (folder / "run.ipynb").exists()
    listed = here("runs").stdout.splitlines()[1].split() # an interrupted run shows the steps it made
    assert listed[:3] == [folder.name, "interrupted", "3"]


@pytest.mark.parametrize(("text", "said"), [("- max_steps\n- 40\n", "no 'name: value' lines"), ("", "no 'name: value' lines"), ("max_steps: [4", "not YAML")])
def test_a_parameter_file_that_holds_no_parameters(runs, tmp_path, text, said):
    (tmp_path / "own.yaml").write_text(text)
    done = here("run", "dapt", "-f", str(tmp_path / "own.yaml"))
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path / 'own.yaml'}: {said}") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [("--resume", ""), ("--preset", ""), ("-p", "resume", "")])
def test_an_empty_name_is_refused(runs, words):
    done = here("run", "dapt", *words)
    assert done.returncode == 2 and done.stderr.endswith(": its value is empty; name one, or leave it out\n") and not runs.exists()


def test_words_stay_words(runs, tmp_path, monkeypatch):
    """A corpus and a domain named by a year: both are taken; first the corpus is not there, then it is."""
    monkeypatch.setenv("PALEOTRAIN_ROOT", str(ROOT))
    words = "run", "dapt", *options(QUICK | {"max_steps": 2, "corpus": "2024", "domain": "2024"})
    done = here(*words)
    assert done.returncode == 2 and done.stderr.startswith("error: 2024: no such file or folder") and not runs.exists()
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024/sample.jsonl").symlink_to(ROOT / "data/sample/cambrian.jsonl")
    done = here(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((only_run(runs) / "manifest.json").read_text())["config"]
    assert (config["corpus"]["value"], config["domain"]["value"]) == (["2024"], "2024")


def test_one_broken_manifest_does_not_hide_the_other_runs(runs):
    for name, manifest in (("dapt-1", '{"terminal": {"status": "finished", "steps": 7}}'), ("dapt-2", "[{"), ("dapt-3", "5")):
        (runs / name).mkdir(parents=True)
        (runs / name / "request.json").write_text("{}")
        (runs / name / "manifest.json").write_text(manifest)
    done = here("runs")
    assert done.returncode == 0 and [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [
        ["dapt-1", "finished"], ["dapt-2", "unreadable"], ["dapt-3", "unreadable"]]


def test_a_report_that_cannot_be_made_ends_in_one_line(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(tmp_path))
    (tmp_path / "dapt-1/tables").mkdir(parents=True)
    (tmp_path / "dapt-1/request.json").write_text("{}")
    (tmp_path / "dapt-1/manifest.json").write_text("{}")
    (tmp_path / "dapt-1/tables/terms.csv").write_text("term,n,nats_before,nats_after\nx,many,1,1\n")
    done = here("report", "dapt-1")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: KeyError: ")
