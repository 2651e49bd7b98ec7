"""Models from scratch, or from a base: with a learning rate of next to nothing no claim about learning passes; on a text that can be learned they do."""
import json
import random

import pytest
from conftest import table

from paleotrain.core.settings import load_settings
from paleotrain.core.files import read_json, write_json
from paleotrain.runs.session import leave_run, open_run

NULL = {"learning_rate": 1e-9, "max_steps": 2, "eval_steps": 1, "save_steps": 1}
SMALL = {"test_fraction": 0.4, "validation_fraction": 0.3, "max_seq_length": 32, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1,
         "early_stopping_patience": None, "precision": "fp32", "device": "cpu", "eval_words": 200, "test_words": 1500, "warmup_steps": 0.1, "seed": 5}
WORDS = "red stone holds grey shell under soft mud near old reef below hard chalk beside thin coral over warm clay".split()


def written(place, steps: tuple[int, ...], seed: int = 0) -> str:
    """Two hundred documents of some thirty words; each word is followed by the one so many places on in the list, drawn from `steps`."""
    draw, documents = random.Random(seed), []
    for _ in range(200):
        at = [draw.randrange(len(WORDS))]
        for _ in range(draw.randrange(24, 36)): at.append((at[-1] + draw.choice(steps)) % len(WORDS))
        documents.append(" ".join(WORDS[k] for k in at))
    place.write_text("".join(json.dumps({"doc_id": f"d{i}", "text": one}) + "\n" for i, one in enumerate(documents)))
    return str(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("text")


def pretrained(**given) -> dict:
    """A pretraining from its text to its claims, by id."""
    from paleotrain.phases import pretrain_causal
    from paleotrain.phases import pretrain_masked
    from paleotrain.core.configurations import PretrainConfig
    phase, settings = pretrain_masked if given["family"] == "deberta" else pretrain_causal, load_settings()
    run, config = open_run("pretrain", PretrainConfig, SMALL | given, settings)
    data = phase.prepare(run, config, settings)
    loaded = phase.load_or_make(run, config, data, settings)
    plan, mix, collate, config = phase.plan_pretrain(run, config, data, loaded, settings)
    claims = phase.judge_pretrain(run, config, data, phase.train_pretrain(run, config, loaded, data, plan, mix, collate))
    leave_run()
    return {claim["id"]: claim for claim in claims} | {"model": str(run.folder / "model")}


MASKED = {"family": "deberta", "vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
CAUSAL = {"family": "llama", "tokenizer": "bpe", "vocab_size": 330, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "sample_tokens": 4}
LEARNS = {"deberta": {"learning_rate": 5e-3, "max_steps": 120, "eval_steps": 60, "save_steps": 60},
          "llama": {"learning_rate": 5e-3, "max_steps": 80, "eval_steps": 40, "save_steps": 40}}


def learned(claims: dict) -> dict:
    """The verdicts on what was learned; each of them has text enough to be decided."""
    found = {name: claim for name, claim in claims.items() if name != "model" and claim["about"] == "learning"}
    assert all(claim["units"] >= 20 for claim in found.values())
    return {name: claim["verdict"] for name, claim in found.items()}


@pytest.mark.parametrize("model", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_pretraining(runs, folder, model):
    """From scratch, and on from a base that has learned the language of a text, another language, or the text itself."""
    family = model["family"]
    ids = ["domain"] if family == "deberta" else ["validation_nats_per_character", "bits_per_byte"]
    first, same, other = (written(folder / f"{family}-{name}.jsonl", step, seed) for name, step, seed in (("a", (1,), 0), ("b", (1,), 1), ("c", (3,), 2)))
    assert learned(pretrained(corpus=first, **model | NULL)) == dict.fromkeys(ids, "FAIL")
    planted = pretrained(corpus=first, **model | LEARNS[family])
    assert learned(planted) == dict.fromkeys(ids, "PASS")
    on = {"base_model": planted["model"], "family": family}
    held = learned(pretrained(corpus=same, **on | NULL))
    assert held == dict.fromkeys(ids, "BEFORE TRAINING") | {"improvement": "FAIL"}
    better = learned(pretrained(corpus=other, **on | LEARNS[family]))
    assert better == dict.fromkeys([*ids, "improvement"], "PASS")
    for rate in (NULL, LEARNS[family]):
        seen = pretrained(corpus=first, **on | rate | {"max_steps": 2, "eval_steps": 1, "save_steps": 1})
        assert set(learned(seen).values()) == {"INCONCLUSIVE"} and "the base model was itself trained on" in seen["improvement"]["note"]


LADDER = {"rungs": "llama bpe 15k;llama bpe 60k;llama bpe 240k", "seeds": 3, "vocab_size": 330, "max_seq_length": 32, "per_device_train_batch_size": 16,
          "test_fraction": 0.4, "validation_fraction": 0.25, "eval_words": 200, "test_words": 1500, "evaluations": 1, "precision": "fp32", "device": "cpu"}


def climbed(**given):
    """A ladder from its text to its claims, by id, with its run and configuration."""
    from paleotrain.core.configurations import ScalingConfig
    from paleotrain.phases.scaling import climb, prepare_ladder
    run, config = open_run("scaling", ScalingConfig, given if "resume" in given else LADDER | given, load_settings())
    prepare_ladder(run, config, load_settings())
    return {claim["id"]: claim for claim in climb(run, config, load_settings())}, run, config


def test_scaling(runs, folder, monkeypatch, capsys):
    """Nine trainings that learn nothing, and nine in which the larger models learn faster; one training of each decides nothing."""
    from paleotrain.phases import pretrain_causal
    from paleotrain.phases.scaling import ladder_claims, ladder_tables, settle_exponent, settle_size
    monkeypatch.setattr(pretrain_causal, "draw_samples", lambda *_: []) # they take most of the time
    text = written(folder / "ladder.jsonl", (1, 7))
    nothing, _, _ = climbed(corpus=text, learning_rate=1e-9, tokens=512)
    assert set(learned(nothing).values()) == {"FAIL"} and set(nothing) - set(learned(nothing)) == {"matched"}
    planted, run, config = climbed(corpus=text, learning_rate=2e-3, tokens=12_000)
    sizes = [planted["bigger_is_better"], planted["exponent"]]
    assert [claim["verdict"] for claim in sizes] == ["PASS", "PASS"] and sizes[0]["change_high"] < -0.1 and sizes[1]["low"] > 0.05
    assert {path.name for path in run.folder.glob("rungs*")} == {"rungs", "rungs-seed-43", "rungs-seed-44"}
    assert [row["seeds"] for row in table(run.folder, "ladder")] == ["3"] * 3
    held = {json.loads(path.read_text())["data"]["splits"]["test"]["words"] for path in run.folder.glob("rungs*/*/manifest.json")}
    assert len(held) == 1 # all on the same text
    capsys.readouterr()
    write_json(run.folder / "manifest.json", read_json(run.folder / "manifest.json") | {"terminal": None}) # as if it had been killed at the end
    again, run, config = climbed(resume=run.folder.name)
    assert capsys.readouterr().out.count("has finished before") == 9 and again == planted
    claims, once = ladder_claims(config.ladder, None), ladder_tables(run, config.ladder, config.seed)
    settle_size(claims, once, ("llama-bpe-15k", "llama-bpe-240k"), "documents")
    settle_exponent(claims, once, ("llama", "bpe"), "documents")
    assert [(claim["verdict"], claim["points_to"]) for claim in claims[:2]] == [("INCONCLUSIVE", "PASS")] * 2
    leave_run()
