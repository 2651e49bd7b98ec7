"""What the command refuses before anything starts: in one line, without a kernel, a run, or a library that takes seconds to import."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, here

SLOW = {"torch", "transformers", "papermill", "nbformat", "jupyter_client", "matplotlib", "datasets"}


def wrong(place: Path) -> list[tuple[tuple[str, ...], str]]:
    """Words behind `paleotrain run`, and what the line has to hold."""
    (place / "body.jsonl").write_text('{"body": "It lies in mud."}\n')
    (place / "kinds.csv").write_text("name,kind\nOlenus,taxon\n")
    (place / "prompts.json").write_text('[{"question": "Where?"}]')
    (place / "empty").mkdir()
    given = {name: str(place / name) for name in ("body.jsonl", "kinds.csv", "prompts.json", "empty")}
    return [
        (("dapt", "-p", "max_stesp", "40"), "max_stesp: no parameter of run_dapt; did you mean max_steps?"),
        (("dapt", "-p", "max_steps", "many"), "max_steps: Input should be a valid integer"),
        (("dapt", "-p", "learning_rate", "-1"), "learning_rate: Input should be greater than 0, found -1"),
        (("dapt", "-p", "learning_rate", "1e400"), "learning_rate: Input should be a finite number, found inf"),
        (("dapt", "-p", "corpus", "~no-one/mud.txt"), "~no-one/mud.txt: no such file or folder"),
        (("generate", "-p", "prompt", "a", "-p", "model", "~no-one"), "~no-one: no such run"),
        (("dapt", "--preset", "novel"), "preset: no preset 'novel' for dapt"),
        (("dapt", "-p", "corpus", "no/folder"), "no/folder: no such file or folder"),
        (("dapt", "-p", "corpus", given["empty"]), "no .txt or .jsonl file there"),
        (("dapt", "-p", "corpus", given["body.jsonl"]), "no text in any line; fields found: body"),
        (("dapt", "-p", "general", "no/english.txt"), "no/english.txt: no such file or folder"),
        (("dapt", "-p", "terms", given["kinds.csv"]), "no column 'term'"),
        (("dapt", "-p", "base_model", "./no_model"), "base_model: no folder"),
        (("dapt", "--resume", "dapt-1999"), "dapt-1999: no such run"),
        (("pretrain", "-p", "corpus", "no_novel.txt"), "no_novel.txt: no such file or folder"),
        (("pretrain", "-p", "family", "lama"), "family: Input should be 'auto', 'deberta', 'gpt2'"),
        (("scaling", "-p", "rungs", "llama 1M"), "rungs: 'llama 1M' is no rung"),
        (("tokenizer", "-p", "kind", "words"), "kind.0: Input should be 'bpe'"),
        (("prepare", "-p", "sources", "debatsum"), "did you mean debatesum?"),
        (("prepare", "-p", "sources", "no/papers"), "no/papers"),
        (("generate", "-p", "prompt", "The sea"), "model: not named"),
        (("generate", "-p", "model", "novel", "-p", "prompt", "The sea"), "no finished run of this preset; make one: paleotrain run pretrain --preset novel"),
        (("evaluate", "-p", "model", "artifacts/tiny-base", "-p", "corpus", "data/sample"), "a masked language model, which predicts no next token"),
        (("sft", "-p", "data", given["body.jsonl"], "-p", "base_model", "nobody/gpt"), "no chat layout has the keys body"),
        (("sft", "-p", "data", "no_chats.jsonl"), "no file at no_chats.jsonl"),
        (("curriculum", "-p", "chain", "no.yaml"), "no.yaml: cannot be read"),
        (("qlora", "-p", "domain", "law", "-p", "base_model", "nobody/gpt"), "domain: no data for 'law'"),
    ]


def test_refusals_are_one_line_leave_no_run_and_import_nothing_slow(runs, tmp_path, monkeypatch):
    """All in one process, so that what any of them imports is seen."""
    monkeypatch.setenv("PALEOTRAIN_DATA", str(tmp_path / "data"))
    asked = wrong(tmp_path)
    script = ("import contextlib, io, json, sys\nfrom paleotrain.app.cli import main\nsaid = []\nfor words in json.loads(sys.argv[1]):\n"
              "    with contextlib.redirect_stderr(io.StringIO()) as err: code = main(['run', *words])\n    said.append([code, err.getvalue()])\n"
              "print(json.dumps([said, sorted(sys.modules)]))")
    done = subprocess.run([sys.executable, "-c", script, json.dumps([words for words, _ in asked])], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    said, modules = json.loads(done.stdout)
    for (words, wanted), (code, line) in zip(asked, said, strict=True):
        assert code == 2 and line.startswith("error: ") and line.count("\n") == 1 and wanted in line, (words, code, line)
    assert not SLOW & set(modules) and not runs.exists()


@pytest.mark.parametrize("words", [("-p", "max_steps", "3"), ("-p", "domain", "x", "-p", "max_steps", "3", "-p", "general", "None")])
def test_what_is_right_is_let_through(runs, monkeypatch, words):
    """The notebook is reached: the refusals refuse nothing else."""
    from paleotrain.app import cli
    reached = []
    monkeypatch.setattr("conftest.execute_here", lambda notebook, *_: reached.append(notebook.name) or KeyboardInterrupt())
    assert here("run", "dapt", *words).returncode == 130 and reached == ["run_dapt.ipynb"] and cli.execute.__module__ == "paleotrain.app.cli"
