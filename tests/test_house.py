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
    with (root / "paleotrain/core.py").open("a") as file: file.write("x = 1\n")
    (root / "paleotrain/ghost.py").write_text("")
    assert [line.split()[0] for line in house.modules_out_of_step(root)] == ["paleotrain/core.py", "paleotrain/ghost.py"]


def test_an_import_of_a_later_notebook_is_found(tmp_path):
    root = copied(tmp_path)
    assert house.import_order(root / "nbs") == []
    path = root / "nbs/00_core.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"].append({"cell_type": "code", "metadata": {}, "source": ["#| export\n", "from paleotrain.runs import Run"]})
    path.write_text(json.dumps(notebook))
    assert house.import_order(root / "nbs") == ["00_core.ipynb imports paleotrain.runs, which does not come before it"]


def test_a_dead_link_and_a_chapter_without_one_are_found(tmp_path):
    root = copied(tmp_path)
    for name in ("README.md", "CONTRIBUTING.md", "LOG.md"): shutil.copy2(ROOT / name, tmp_path)
    assert house.dead_links(root) == []
    with (root / "CONTRIBUTING.md").open("a") as file: file.write("[one](nbs/00_core.ipynb) [two](nbs/lost.ipynb#part) [three](https://example.org/lost)")
    (root / "nbs/99_new.ipynb").write_text('{"cells": []}')
    assert house.dead_links(root) == ["CONTRIBUTING.md: the link to nbs/lost.ipynb leads nowhere", "index.ipynb has no link to 99_new.ipynb"]


def test_links_of_the_index_are_counted_from_the_root_in_the_readme():
    assert "](guide_dapt.ipynb)" in house.text_of(ROOT / "nbs/index.ipynb") and "](nbs/guide_dapt.ipynb)" in house.readme()
    assert "](../LOG.md)" in house.text_of(ROOT / "nbs/index.ipynb") and "](LOG.md)" in house.readme()


def test_every_notebook_is_tested_somewhere():
    assert house.skipped_but_untested() == []
    assert {"00_core.ipynb", "08_dapt.ipynb", "index.ipynb"} <= house.notebooks_expected()


def test_ruff_reads_notebooks():
    done = subprocess.run([house.BIN / "ruff", "check", "--show-files", "."], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "nbs/00_core.ipynb" in done.stdout
