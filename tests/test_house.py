"""The checks of the house can fail: each is shown something wrong."""
import json
import shutil
import subprocess
import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests"))
import house


def copied(tmp_path):
    for name in ("nbs", "paleotrain"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_a_module_edited_by_hand_and_a_ghost_are_found(tmp_path):
    root = copied(tmp_path)
    assert house.modules_out_of_step(root) == []
    with (root / "paleotrain/core/files.py").open("a") as file: file.write("x = 1\n")
    (root / "paleotrain/ghost.py").write_text("")
    assert [line.split()[0] for line in house.modules_out_of_step(root)] == ["paleotrain/core/files.py", "paleotrain/ghost.py"]


def test_an_import_of_a_later_notebook_is_found(tmp_path):
    root = copied(tmp_path)
    assert house.import_order(root / "nbs") == []
    for chapter, line in (("01_core/01_settings", "from paleotrain.runs.directory import Run"), ("09_phases/09_evaluate", "from paleotrain.phases import dapt"),
                          ("10_report/02_summary", "from paleotrain.models.masked import load_mlm")):
        path = root / f"nbs/{chapter}.ipynb"
        notebook = json.loads(path.read_text())
        notebook["cells"].append({"cell_type": "code", "metadata": {}, "source": ["#| export\n", line]})
        path.write_text(json.dumps(notebook))
    assert house.import_order(root / "nbs") == [
        "01_core/01_settings.ipynb imports paleotrain.runs.directory, which does not come before it",
        "09_phases/09_evaluate.ipynb imports paleotrain.phases.dapt, another phase: what two phases need is in phases.scaffold",
        "10_report/02_summary.ipynb imports paleotrain.models.masked: a report reads the files of a run, and nothing that trains"]


def test_a_part_over_its_budget_is_found(tmp_path, monkeypatch):
    module = tmp_path / "one.py"
    module.write_text('"""Words are free."""\n# so are these\ndef f(x):\n    "And these."\n    return x\n')
    assert house.tokens(module) == 8 # def f ( x ) : return x
    assert house.over_budget() == []
    monkeypatch.setitem(house.CEILINGS, "core", 100)
    assert house.over_budget() == [f"paleotrain/core has {house.budget()['core']:,} tokens, more than its ceiling of 100"]


def test_a_dead_link_and_a_chapter_without_one_are_found(tmp_path):
    root = copied(tmp_path)
    for name in ("README.md", "CONTRIBUTING.md", "LOG.md"): shutil.copy2(ROOT / name, tmp_path)
    assert house.dead_links(root) == []
    with (root / "CONTRIBUTING.md").open("a") as file: file.write("[one](nbs/01_core/01_settings.ipynb) [two](nbs/lost.ipynb#part) [three](https://example.org/lost)")
    (root / "nbs/12_app/99_new.ipynb").write_text('{"cells": []}')
    assert house.dead_links(root) == ["CONTRIBUTING.md: the link to nbs/lost.ipynb leads nowhere", "index.ipynb has no link to 12_app/99_new.ipynb"]


def test_links_of_the_index_are_counted_from_the_root_in_the_readme():
    assert "](guide_dapt.ipynb)" in house.text_of(ROOT / "nbs/index.ipynb") and "](nbs/guide_dapt.ipynb)" in house.readme()
    assert "](../LOG.md)" in house.text_of(ROOT / "nbs/index.ipynb") and "](LOG.md)" in house.readme()


def test_every_notebook_is_tested_somewhere():
    assert house.skipped_but_untested() == []
    assert {"01_core/01_settings.ipynb", "09_phases/04_dapt.ipynb", "index.ipynb"} <= house.notebooks_expected()


def test_ruff_reads_notebooks():
    done = subprocess.run([house.BIN / "ruff", "check", "--show-files", "."], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "nbs/01_core/01_settings.ipynb" in done.stdout


LOADED = """import importlib, sys
for module in sys.argv[1:]: importlib.import_module(module)
ours = [name for name in sys.modules if name.startswith("paleotrain.") and name.count(".") == 2]
print(len(ours), *sorted({"torch", "matplotlib", "papermill"} & sys.modules.keys()))"""


def loaded(*modules: str) -> list[str]:
    """How many modules of ours these bring along, and which heavy ones of others."""
    return subprocess.run([sys.executable, "-c", LOADED, *modules], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()


def test_to_read_one_thing_few_modules_are_loaded():
    for module, most in (("paleotrain.chat.conversations", 8), ("paleotrain.training.adapters", 15), ("paleotrain.phases.sft", 30)):
        count, *_ = loaded(module)
        assert int(count) <= most, (module, count)
    assert loaded("paleotrain.chat.conversations")[1:] == []
    assert loaded("paleotrain.app.cli")[1:] == [] # so that --help answers in half a second
    assert "torch" not in loaded(*(f"paleotrain.{house.module_of(chapter)}" for chapter in (ROOT / "nbs/10_report").glob("[0-9]*.ipynb")))
