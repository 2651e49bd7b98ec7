"""The parameters cell of each run notebook names what its pydantic model names, in the same words."""
from importlib import import_module

import pytest
from conftest import ROOT

CONFIGS = {"chatdata": "chatdata.ChatdataConfig", "curriculum": "curriculum.CurriculumConfig", "dapt": "dapt.DaptConfig", "domains": "domains.DomainsConfig",
           "evaluate": "evaluate.EvaluateConfig", "generate": "write.GenerateConfig", "prepare": "prepare.PrepareConfig", "pretrain": "pretrain.PretrainConfig",
           "qlora": "domain_sets.QloraConfig", "scaling": "scaling.ScalingConfig", "sft": "sets.SftConfig", "tokenizer": "tokenize.TokenizerConfig"}


def test_every_run_notebook_is_looked_at():
    assert {path.stem.removeprefix("run_") for path in (ROOT / "nbs").glob("run_*.ipynb")} == set(CONFIGS)


@pytest.mark.parametrize("phase", CONFIGS)
def test_parameters_cell_and_model_name_the_same_parameters(phase):
    from papermill.inspection import _infer_parameters
    from papermill.iorw import load_notebook_node

    from paleotrain.core import RUN_PARAMETERS
    module, name = CONFIGS[phase].split(".")
    fields = getattr(import_module(f"paleotrain.{module}"), name).model_fields
    found = _infer_parameters(load_notebook_node(str(ROOT / f"nbs/run_{phase}.ipynb")))
    assert sorted(p.name for p in found) == sorted([*RUN_PARAMETERS, *fields])
    assert {p.name: p.help for p in found if p.name in fields} == {name: field.description for name, field in fields.items()}
