"""What a run stands on: its events after a kill, its lock beside those who look, its parameters as they were typed, its kernel, and the terminal it speaks to."""
import json
import subprocess
import sys
import threading

import pytest

from paleotrain.core import write_json
from paleotrain.runs import Run, derive_status, read_events
from paleotrain.starting import resume_run


@pytest.fixture
def stopped(runs):
    """A run of generating that was killed in the midst of a line, and the configuration it has."""
    from paleotrain.configurations import GenerateConfig
    from paleotrain.core import load_settings
    from paleotrain.starting import new_run
    run, _ = new_run(runs / "generate-1", "generate", GenerateConfig, {}, load_settings())
    for step in (1, 2): run.log("train", step, loss=1 / step)
    run.lock.release()
    return run.folder, GenerateConfig


@pytest.mark.parametrize("torn", [b'{"t": 1, "kind": "tra', b"\0" * 40, "{\"text\": \"é".encode()[:-1], b"{"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_line_cut_short_is_dropped_on_resume_and_joined_to_nothing(stopped, torn, checkpoint):
    folder, config = stopped
    whole = (folder / "events.jsonl").read_bytes()
    if checkpoint: write_json(folder / "checkpoints/step-000002/checkpoint.json", {"step": 2, "metric": None, "events": len(whole), "files": {}})
    (folder / "events.jsonl").write_bytes(whole + torn)
    run, _ = resume_run(folder, "generate", config, {})
    run.log("train", 3, loss=.1)
    run.lock.release()
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["status", "train", "train", "status", "train"]
    assert (folder / "events.attempt-1.jsonl").read_bytes() == torn and len(read_events(folder)) == 5


def test_a_checkpoint_that_counts_on_more_events_than_are_there_takes_nothing_away(stopped):
    folder, config = stopped
    size = len((folder / "events.jsonl").read_bytes())
    write_json(folder / "checkpoints/step-000002/checkpoint.json", {"step": 2, "metric": None, "events": size + 99, "files": {}})
    resume_run(folder, "generate", config, {})[0].lock.release()
    assert [event["kind"] for event in read_events(folder)] == ["status", "train", "train", "status"]


def test_whoever_looks_at_a_run_keeps_no_writer_out_and_needs_no_right_to_write(stopped):
    folder, _ = stopped
    over, found = threading.Event(), set()
    def look():
        while not over.is_set(): found.add(derive_status(folder))
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for one in lookers: one.start()
    try:
        for _ in range(100): Run(folder).lock.release()
    finally:
        over.set()
        for one in lookers: one.join()
    assert found <= {"interrupted", "running"}
    (folder / "writer.lock").chmod(0o400)
    assert derive_status(folder) == "interrupted"


# The kernel

ORPHAN = """
import ctypes, os, subprocess, sys, time
import psutil
ctypes.CDLL(None).prctl(36, 1) # PR_SET_CHILD_SUBREAPER: orphans come here, and not to process 1
starter = f'''
import os, subprocess, sys
from paleotrain.cli import starting
command = starting([sys.executable, "-m", "ipykernel_launcher", "-f", {sys.argv[1]!r}])
kernel = subprocess.Popen(command, env=os.environ | dict(JPY_PARENT_PID=str(os.getpid())))
print(kernel.pid, flush=True)
if {sys.argv[2]!r} == "up":
    while not os.path.exists({sys.argv[1]!r}): pass
os.kill(os.getpid(), 9)
'''
kernel = int(subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE).stdout)
end = time.monotonic() + 30
while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != "zombie" and time.monotonic() < end: time.sleep(.05)
print("ended" if time.monotonic() < end else "lives on")
if time.monotonic() >= end: os.kill(kernel, 9)
"""


@pytest.mark.parametrize("when", ["at once", "up"])
def test_a_kernel_ends_with_the_command_that_started_it_below_another_reaper(tmp_path, when):
    """Killed before the kernel has begun, and once it is up (its connection file is there)."""
    done = subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path / "kernel.json"), when], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["ended"], done.stderr
