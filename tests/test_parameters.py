"""The parameters cell of each run notebook names what its pydantic model names, in the same words."""
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
    path.write_text(path.read_text().replace("max_steps: int = None", "max_stesp: int = None"))
    assert house.parameters_out_of_step(write=True) == ["run_dapt.ipynb: its parameters cell is out of step: run tests/house.py --write-parameters"]
    assert house.parameters_out_of_step() == []


@pytest.mark.parametrize("phase", CONFIGURATIONS)
def test_papermill_reads_names_and_descriptions_of_the_model(phase):
    from papermill.inspection import _infer_parameters
    from papermill.iorw import load_notebook_node
    fields = CONFIGURATIONS[phase].model_fields
    found = _infer_parameters(load_notebook_node(str(ROOT / f"nbs/run_{phase}.ipynb")))
    assert sorted(p.name for p in found) == sorted([*RUN_PARAMETERS, *fields])
    assert {p.name: p.help for p in found if p.name in fields} == {name: field.description for name, field in fields.items()}
