"""The parameters cell of each run notebook names what its pydantic model names, in the same words."""
import pytest
from conftest import ROOT

from paleotrain.configurations import CONFIGURATIONS
from paleotrain.core import RUN_PARAMETERS


def test_every_run_notebook_is_looked_at():
    assert {path.stem.removeprefix("run_") for path in (ROOT / "nbs").glob("run_*.ipynb")} == set(CONFIGURATIONS)


@pytest.mark.parametrize("phase", CONFIGURATIONS)
def test_parameters_cell_and_model_name_the_same_parameters(phase):
    from papermill.inspection import _infer_parameters
    from papermill.iorw import load_notebook_node
    fields = CONFIGURATIONS[phase].model_fields
    found = _infer_parameters(load_notebook_node(str(ROOT / f"nbs/run_{phase}.ipynb")))
    assert sorted(p.name for p in found) == sorted([*RUN_PARAMETERS, *fields])
    assert {p.name: p.help for p in found if p.name in fields} == {name: field.description for name, field in fields.items()}
