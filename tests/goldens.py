"""What two commits make of the same small runs of every phase: equal but for time, memory and the names of runs.

    python tests/goldens.py OLD [NEW]     two commits of this repository; NEW is HEAD. Exit code 1 where something differs

Compared are claims, tables, events, samples, weights and written text. Both commits run side by side, each on a copy of what it has and with a core
of its own: bf16, and sums in another order, do not travel between machines. About ten minutes.
"""
import concurrent.futures
import csv
import difflib
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
STEPS = "-p max_steps 4 -p logging_steps 1 -p eval_steps 2 -p save_steps 2"
CHAT = f"{STEPS} -p eval_items 20 -p answer_tokens 4"
HIDDEN = "-p eval_words 20 -p test_words 40 -p max_seq_length 64 -p per_device_train_batch_size 4 -p gradient_accumulation_steps 1"
DAPT = f"--preset demo {STEPS} {HIDDEN} -p term_occurrences 1 -p terms tests/terms.csv"
TEXT = f"{STEPS} -p eval_words 200 -p test_words 500 -p sample_tokens 4"
LESSONS = ("format_lock", "minimal", "echo", "gibberish", "knowledge")
COMMANDS = [ # every phase, masked and causal, each after what it needs
    "run prepare --preset prepare_demo", "run tokenizer --preset tokenizer_demo",
    f"run dapt {DAPT} -p control general", f"run dapt {DAPT} -p general None -p add_terms false",
    f"run pretrain --preset tiny_base -p corpus data/sample/general.jsonl -p test_files None {STEPS} {HIDDEN} -p vocab_size 400",
    f"run pretrain --preset pretrain_demo {TEXT}",
    f"run pretrain -p corpus everyday.txt -p split position -p family char_lstm -p tokenizer character -p hidden_size 32 {TEXT}",
    "run generate --preset generate_demo -p max_new_tokens 8 -p num_sequences 2",
    "run evaluate --preset evaluate_demo -p max_documents 5 -p max_new_tokens 4",
    "run scaling --preset scaling_demo -p rungs 'llama bpe 0.15M;llama bpe 0.2M;gpt2 bpe 0.2M' -p tokens 8000 -p evaluations 1 "
    "-p eval_words 200 -p test_words 500",
    *[f"run chatdata --preset chatdata_{lesson} -p output data/chat/{lesson}" for lesson in LESSONS],
    "run curriculum --preset curriculum_demo -p chain smallest.yaml",
    "run chatdata --preset chatdata_demo -p max_examples 200 -p evaluation 20", f"run sft --preset sft_demo {CHAT}",
    f"run qlora --preset qlora_demo {CHAT} -p max_seq_length 64", f"run domains --preset domains_demo {CHAT} -p max_seq_length 64",
    "merge artifacts/adapters/cambrian",
]
TIMED = re.compile(r"^(t|seconds|ended|started|created|it_s|tokens_per_s|tokens_s|micro_batches_per_s|waited|memory_gb|gpu_utilization|minutes)$")
TIMED_CLAIMS = ("memory", "training_time", "speed", "utilization", "waiting")
FACTS = ("title", "phase", "seeds", "inputs", "data", "parent", "baseline", "plan", "example", "adapter", "parameters", "reference") # of a manifest
RUN_NAME = re.compile(r"\b([a-z]+)-\d{8}-\d{6}-[0-9a-f]{4}\b")


def masked(value: Any) -> Any:
    """The value without times and memory, and with runs named by their phase."""
    if isinstance(value, dict): return {key: "~" if TIMED.match(key) else masked(part) for key, part in value.items()}
    if isinstance(value, list): return [masked(part) for part in value]
    return RUN_NAME.sub(r"\1", value) if isinstance(value, str) else value


def claims(path: Path) -> Any:
    """Claims; of those about time and memory only what was promised."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [{key: part for key, part in one.items() if one["id"] not in TIMED_CLAIMS or key in ("id", "statement", "criterion")} for one in found]


def rows(path: Path) -> list[dict[str, str]]:
    """A table, or a file of JSON a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv": return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.split("\n") if line]


def said(path: Path) -> str | None:
    """What a file says as text, the parts that change with the hour masked; None for one that is not compared."""
    if path.name == "claims.json": found = claims(path)
    elif path.name == "manifest.json" and (path.parent / "events.jsonl").is_file():
        found = {name: part for name, part in json.loads(path.read_text(encoding="utf-8")).items() if name in FACTS}
        found["plan"] = [row for row in found.get("plan", {}).get("rows", []) if row[0] not in ("memory", "time")]
    elif path.suffix in (".csv", ".jsonl"): found = rows(path)
    elif path.suffix == ".safetensors" or path.name in ("tokenizer.json", "vocab.txt"): return hashlib.sha256(path.read_bytes()).hexdigest()
    else: return None
    lines = found if isinstance(found, list) else [found]
    return "\n".join(json.dumps(masked(line), sort_keys=True, ensure_ascii=False) for line in lines)


def named(path: Path, root: Path, order: dict[str, str]) -> str:
    """A file's name, with runs by phase and turn, since their own names are the hour."""
    first, *rest = path.relative_to(root).parts
    return "/".join([first, *(order.get(part, part) for part in rest)])


def digest(root: Path) -> dict[str, str]:
    """What each file that a copy's runs have written says."""
    made = [run.name for run in sorted((root / "runs").iterdir(), key=lambda run: run.stat().st_ctime) if RUN_NAME.fullmatch(run.name)]
    phases = [RUN_NAME.sub(r"\1", name) for name in made]
    order = {name: f"{phase} {phases[:turn].count(phase) + 1}" for turn, (name, phase) in enumerate(zip(made, phases, strict=True))}
    files = [path for part in ("runs", "data", "artifacts") for path in sorted((root / part).rglob("*")) if path.is_file() and "cache" not in path.parts]
    found = {named(path, root, order): said(path) for path in files}
    return {name: text for name, text in found.items() if text is not None}


def add_inputs(root: Path) -> None:
    """A chain of the phases of the demo's, with a few steps each, and one text file."""
    chain = yaml.safe_load((root / next(iter(root.glob("nbs/**/chains/demo.yaml")))).read_text(encoding="utf-8"))
    del chain["train"]["general"]
    chain["train"] |= {"max_steps": 4, "logging_steps": 1, "eval_steps": 2, "save_steps": 2, "eval_items": 20, "answer_tokens": 4}
    for phase in chain["phases"]:
        phase["train"], phase["data"]["evaluation"], phase["data"]["max_examples"] = {}, 20, 200
        del phase["gates"]
    (root / "smallest.yaml").write_text(yaml.safe_dump(chain))
    texts = [next(row[name] for name in ("text", "norm_text", "raw_text") if row.get(name)) for row in rows(root / "data/sample/general.jsonl")]
    (root / "everyday.txt").write_text("\n\n".join(texts), encoding="utf-8")


def copied(commit: str, folder: Path) -> Path:
    """What a commit has."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    add_inputs(folder)
    return folder


def run_all(root: Path, label: str) -> Iterator[str]:
    """Every command on a copy; what went wrong."""
    module, _, function = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["paleotrain"].partition(":")
    start = f"import sys; from {module} import {function}; sys.argv[0] = 'paleotrain'; sys.exit({function}())"
    places = {name: value for name, value in os.environ.items() if not name.startswith("PALEOTRAIN_")}
    places |= {"PYTHONPATH": str(root), "PALEOTRAIN_ROOT": str(root), "PALEOTRAIN_CORPORA": str(root / "nowhere"), "OMP_NUM_THREADS": "1",
               "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in COMMANDS:
        print(f"{label}: {command}", flush=True)
        ran = subprocess.run([sys.executable, "-c", start, *shlex.split(command)], cwd=root, env=places, capture_output=True, text=True,
                             stdin=subprocess.DEVNULL)
        if ran.returncode: yield f"{label}: {command}: exit code {ran.returncode}\n{ran.stderr[-2000:]}"


def differences(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Each file that one of the two lacks or that says something else, with the first lines that differ."""
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name): continue
        if name not in old or name not in new: yield f"{name}: only in the {'new' if name in new else 'old'}"; continue
        lines = difflib.unified_diff(old[name].split("\n"), new[name].split("\n"), lineterm="", n=0)
        yield f"{name}:\n" + "\n".join(line[:1000] for line in list(lines)[3:9])


def main(old: str, new: str = "HEAD") -> int:
    """Run both, and print what differs."""
    with tempfile.TemporaryDirectory() as place:
        folders = {label: copied(commit, Path(place) / label) for label, commit in (("old", old), ("new", new))}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            failed = [line for found in pool.map(lambda label: list(run_all(folders[label], label)), folders) for line in found]
        made = {label: digest(folder) for label, folder in folders.items()}
    found = failed + list(differences(made["old"], made["new"]))
    print(*found, f"{len(made['old'])} files of {old}, {len(made['new'])} of {new}: {len(found)} differences", sep="\n")
    return bool(found) or not made["old"]


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
