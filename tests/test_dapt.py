"""DAPT end to end: the command, papermill from two places, a stop and a resume."""
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import BIN, QUICK, ROOT, command, events, here, only_run, options, wait_for
from safetensors.torch import load_file

from paleotrain.runs.directory import derive_status, find_run


def files(folder: Path) -> set[str]:
    """The run's files without what carries a run's own name or comes with the command alone."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"run.ipynb"}


def test_command_leaves_a_whole_run(runs):
    done = command("paleotrain", "run", "dapt", *options(QUICK | {"test_words": 120, "general": "data/sample/general.jsonl"}))
    assert done.returncode == 0, done.stderr[-2000:]
    folder = only_run(runs)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert derive_status(folder) == "finished" and manifest["terminal"]["steps"] == 4
    assert {"request.json", "manifest.json", "events.jsonl", "claims.json", "samples.jsonl", "report.html", "report.ipynb", "run.ipynb",
            "tables/states.csv", "tables/changes.csv", "tables/terms.csv", "tables/fragmentation.csv", "model/model.safetensors", "model/README.md"} <= {
                p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    # the claims were promised before the first step
    kinds = [(e["kind"], e.get("status"), e["step"]) for e in events(folder)]
    assert kinds.index(("status", "claims", 0)) < next(i for i, (kind, _, _) in enumerate(kinds) if kind == "train")
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert claims["speed"]["verdict"] == "NOT RUN" or manifest["hardware"]["gpu"]
    assert claims["fragmentation"]["verdict"] == "PASS" and claims["domain"]["n"] >= 100
    # what stands in the terminal: live progress, then the claims table, then the report's place
    assert "dapt: 100%" in done.stderr and "step/s" in done.stderr
    assert done.stdout.count("Reads the") == 1 and done.stdout.rstrip().endswith("report.html")
    assert manifest["config"]["max_steps"] == {"value": 4, "origin": "you", "description": "optimizer steps; wins over num_train_epochs"}
    assert manifest["config"]["precision"]["value"] in ("bf16", "fp32", "fp16") # auto was resolved, and stays so
    # the exported model is plain transformers
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    model, info = AutoModelForMaskedLM.from_pretrained(folder / "model", output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert not info["missing_keys"] and not info["unexpected_keys"] and len(tokenizer("Anomalocaris")["input_ids"]) == 3
    # the other commands, on this run
    assert folder.name in here("runs").stdout
    assert here("report", folder.name).stdout.strip() == here("report", "demo").stdout.strip() == str(folder / "report.html") # by its preset too
    table = here("compare", folder.name, folder.name).stdout
    assert "domain words" in table
    judged = here("evaluate", folder.name, "--data", "data/sample/general.jsonl")
    assert judged.returncode == 0 and "its parent" in judged.stdout and "n = " in judged.stdout, judged.stderr
    assert "the run was given this file" in judged.stdout # as the run's own general text


def test_papermill_and_command_leave_the_same_files(runs, tmp_path):
    """papermill from the root, and as typed from nbs/ with its output piped; the command from both."""
    left, given = {}, options(QUICK | {"max_steps": 2})
    def folder_of(name: str, done) -> Path:
        assert done.returncode == 0, (name, done.stderr[-2000:])
        (folder,) = {path for path in runs.iterdir() if path not in left}
        left[folder] = files(folder)
        return folder
    folder_of("papermill, root", command("papermill", "nbs/run_dapt.ipynb", str(tmp_path / "OUT.ipynb"), *given))
    piped = command("papermill", "run_dapt.ipynb", *given, cwd=ROOT / "nbs")
    assert json.loads(piped.stdout)["nbformat"] == 4 and derive_status(folder_of("papermill, nbs", piped)) == "finished"
    wanted = left[folder_of("command, root", here("run", "dapt", *given))]
    folder_of("command, nbs", here("run", "dapt", *given, cwd=ROOT / "nbs"))
    assert len(left) == 4 and len({frozenset(found) for found in left.values()}) == 1, {folder.name: found ^ wanted for folder, found in left.items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_and_resume(runs, number):
    words = [str(BIN / "paleotrain"), "run", "dapt", *options(QUICK | {"max_steps": 40, "eval_steps": 40, "save_steps": 40})]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    wait_for(lambda: runs.exists() and any(p.is_dir() and '"train"' in (p / "events.jsonl").read_text() for p in runs.glob("dapt-*")
                                           if (p / "events.jsonl").exists()), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err[-2000:]
    folder = only_run(runs)
    assert derive_status(folder) == "interrupted" and f"--resume {folder.name}" in err and (folder / "report.html").exists()
    done = here("run", "dapt", "--resume", folder.name, *options({"max_steps": 41}))
    assert done.returncode == 0, done.stderr[-2000:]
    assert derive_status(folder) == "finished"
    steps = [e["step"] for e in events(folder) if e["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 41 # no step stands twice
    assert len(json.loads((folder / "manifest.json").read_text())["attempts"]) == 2
    refused = here("run", "dapt", "--resume", folder.name, *options({"learning_rate": 1}))
    assert refused.returncode == 2 and refused.stderr.strip().endswith("resume without it or start a new run")


def test_a_killed_run_is_interrupted_and_resumable(runs):
    """kill -9 on papermill and its kernel: no terminal record, lock free, and the run goes on from its checkpoint."""
    words = [str(BIN / "papermill"), "nbs/run_dapt.ipynb", os.devnull, *options(QUICK | {"max_steps": 40, "save_steps": 10, "eval_steps": 10})]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: any(runs.glob("dapt-*/checkpoints/step-*[1-9]0/checkpoint.json")), process)
    import psutil
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family: member.kill()
    process.wait(timeout=60)
    psutil.wait_procs(family, timeout=60)
    folder = only_run(runs)
    assert derive_status(folder) == "interrupted"
    done = here("run", "dapt", "--resume", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [e["step"] for e in events(folder) if e["kind"] == "train"]
    assert steps == list(range(1, 41)), json.loads((folder / "manifest.json").read_text())["terminal"]


def test_a_training_that_only_makes_it_worse_keeps_the_state_before_it(runs):
    """A learning rate far too high: the checkpoint kept is the extended base, to the bit, and the run says so."""
    done = here("run", "dapt", *options(QUICK | {"learning_rate": 0.05, "warmup_steps": 0}))
    assert done.returncode == 0, done.stderr[-2000:]
    folder = only_run(runs)
    terminal = json.loads((folder / "manifest.json").read_text())["terminal"]
    assert terminal["best_step"] == 0
    assert terminal["reason"] == "max_steps reached; no evaluation was better than before training"
    evaluations = [e for e in events(folder) if e["kind"] == "eval"]
    assert [e["step"] for e in evaluations] == [0, 2, 4] and evaluations[0]["nats"] == min(e["nats"] for e in evaluations)
    assert all(0 < e["nats_per_token"] < e["nats"] for e in evaluations) # a word has one token or more
    kept = load_file(folder / "checkpoints/step-000000/model.safetensors")
    assert (folder / "model/model.safetensors").read_bytes() == (folder / "checkpoints/step-000000/model.safetensors").read_bytes()
    for name, weight in load_file(ROOT / "artifacts/tiny-base/model.safetensors").items():
        assert torch.equal(kept[name][:len(weight)], weight), name # rows of new words are behind those of the base


def test_find_run_by_the_beginning_of_its_id(runs):
    from paleotrain.core.settings import load_settings
    (runs / "dapt-20260101-000000-abcd").mkdir(parents=True)
    (runs / "dapt-20260101-000000-abcd/request.json").write_text("{}")
    assert find_run("dapt-2026", load_settings()).name.endswith("abcd")
