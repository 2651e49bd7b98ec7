"""JupyterLab's stop button, without a browser: the signal that it sends, to the kernel and to all that the kernel has started."""
import json
import re
import threading
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, SMALL, command, only_run
from jupyter_client.manager import start_new_kernel

from paleotrain.runs.directory import checkpoints, derive_status, read_events

LINE = "stopping after this step; press stop again to stop at once"
TRAINING = SMALL | {"max_steps": 400, "eval_steps": 200, "save_steps": 200}


def code(phase: str) -> list[str]:
    """The code cells of a run notebook, without its parameters."""
    cells = nbformat.read(ROOT / "nbs" / f"run_{phase}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code" and not {"first", "parameters"} & set(cell.metadata.get("tags", []))]


class Notebook:
    """A run notebook in a kernel of its own, as JupyterLab has it: it can be run again, and stopped."""
    def __init__(self, runs: Path):
        self.runs = runs
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(ROOT / "nbs"), extra_arguments=["--IPKernelApp.log_level=CRITICAL"])

    def run(self, cells: list[str]) -> None:
        """Execute cells from the top to the first that fails, in a thread."""
        self.outputs: list[dict] = []
        self.thread = threading.Thread(target=self._run, args=(cells,), daemon=True)
        self.thread.start()

    def _run(self, cells: list[str]) -> None:
        for source in cells:
            reply = self.client.execute_interactive(source, output_hook=lambda message: self.outputs.append(message["content"]), timeout=240)
            if reply["content"]["status"] != "ok": return

    def press(self) -> None: self.manager.interrupt_kernel()

    def wait(self, condition) -> None:
        until = time.monotonic() + 240
        while not condition():
            assert self.thread.is_alive() and time.monotonic() < until, self.said()
            time.sleep(.02) # polling, with a limit

    def end(self) -> str:
        self.thread.join(timeout=240)
        assert not self.thread.is_alive()
        return self.said()

    def said(self) -> str:
        """All that stands below the cells, errors as they are shown."""
        return "".join(output.get("text", "") + "".join(f"{line}\n" for line in output.get("traceback", [])) for output in self.outputs)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def notebook(runs):
    made = Notebook(runs)
    yield made
    made.close()


def trained(runs: Path, attempt: int) -> bool:
    """Whether the run has made a step in this attempt."""
    return any(e["kind"] == "train" and e["attempt"] == attempt for folder in runs.glob("*-*") for e in read_events(folder))


def last_line(said: str) -> str: # of the error, as it is shown
    return next(line for line in reversed(said.splitlines()) if line.startswith("Interrupted: "))


def test_pressed_once_and_twice_while_training_with_a_loader_process(notebook):
    cells = code("dapt")
    notebook.run([f"globals().update({TRAINING | {'dataloader_num_workers': 1}})", *cells])
    notebook.wait(lambda: trained(notebook.runs, 1))
    notebook.press()
    said, folder = notebook.end(), only_run(notebook.runs)
    _, saved = checkpoints(folder)
    assert said.count(LINE) == 1 and "Traceback" not in said, said
    assert last_line(said) == (f"Interrupted: stopped at step {saved['step']}; go on with: paleotrain run dapt --resume {folder.name}, "
                               f'or resume = "{folder.name}" in the parameters cell')
    assert derive_status(folder) == "interrupted" and "was interrupted at step" in (folder / "report.html").read_text()
    assert said.splitlines()[-2:] == [last_line(said), f"report: {folder / 'report.html'}"] and said.count("report: ") == 1
    before = (folder / "report.html").stat().st_mtime_ns
    notebook.run(["import gc, torch\nheld = [one for one in gc.get_objects() if isinstance(one, torch.optim.Optimizer)]\nprint(len(held), 'held')"])
    assert "0 held" in notebook.end().splitlines() # the moments would stand beside those of the attempt that goes on
    # in the same kernel, as `Run All` does
    notebook.run([f"resume = {folder.name!r}", *cells])
    notebook.wait(lambda: trained(notebook.runs, 2))
    notebook.press()
    notebook.wait(lambda: (folder / "cancel").exists())
    notebook.press()
    said = notebook.end()
    assert "Traceback" not in said and f", at once; its last checkpoint is step {saved['step']}; go on with: " in last_line(said), said
    assert said.splitlines()[-2] == last_line(said) # behind the bar
    assert derive_status(folder) == "interrupted" and (folder / "report.html").stat().st_mtime_ns > before
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [attempt["from_step"] for attempt in manifest["attempts"]] == [0, saved["step"]]
    assert [one["step"] for one in checkpoints(folder)] == [0, saved["step"]]


def test_pressed_in_another_cell(notebook):
    """What the cell calls is made to wait; the press ends it."""
    cells = code("dapt")
    wait = "import time\ndef prepare(run, *_):\n    (run.folder / 'waiting').touch()\n    while True: time.sleep(.01)"
    notebook.run([f"globals().update({SMALL})", cells[0], wait, *cells[1:]])
    notebook.wait(lambda: list(notebook.runs.glob("*/waiting")))
    notebook.press()
    said, folder = notebook.end(), only_run(notebook.runs)
    assert "Traceback" not in said and last_line(said).startswith("Interrupted: stopped; go on with: paleotrain run dapt --resume "), said
    assert derive_status(folder) == "interrupted" and (folder / "report.html").exists()
    assert read_events(folder)[-1]["reason"] == "stopped by hand"


def test_pressed_in_a_rung(notebook):
    """The rung saves its checkpoint, and the ladder is interrupted with it."""
    given = {"rungs": "llama bpe 15k", "corpus": "data/sample", "test_fraction": .3, "validation_fraction": .1, "vocab_size": 300, "tokens": 2_000_000,
             "max_seq_length": 32, "evaluations": 2, "eval_words": 60, "test_words": 300}
    notebook.run([f"globals().update({given})", *code("scaling")])
    notebook.wait(lambda: any('"train"' in path.read_text() for path in notebook.runs.glob("*/rungs/*/events.jsonl")))
    notebook.press()
    said, folder = notebook.end(), only_run(notebook.runs)
    (rung,) = (folder / "rungs").iterdir()
    assert said.count(LINE) == 1 and "Traceback" not in said, said
    assert last_line(said).startswith(f"Interrupted: stopped in {rung.name}; go on with: paleotrain run scaling --resume {folder.name}, ")
    assert len(checkpoints(rung)) == 2 and derive_status(rung) == derive_status(folder) == "interrupted"
    assert (folder / "report.html").exists()


def test_a_fault_is_shown_as_before_and_reported(notebook):
    cells = code("dapt")
    notebook.run([f"globals().update({SMALL | {'corpus': 'nowhere'}})", *cells])
    said, folder = notebook.end(), only_run(notebook.runs)
    assert "Traceback" not in said and "UserError: " in said and "nowhere" in said
    assert derive_status(folder) == "failed" and (folder / "report.html").exists()


def test_the_command_renders_a_failed_run_once(runs, tmp_path):
    (tmp_path / "short.txt").write_text("Too short to be split.")
    done = command("paleotrain", "run", "dapt", "-p", "corpus", str(tmp_path / "short.txt"))
    assert (only_run(runs) / "report.html").exists()
    assert done.returncode == 2 and done.stdout.count("report: ") == 1, done.stdout


def test_every_run_notebook_hands_the_renderer_over():
    for path in sorted((ROOT / "nbs").glob("run_*.ipynb")):
        assert any(re.search(r"open_run\(.*, render_report\)", source) for source in code(path.stem.removeprefix("run_"))), path.name
