"""run_curriculum.ipynb and its report end to end: micro phases, one of them changed, a killed chain, a missed gate, and what is refused."""
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, events, here, killed_at, only_run, options, table

from paleotrain.core.settings import UserError, load_settings
from paleotrain.core.files import sha256_file
from paleotrain.models.locate import model_hash

TRAIN = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "max_seq_length": 256, "learning_rate": 1e-3,
         "eval_items": 4, "answer_tokens": 6, "early_stopping_patience": None, "after_steps": 1000, "too_long": "shorten"}
CHAIN = {"name": "three micro phases", "system": "Be brief.", "reference": [{"prompt": "Say hello.", "answer": "hello."}], "train": TRAIN, "phases": [
    {"name": "alpha", "data": {"generator": "format_lock", "mode": "minimal", "max_examples": 60, "evaluation": 10}, "gates": {"exact": 0}},
    {"name": "beta", "data": {"generator": "echo", "gibberish": "exclude", "max_examples": 60, "evaluation": 10}, "replay": {"from": ["alpha"], "share": 0.2},
     "gates": {"valid": 0}},
    {"name": "gamma", "data": {"generator": "echo", "gibberish": "only", "max_examples": 60, "evaluation": 10},
     "replay": {"from": ["alpha", "beta"], "share": 0.2}, "gates": {"exact": 0, "forgetting": 100}}]}


def weights(folder: Path) -> str:
    return sha256_file(folder / "model/model.safetensors")


def write_chain(place: Path, **phases: dict) -> Path:
    """The chain with some fields of some phases replaced, as a file."""
    chain = json.loads(json.dumps(CHAIN))
    for phase in chain["phases"]: phase.update(phases.get(phase["name"], {}))
    file = place / f"chain-{len(list(place.glob('chain-*')))}.yaml"
    file.write_text(yaml.safe_dump(chain))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base of one layer, its tokenizer trained on the spot."""
    from paleotrain.models.causal import Shape, new_causal
    from paleotrain.core.files import set_seed
    from paleotrain.tokenizers.train import train_tokenizer
    folder = tmp_path_factory.mktemp("curriculum")
    set_seed(1)
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data/sample").rglob("*.jsonl"))]
    tokenizer = train_tokenizer("bpe_words", texts, 400)
    new_causal("llama", tokenizer, Shape(32, 1, 2), 256).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def in_place(place):
    """The runs of this file lie in one folder, so that a chain finds what another has finished."""
    before = {name: os.environ.get(name) for name in ("PALEOTRAIN_RUNS", "PALEOTRAIN_PRESET")}
    os.environ |= {"PALEOTRAIN_RUNS": str(place / "runs"), "PALEOTRAIN_PRESET": "demo"}
    yield place
    for name, value in before.items(): os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def taught(in_place):
    """One whole chain, by the command."""
    done = here("run", "curriculum", "-p", "chain", str(write_chain(in_place)), "-p", "base_model", str(in_place / "base"))
    assert done.returncode == 0, done.stderr[-3000:]
    return only_run(in_place / "runs"), done


def begun(**given):
    """Open a run of the curriculum in this process and read its chain."""
    from paleotrain.phases.curriculum import CurriculumConfig, prepare_chain
    from paleotrain.runs.session import open_run
    run, config = open_run("curriculum", CurriculumConfig, {name: str(value) for name, value in given.items()}, load_settings())
    return run, config, prepare_chain(run, config, load_settings())[0]


def learn(**given) -> Path:
    """A chain to its end, in this process: the command adds nothing but seconds."""
    from paleotrain.phases.curriculum import run_chain
    run, config, course = begun(**given)
    run_chain(run, config, course, load_settings())
    return run.folder


def test_three_phases_and_what_they_come_to(taught):
    folder, done = taught
    status = [e["status"] for e in events(folder) if e["kind"] == "status"]
    assert status == ["started", "claims", "phase", "phase", "phase", "finished"] # promised before the first phase trains
    told = [line for line in done.stdout.splitlines() if line.startswith(("phase ", "  gate "))]
    assert told[0] == "phase 1 of 3: alpha, from base" and told[2] == "phase 2 of 3: beta, from alpha" and told[1].startswith("  gate held: exact ")
    for name in ("alpha", "beta", "gamma"):
        assert {p.name for p in (folder / "data" / name).iterdir()} == {"examples.jsonl", "evaluation.json", "manifest.json"}
        inner = json.loads((folder / "phases" / name / "manifest.json").read_text())
        assert inner["run_id"] == f"{folder.name}/phases/{name}" and inner["report"] == "sft" and inner["terminal"]["steps"] == 6
    matrix = [(row["after"], row["set"]) for row in table(folder, "matrix")]
    assert matrix == [("base", "alpha"), ("base", "beta"), ("base", "gamma"), ("alpha", "alpha"), ("beta", "alpha"), ("beta", "beta"),
                      ("gamma", "alpha"), ("gamma", "beta"), ("gamma", "gamma")]
    assert [row["exact"] for row in table(folder, "matrix")[:3]] == ["", "", ""]


def test_figures_are_those_of_the_phases_own_runs(taught):
    """Counted anew from every answer, not read from the tables that the matrix is made of."""
    folder, _ = taught
    for row in table(folder, "matrix")[3:]:
        answers = [a for a in table(folder / "phases" / row["after"], "answers") if a["set"] == row["set"]]
        assert len(answers) == float(row["n"]) == 10
        assert float(row["exact"]) == sum(a["expected"] == a["answer"] for a in answers) / len(answers)
    for row, name, start in zip(table(folder, "phases"), ("alpha", "beta", "gamma"), ("base", "alpha", "beta"), strict=True):
        assert (row["phase"], row["start"], row["steps"], row["reused_from"], row["red_line"], row["gates"]) == (name, start, "6", "", "", "held")
        share = row["replay_share"]
        assert share == "" if name == "alpha" else abs(float(share) - 0.2) < 0.05
    parents = [json.loads((folder / f"phases/{name}/manifest.json").read_text())["parent"]["sha256"] for name in ("beta", "gamma")]
    assert parents == [model_hash(folder / f"phases/{name}/model") for name in ("alpha", "beta")]


def test_claims_samples_model_and_report(taught):
    folder, done = taught
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert list(claims) == ["reference_prompts", "gibberish_exact_match", "forgetting_points", "no_red_line", "gates", "training_time"]
    assert [claims[name]["verdict"] for name in ("no_red_line", "gates", "training_time")] == ["NOT RUN", "BEFORE TRAINING", "PASS"]
    assert claims["gates"]["note"].count("was met before the phase began") == 3 # a share of 0 is met by anything
    assert claims["no_red_line"]["note"] == ", ".join(f"{name} not looked at before step 1,000" for name in ("alpha", "beta", "gamma")) # of six steps
    assert json.loads((folder / "manifest.json").read_text())["terminal"]["seconds"] == pytest.approx(60 * claims["training_time"]["value"], abs=.06)
    assert claims["gibberish_exact_match"]["note"] == "too few answers (10): points to FAIL" # six steps teach nobody to copy
    (sample,) = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert (sample["prompt"], sample["expected"], list(sample["answers"])) == ("Say hello.", "hello.", ["base", "alpha", "beta", "gamma"])
    assert weights(folder) == weights(folder / "phases/gamma") != weights(folder / "phases/beta")
    from paleotrain.models.causal import load_causal
    from paleotrain.chat.template import has_chat
    assert has_chat(load_causal(folder / "model").tokenizer)
    assert (folder / "report.html").exists() and str(folder / "report.html") in done.stdout


def test_one_phase_changed_trains_it_and_what_follows(taught, in_place):
    """Another learning rate in beta: alpha is taken over, beta and gamma are trained; then the changed chain anew, and nothing trains."""
    first, _ = taught
    chain = write_chain(in_place, beta={"train": {"learning_rate": 5e-4}})
    second = learn(chain=chain, base_model=in_place / "base")
    assert [row["reused_from"] for row in table(second, "phases")] == [f"{first.name}/phases/alpha", "", ""]
    assert weights(second / "phases/alpha") == weights(first / "phases/alpha")
    assert (second / "phases/alpha/events.jsonl").read_bytes() == (first / "phases/alpha/events.jsonl").read_bytes() # no event of its own: nothing trained
    for name in ("beta", "gamma"): assert weights(second / "phases" / name) != weights(first / "phases" / name)
    third = learn(chain=chain, base_model=in_place / "base")
    assert [e["status"] for e in events(third) if e["kind"] == "status"] == ["started", "claims", "reused", "reused", "reused", "finished"]
    assert [row["reused_from"] for row in table(third, "phases")] == [f"{first.name}/phases/alpha", f"{second.name}/phases/beta", f"{second.name}/phases/gamma"]
    assert weights(third) == weights(second) and table(third, "matrix") == table(second, "matrix")
    spent = {c["id"]: c for c in json.loads((third / "claims.json").read_text())}["training_time"]
    assert spent["note"] == "3 phases taken over, with their minutes there"
    assert json.loads((third / "manifest.json").read_text())["terminal"]["seconds"] == pytest.approx(60 * spent["value"], abs=.06)


def test_a_missed_gate_ends_the_chain(taught, in_place):
    """Gates are no part of a key, so alpha is taken over and judged by the new one."""
    chain = write_chain(in_place, alpha={"gates": {"exact": 1.0}})
    before = set((in_place / "runs").iterdir())
    done = here("run", "curriculum", "-p", "chain", str(chain), "-p", "base_model", str(in_place / "base"))
    (folder,) = set((in_place / "runs").iterdir()) - before
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"error: phase alpha missed its gate: exact [\d.]+, at least 1 wanted \(n = 10\)", said), done.stderr[-2000:]
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert claims["gates"]["verdict"] == "FAIL" and {claims[name]["verdict"] for name in claims if name != "gates"} == {"NOT RUN"}
    assert claims["no_red_line"]["note"] == "not reached: beta, gamma" and "gates" in done.stdout
    assert (folder / "report.html").exists() and not (folder / "phases/beta").exists() and not (folder / "model").exists()
    assert json.loads((folder / "manifest.json").read_text())["terminal"]["status"] == "failed"


def test_a_killed_chain_goes_on_inside_its_phase(taught, in_place, tmp_path, monkeypatch):
    """kill -9 while beta trains: alpha is left alone, beta goes on from its checkpoint, and the end is that of a chain nobody disturbed."""
    runs = tmp_path / "runs" # of its own, so that nothing is taken over
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(runs))
    given = options({"chain": write_chain(in_place), "base_model": in_place / "base"})
    folder = killed_at("*/phases/beta/checkpoints/step-*[1-9]/checkpoint.json", runs, "run", "curriculum", *given)
    from paleotrain.runs.directory import derive_status
    assert [derive_status(folder / part) for part in (".", "phases/alpha", "phases/beta")] == ["interrupted", "finished", "interrupted"]
    alpha = (folder / "phases/alpha/manifest.json").read_bytes()
    done = here("run", "curriculum", "--resume", folder.name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "phase 1 of 3: alpha has finished before" in done.stdout and (folder / "phases/alpha/manifest.json").read_bytes() == alpha
    attempts = json.loads((folder / "phases/beta/manifest.json").read_text())["attempts"]
    assert len(attempts) == 2 and attempts[1]["from_step"] in (2, 4)
    steps = [e["step"] for e in events(folder / "phases/beta") if e["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    for name in ("alpha", "beta", "gamma"): assert weights(folder / "phases" / name) == weights(taught[0] / "phases" / name)


def test_no_reference_string_stands_in_any_training_file():
    """All that the generators can write, and the seven prompts of the chain that ships."""
    from paleotrain.chat.copying import echo
    from paleotrain.chat.format_lock import format_lock
    from paleotrain.chat.knowledge import knowledge
    chain = yaml.safe_load((ROOT / "nbs/chains/small.yaml").read_text(encoding="utf-8"))
    prompts = [entry["prompt"] for entry in chain["reference"]]
    assert len(prompts) == 7 and chain["system"].startswith("You are MyPT.")
    made = [echo(kind)[0] for kind in ("include", "exclude", "only")] + [knowledge()[0]]
    made += [format_lock(mode, math)[0] for mode in ("full", "minimal") for math in ("include", "exclude", "only")]
    said = "\n".join(message["content"] for rows in made for row in rows for message in row.messages)
    assert len(said) > 100_000 and not [prompt for prompt in prompts if prompt in said]


@pytest.mark.parametrize(("changes", "given", "said"), [
    ({"beta": {"start": "alfa"}}, {}, "phases.beta.start: no phase 'alfa'; did you mean alpha?"),
    ({"beta": {"replay": {"from": ["gamma"], "share": .2}}}, {}, "phases.beta.replay.from: 'gamma' comes later; choose from alpha"),
    ({"gamma": {"train": {"max_stesp": 9}}}, {}, "phases.gamma.train.max_stesp: no such field; did you mean max_steps?"),
    ({"gamma": {"train": {"tracker_tags": [None]}}}, {}, "phases.gamma.train.tracker_tags.1: Input should be a valid string, found None"),
    ({"gamma": {True: "x"}}, {}, "phases.gamma: True is no name of a field; write names as text"), # `true: x` in the file
    ({"gamma": {"gates": {"strict": .5}}}, {}, "phases.gamma.gates.strict: none of its prompts can be judged by it: none has checks; leave it out"),
    ({"beta": {"replay": {"from": ["alpha"], "share": .9}}}, {}, "phases.beta: replay: a share of 90.0% asked, and the sources fill "),
    ({}, {"until": "delta"}, "until: no phase 'delta' in "),
    ({}, {"base_model": ""}, "base_model: not named"),
    ({"alpha": {"data": {"files": ["no.jsonl"], "evaluation": ["no.json"]}}}, {}, "no.jsonl"),
])
def test_bad_chains_are_refused_in_one_line(runs, place, changes, given, said):
    """Before anything trains; the chain, its data and the place of the base are read first."""
    from paleotrain.runs.session import leave_run
    with pytest.raises(UserError, match=re.escape(said)) as refusal: begun(chain=write_chain(place, **changes), **{"base_model": place / "base"} | given)
    leave_run()
    assert "\n" not in str(refusal.value) and not list(runs.glob("*/phases"))


def test_a_reference_prompt_in_the_data_is_refused(runs, place, tmp_path):
    from paleotrain.runs.session import leave_run
    turns = [{"role": "user", "content": "Now say this: Say hello."}, {"role": "assistant", "content": "hello."}]
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "own.json").write_text(json.dumps([{"id": "1", "prompt": "Say cat.", "answer": "cat."}]))
    chain = write_chain(place, alpha={"data": {"files": [str(tmp_path / "own.jsonl")], "evaluation": [str(tmp_path / "own.json")]}})
    said = re.escape("data/alpha/examples.jsonl:1: holds the reference prompt 'Say hello.'")
    with pytest.raises(UserError, match=said): begun(chain=chain, base_model=place / "base")
    leave_run()
