"""Every command of the README, in its order, on a copy of what git has: with the smallest budgets; as written where `make soak` runs it."""
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import BIN, ROOT, options

sys.path.insert(0, str(ROOT / "tests"))
import house

SOAK = bool(os.environ.get("PALEOTRAIN_SOAK"))
STEPS = {"max_steps": 2, "logging_steps": 1, "eval_steps": 2, "save_steps": 2}
ADAPTER = STEPS | {"eval_items": 20, "answer_tokens": 4, "max_seq_length": 64, "general": None}
SMALLEST = { # by phase, what is said behind a command where there is no time for all of it
    "dapt": STEPS | {"eval_words": 20, "test_words": 20, "term_occurrences": 1, "terms": "tests/terms.csv", "max_seq_length": 64,
                     "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    "prepare": {}, "tokenizer": {"kind": "bpe"}, "chatdata": {"max_examples": 200, "evaluation": 20},
    "pretrain": STEPS | {"eval_words": 200, "test_words": 500, "sample_tokens": 4}, "generate": {"max_new_tokens": 4, "num_sequences": 1},
    "evaluate": {"max_documents": 3, "max_new_tokens": 4},
    "scaling": {"rungs": "llama bpe 0.15M;llama bpe 0.2M", "tokens": 8000, "evaluations": 1, "eval_words": 200, "test_words": 500},
    "curriculum": {"chain": "smallest.yaml"}, "sft": STEPS | {"eval_items": 20, "answer_tokens": 4, "general": None},
    "qlora": ADAPTER, "domains": ADAPTER,
}
NOT_RUN = "make test", "make venv", ". .venv/bin/activate" # this test is part of the first, and runs in what the others have made


def commands(text: str) -> list[str]:
    """The commands of all sh blocks of a Markdown text, in order: continued lines joined, comments left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M)
    return [" ".join(words) for block in blocks for line in block.replace("\\\n", " ").splitlines()
            if (words := [shlex.quote(word) for word in shlex.split(line, comments=True)])]


def to_run(command: str, makefile: str) -> str | None:
    """The command as it is to be executed; None for one that is known and not run; anything else is an error."""
    if command in NOT_RUN: return None
    program, *words = shlex.split(command)
    if program == "make":
        recipe = re.search(rf"^{re.escape(words[0])}:.*\n((?:\t.*\n)+)", makefile, re.M)
        assert recipe and len(words) == 1, f"no target of the Makefile: {command}"
        return "; ".join(line.strip().replace("$(BIN)/", "") for line in recipe[1].splitlines())
    assert program == "paleotrain", f"README has a command that this test does not know: {command}"
    return command


def shortened(command: str) -> str:
    """The command with the smallest budgets."""
    words = shlex.split(command)
    return f"{command} {shlex.join(options(SMALLEST[words[2]]))}" if words[:2] == ["paleotrain", "run"] else command


def copy_of_the_project(folder: Path) -> Path:
    """What a clone has, and a chain of the same phases with two steps each."""
    for name in house.files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    chain = yaml.safe_load((folder / "nbs/chains/demo.yaml").read_text(encoding="utf-8"))
    del chain["train"]["general"]
    chain["train"] |= STEPS | {"eval_items": 20, "answer_tokens": 4}
    for phase in chain["phases"]:
        phase["train"], phase["data"]["evaluation"], phase["data"]["max_examples"] = {}, 20, 200
        del phase["gates"]
    (folder / "smallest.yaml").write_text(yaml.safe_dump(chain))
    return folder


def processor_seconds() -> float:
    """What the processes that have ended so far have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_commands_are_read_as_a_shell_reads_them():
    text = "```sh\nmake demo   # does it\n\npaleotrain run dapt -p name \"a # b\" \\\n  -p max_steps 2\n```\n```python\nx = 1\n```\n```sh\ncurl x\n```\n"
    first, second, third = commands(text)
    assert (first, second, third) == ("make demo", "paleotrain run dapt -p name 'a # b' -p max_steps 2", "curl x")
    assert to_run("make demo", "demo: venv  ## x\n\t$(BIN)/paleotrain run dapt\n\ncheck:\n") == "paleotrain run dapt"
    assert to_run(". .venv/bin/activate", "") is None
    for unknown in (third, "make nothing"):
        with pytest.raises(AssertionError): to_run(unknown, "demo:\n\techo\n")


def test_every_command_of_the_readme(tmp_path):
    """The first that fails ends it, with what it said."""
    project = copy_of_the_project(tmp_path / "clone")
    places = {name: value for name, value in os.environ.items() if not name.startswith("PALEOTRAIN_")}
    places |= {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(project), "PALEOTRAIN_CORPORA": str(tmp_path / "nowhere")}
    listed, makefile = commands((project / "README.md").read_text(encoding="utf-8")), (project / "Makefile").read_text(encoding="utf-8")
    done = []
    for command in listed:
        line = to_run(command, makefile)
        if line is None: continue
        begun, used = time.monotonic(), processor_seconds()
        ran = subprocess.run(["bash", "-c", line if SOAK else shortened(line)], cwd=project, env=places, capture_output=True, text=True,
                             stdin=subprocess.DEVNULL, timeout=1800)
        done.append(f"{time.monotonic() - begun:7.1f} s  {processor_seconds() - used:7.1f} s of a core  exit code {ran.returncode}  {command}")
        print(done[-1], flush=True)
        assert ran.returncode == 0, "\n".join([*done, ran.stderr[-3000:]])
    assert len(done) >= 10 and {shlex.split(to_run(command, makefile) or "- - -")[2] for command in listed} >= set(SMALLEST)
    assert all(link.exists() for link in (project / "artifacts/merged/cambrian", project / "data/corpus/fossils"))
