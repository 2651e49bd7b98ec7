"""Adapters that were not trained, and others that were, on the same text: what their claims say."""
import json
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import events

ANSWERS = {"rivers": "it is wide and blue", "ice": "it was cut by ice"}
GIVEN = {"domains": list(ANSWERS), "max_seq_length": 48, "per_device_train_batch_size": 8,
         "gradient_accumulation_steps": 1, "max_steps": 24, "eval_steps": 12, "save_steps": 12, "logging_steps": 12,
         "early_stopping_patience": None,
         "precision": "fp32", "device": "cpu", "lora_r": 8, "answer_tokens": 2, "general_words": 2000,
         "gradient_checkpointing": False}


def conversations(name: str, first: int, size: int) -> str:
    """Lines of a prepared split: each a document of its own."""
    def turns(n: int) -> list[dict]:
        return [{"role": "user", "content": f"what is the {name} of {n}?"},
                {"role": "assistant", "content": f"{ANSWERS[name]} {n % 7}"}]
    rows = [{"doc_id": f"{name}:{n}", "source": name, "messages": turns(n)} for n in range(first, first + size)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base of random weights, two domains with 40 test documents each, and general text of more than 20 stretches."""
    import torch

    from paleotrain.models.causal import Shape, new_causal
    from paleotrain.tokenizers.train import train_tokenizer
    place = tmp_path_factory.mktemp("adapters")
    text = ("what is the rivers of ice? it is wide and blue. it was cut by ice. "
            "the general text tells of a valley 0 1 2 3 4 5 6 7 8 9")
    tokenizer = train_tokenizer("bpe_words", [text], 300, min_frequency=1)
    torch.manual_seed(0)
    new_causal("llama", tokenizer, Shape(64, 1, 1), 64).save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for name in ANSWERS:
        (place / "data/sft" / name).mkdir(parents=True)
        for split, first, size in (("train", 0, 64), ("validation", 1000, 20), ("test", 2000, 40)):
            (place / f"data/sft/{name}/{split}.jsonl").write_text(conversations(name, first, size))
    (place / "general").mkdir()
    for n in range(30):
        (place / f"general/{n}.txt").write_text(f"the valley of {n} was wide, and the general text tells of it. " * 4)
    return place


def settings_of(place: Path):
    from paleotrain.core.settings import load_settings
    return replace(load_settings(), root=place, data=place / "data", runs=place / "runs", artifacts=place / "artifacts")


def by_id(claims: list[dict]) -> dict[str, dict]: return {one["id"]: one for one in claims}


def claims_of(place: Path, name: str, **given) -> dict[str, dict[str, dict]]:
    """Train both adapters; the claims of the chain and of each run by id."""
    from paleotrain.core.configurations import DomainsConfig
    from paleotrain.phases.domains import prepare_domains, run_domains
    from paleotrain.runs.session import new_run
    settings = settings_of(place)
    given = GIVEN | {"base_model": str(place / "base"), "general": [str(place / "general")]} | given
    run, config = new_run(place / "runs" / name, "domains", DomainsConfig, given, settings)
    prepare_domains(run, config, settings)
    run_domains(run, config, settings)
    run.lock.release()
    folders = {"domains": run.folder, **{domain: run.folder / "adapters" / domain for domain in ANSWERS}}
    return {kind: by_id(json.loads((folder / "claims.json").read_text())) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def null(place) -> dict: return claims_of(place, "null", learning_rate=1e-9)


@pytest.fixture(scope="module")
def planted(place) -> dict: return claims_of(place, "planted", learning_rate=1e-2)


def seen_before(place: Path) -> dict:
    """One adapter as `planted`, but its base had read the test conversations, and the other set is in training."""
    import shutil

    from paleotrain.phases import qlora
    from paleotrain.core.configurations import QloraConfig
    from paleotrain.core.files import sha256_file
    from paleotrain.phases.qlora import judge_qlora
    from paleotrain.runs.session import new_run
    settings = settings_of(place)
    shutil.copytree(place / "base", place / "known/model")
    read = place / "data/sft/rivers/test.jsonl"
    entry = {"role": "data", "path": "gone.jsonl", "sha256": sha256_file(read)} # its own copy is not there any more
    (place / "known/manifest.json").write_text(json.dumps({"inputs": [entry]}))
    (place / "streams").mkdir()
    (place / "streams/test.jsonl").write_text(conversations("rivers", 0, 40).replace("what is the", "What is  the"))
    given = {name: value for name, value in GIVEN.items() if name != "domains"}
    given |= {"domain": "rivers", "learning_rate": 1e-2}
    given |= {"base_model": str(place / "known/model"), "others": [str(place / "streams")]}
    run, config = new_run(place / "runs/seen", "qlora", QloraConfig, given, settings)
    data = qlora.prepare(run, config, settings)
    warned = [one["message"] for one in events(run.folder) if one["kind"] == "warning"]
    loaded, config = qlora.load(run, config, data, settings)
    plan, mix = qlora.plan_qlora(run, config, data, loaded)
    claims = judge_qlora(run, config, data, loaded, qlora.train_qlora(run, config, loaded, data, plan, mix), settings)
    run.lock.release()
    return {"warned": warned, **by_id(claims)}


def of_about(found: dict, about: str) -> list[tuple[str, dict]]:
    named = [(f"{kind}: {id}", one) for kind, claims in found.items() for id, one in claims.items()]
    return [(name, one) for name, one in named if one["about"] == about]


def test_an_untrained_adapter_has_learned_and_forgotten_nothing(null):
    learning, forgetting = of_about(null, "learning"), of_about(null, "forgetting")
    assert {name: one["verdict"] for name, one in learning} == dict.fromkeys(dict(learning), "FAIL"), learning
    assert {name: one["verdict"] for name, one in forgetting} == dict.fromkeys(dict(forgetting), "PASS"), forgetting
    assert (len(learning), len(forgetting)) == (2 + 2 * 2, 2 + 2)


def test_a_trained_adapter_on_the_same_text_passes(planted):
    learning = of_about(planted, "learning")
    assert {name: one["verdict"] for name, one in learning} == dict.fromkeys(dict(learning), "PASS"), learning
    assert {one["verdict"] for _, one in of_about(planted, "forgetting")} <= {"PASS", "FAIL"}


def test_every_claim_names_its_pair_and_has_documents_to_be_decided_by(null, planted):
    for found in (null, planted):
        for name, one in [*of_about(found, "learning"), *of_about(found, "forgetting")]:
            assert one["pair"] == "before to after", name
            assert one["units"] >= 20 if "adapter_trained" not in name else one["n"] > 0, name
        assert all(one["pair"] == "" for _, one in of_about(found, "property"))


def test_text_that_was_read_before_is_told_and_never_passes(place):
    found = seen_before(place)
    said = ("the base was itself trained on 40 of the 40 documents of test",
            "the training conversations say nearly the same as 40 of the 40 documents of streams")
    assert found["warned"] == [f"{why}: no verdict is given on it" for why in said]
    for id in ("adapter_beats_base", "cross_domain_forgetting"):
        assert (found[id]["verdict"], found[id]["points_to"]) == ("INCONCLUSIVE", "PASS"), found[id]
        assert "40 of the 40 documents" in found[id]["note"]
