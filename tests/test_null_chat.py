"""Chat phases and their chain where nothing can be learned, where something is, and where all was known before.

A learning rate of 1e-9 passes no claim about learning and fails none about forgetting.
"""
import json
import os
from pathlib import Path

import pytest
import yaml
from test_sft import WORDS, lesson, prompts, saved_base

NOTHING = {"learning_rate": 1e-9, "max_steps": 2}
SOMETHING = {"learning_rate": 1e-2, "max_steps": 40}
TRAIN = {"max_seq_length": 32, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 64, "eval_steps": 20, "save_steps": 20,
         "logging_steps": 5, "early_stopping_patience": None, "precision": "fp32", "device": "cpu", "answer_tokens": 4, "eval_items": 40,
         "after_steps": 1000, "target_exact": .9, "general_words": 500}
MANY = 520 # prompts: copying wants 500, and 368 right answers of 368 show a share of 99 %
ALL = ["exact_match", "held_out_loss", "tag_validity", "stop_rate"]
CHAIN = ("reference_prompts", "gibberish_exact_match", "gates")
LEARNED = {"alpha": ALL, "beta": ALL[:2]} # alpha has taught beta's tags


def answered(file: Path, answer: str) -> Path:
    """The conversations or prompts of a file with one answer to each."""
    text = file.read_text()
    rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    for row in rows:
        if "answer" in row: row["answer"] = answer
        else: row["messages"][-1]["content"] = answer
    file.write_text(json.dumps(rows) if file.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base of a few thousand parameters, two lessons with 300 conversations and 520 prompts each, general text of 25 documents."""
    folder = tmp_path_factory.mktemp("null")
    saved_base(folder / "base")
    for name, verb, answer in (("alpha", "Say", "two"), ("beta", "Repeat", "red")):
        answered(lesson(folder / f"{name}.jsonl", verb, WORDS[:300], name), answer)
        answered(prompts(folder / f"{name}.json", verb, WORDS[300:300 + MANY]), answer)
    pages = [{"text": f"The river is {word} and {word[::-1]}. " * 12} for word in WORDS[:25]]
    (folder / "general.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    before = {name: os.environ.get(name) for name in ("PALEOTRAIN_RUNS", "PALEOTRAIN_PRESET")}
    os.environ |= {"PALEOTRAIN_RUNS": str(folder / "runs"), "PALEOTRAIN_PRESET": "demo"}
    yield folder
    for name, value in before.items(): os.environ.pop(name) if value is None else os.environ.update({name: value})


def chain(place: Path, base: Path, train: dict, gates: dict) -> tuple[Path, dict[str, dict]]:
    """A chain of both lessons to its end, in this process; its run, and claims by `chain` or phase and by id."""
    from paleotrain.core.settings import load_settings
    from paleotrain.phases.curriculum import CurriculumConfig, prepare_chain, run_chain
    from paleotrain.runs.session import open_run
    def phase(name: str, **more) -> dict:
        data = {"files": [str(place / f"{name}.jsonl")], "evaluation": [str(place / f"{name}.json")]}
        return {"name": name, "data": data, "gates": gates} | more
    phases = [phase("alpha"), phase("beta", claim="gibberish", replay={"from": ["alpha"], "share": .4})]
    told = {"name": "two lessons", "reference": [{"prompt": "Repeat the river", "answer": "red"}], "phases": phases,
            "train": TRAIN | train | {"general": [str(place / "general.jsonl")]}}
    file = place / f"{base.name}-{train['max_steps']}.yaml"
    file.write_text(yaml.safe_dump(told))
    given = {"chain": str(file), "base_model": str(base)}
    run, config = open_run("curriculum", CurriculumConfig, given, load_settings())
    course, _ = prepare_chain(run, config, load_settings())
    run_chain(run, config, course, load_settings())
    places = {"chain": run.folder, "alpha": run.folder / "phases/alpha", "beta": run.folder / "phases/beta"}
    claims = {name: json.loads((part / "claims.json").read_text()) for name, part in places.items()}
    return run.folder, {name: {c["id"]: c for c in own} for name, own in claims.items()}


@pytest.fixture(scope="module")
def null(place): return chain(place, place / "base", NOTHING, {})[1]


@pytest.fixture(scope="module")
def taught(place): return chain(place, place / "base", SOMETHING, {"exact": .9, "valid": .9})


@pytest.fixture(scope="module")
def known(place, taught): return chain(place, taught[0] / "model", NOTHING, {"exact": .9, "valid": .9})[1]


def about(claims: dict[str, dict], what: str) -> dict[str, str]:
    """Verdicts of the claims about something, by part and id."""
    every = [(part, c) for part, own in claims.items() for c in own.values()]
    return {f"{part}: {c['id']}": c["verdict"] for part, c in every if c["about"] == what}


def test_nothing_learned_passes_no_claim(null):
    verdicts = about(null, "learning")
    assert set(verdicts.values()) == {"FAIL"}, verdicts # decided, all of them: there are prompts enough
    assert len(verdicts) == 2 * 4 + 2
    assert "FAIL" not in about(null, "forgetting").values(), about(null, "forgetting")
    assert [null[name]["general_text"]["verdict"] for name in ("alpha", "beta")] == ["PASS"] * 2
    assert [null[name]["general_text"]["change"] for name in ("alpha", "beta")] == pytest.approx([0, 0], abs=1e-6)
    nothing = "no prompt of an earlier phase was answered exactly before: there was nothing to forget"
    assert {null[name]["forgetting_points"]["note"] for name in null} == {nothing} # and nothing passes on nothing


def test_something_learned_passes_on_the_same_text(taught):
    _, claims = taught
    for part, names in LEARNED.items():
        assert {name: claims[part][name]["verdict"] for name in names} == dict.fromkeys(names, "PASS"), claims[part]
        exact = claims[part]["exact_match"]
        assert exact["baseline"] < .1 and exact["note"] == "520 answers; 40 of these prompts chose the checkpoint too"
        assert claims[part]["held_out_loss"]["change"] < -.5 and claims[part]["held_out_loss"]["units"] >= 20
    assert {name: claims["chain"][name]["verdict"] for name in CHAIN} == dict.fromkeys(CHAIN, "PASS")
    assert claims["chain"]["gates"]["note"] == "beta: valid was met before the phase began"


def test_what_was_known_was_not_learned(known):
    for part in ("alpha", "beta"):
        for name in ("exact_match", "tag_validity", "stop_rate"):
            claim = known[part][name]
            assert claim["verdict"] == "BEFORE TRAINING" and claim["note"].startswith("held before training"), claim
        assert known[part]["held_out_loss"]["verdict"] == "FAIL"
    assert {name: known["chain"][name]["verdict"] for name in CHAIN} == dict.fromkeys(CHAIN, "BEFORE TRAINING")
    assert known["chain"]["gates"]["note"].count("met before the phase began") == 4
    assert "FAIL" not in about(known, "forgetting").values(), about(known, "forgetting")
    assert known["chain"]["forgetting_points"]["verdict"] == known["beta"]["forgetting_points"]["verdict"] == "PASS"
