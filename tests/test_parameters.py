"""The parameters cell of each run notebook names what its pydantic model names, in the same words."""
import json
import shutil
import sys

import pytest
from conftest import ROOT

from paleotrain.core.configurations import CONFIGURATIONS
from paleotrain.core.config import RUN_PARAMETERS

sys.path.insert(0, str(ROOT / "tests"))
import house


def test_every_run_notebook_is_looked_at():
    assert {path.stem.removeprefix("run_") for path in (ROOT / "nbs").glob("run_*.ipynb")} == set(CONFIGURATIONS)


def test_every_parameters_cell_is_made_of_its_configuration_and_a_changed_one_is_found(tmp_path, monkeypatch):
    assert house.parameters_out_of_step() == []
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    monkeypatch.setattr(house, "ROOT", tmp_path)
    path = tmp_path / "nbs/run_dapt.ipynb"
    path.write_text(path.read_text().replace("max_steps: int = None", "max_stesp: int = None").replace("adam_beta1: float", "adam_beta: float"))
    assert house.parameters_out_of_step(write=True) == ["run_dapt.ipynb: its parameters cell is out of step: run tests/house.py --write-parameters"]
    assert house.parameters_out_of_step() == []


def test_a_run_notebook_without_parameters_or_configuration_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    monkeypatch.setattr(house, "ROOT", tmp_path)
    cell = {"cell_type": "code", "id": "one", "metadata": {}, "source": [], "outputs": [], "execution_count": None}
    for name in ("run_dapt", "run_wordcount"): (tmp_path / f"nbs/{name}.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert house.parameters_out_of_step() == ["run_dapt.ipynb: its parameters are not known: give a code cell the tag parameters",
                                              "run_wordcount.ipynb: its parameters are not known: enter wordcount in CONFIGURATIONS of "
                                              "01_core/04_configurations, and nbdev-export"]


@pytest.mark.parametrize("phase", CONFIGURATIONS)
def test_what_matters_first_is_shown_and_what_papermill_sets_wins(phase):
    cells, config = house.parameters_cells(phase), CONFIGURATIONS[phase]
    assert len(cells.get("first", cells["parameters"]).split("\n")) <= 18 and set(config.FIRST) <= set(config.model_fields)
    names: dict = {}
    if "first" in cells: exec(cells["first"].replace("seed: int = None", "seed: int = 7"), names) # as a user writes it there
    exec(cells["parameters"], names)
    assert names["seed"] == (7 if "first" in cells else None) and {*RUN_PARAMETERS, *config.model_fields} <= names.keys()


@pytest.mark.parametrize("phase", CONFIGURATIONS)
def test_papermill_reads_names_and_descriptions_of_the_model(phase):
    from papermill.inspection import _infer_parameters
    from papermill.iorw import load_notebook_node
    fields = CONFIGURATIONS[phase].model_fields
    found = _infer_parameters(load_notebook_node(str(ROOT / f"nbs/run_{phase}.ipynb")))
    assert sorted(p.name for p in found) == sorted([*RUN_PARAMETERS, *fields])
    assert {p.name: p.help for p in found if p.name in fields} == {name: field.description for name, field in fields.items()}
