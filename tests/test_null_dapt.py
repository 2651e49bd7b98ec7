"""DAPT that learns nothing and DAPT that learns something, on a base and a text made on the spot: what its claims make of both."""
import json
import random
from pathlib import Path

import pytest
from conftest import command, events, here, options, table

TAXA = {"Ollicaris": ("black", "mud", "worms"), "Thelopira": ("grey", "sand", "snails"), "Wanderella": ("red", "clay", "algae"),
        "Marpolina": ("white", "chalk", "shrimps"), "Kiruvaspis": ("green", "gravel", "sponges"), "Dorvanites": ("brown", "silt", "larvae"),
        "Halkoveria": ("blue", "slate", "corals"), "Petromura": ("yellow", "marl", "eggs")}
OFTEN = (1, 1, 1, 1, 1, 1, 9, 9) # how often each is met: what a short training learns first
PEOPLE, PLACES, THINGS = ("farmer", "teacher", "doctor", "sailor", "painter"), ("market", "harbour", "school", "garden", "station"), (
    "basket", "letter", "lamp", "ladder", "bottle")


def general(rng: random.Random) -> str:
    """Plain sentences in which a person always carries the same thing to the same place."""
    lines = []
    for _ in range(10):
        n = rng.randrange(len(PEOPLE))
        lines.append(f"The {PEOPLE[n]} went to the {PLACES[n]} with a {THINGS[n]} in {rng.choice(('spring', 'summer', 'autumn', 'winter'))}.")
    return " ".join(lines)


def domain(rng: random.Random) -> str:
    """Sentences in which the colour tells the animal, and the animal its ground and its food; two animals are common."""
    lines = []
    for _ in range(4):
        ((taxon, (colour, ground, food)),) = rng.choices(list(TAXA.items()), OFTEN)
        lines.append(rng.choice((f"The {colour} {taxon} ate the {food}.", f"The {colour} {taxon} lived on {ground}.")))
    return " ".join(lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Text of both kinds, a term list, and a base that knows the plain sentences and has met the domain's words, but not its animals."""
    folder, rng = tmp_path_factory.mktemp("null"), random.Random(7)
    words = " ".join(sorted({word for three in TAXA.values() for word in three}))
    for name, make, count in (("general", general, 110), ("domain", domain, 310)):
        rows = [json.dumps({"doc_id": f"{name}-{n}", "text": make(rng)}) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    met = [f"{general(rng)} {' '.join(rng.sample(words.split(), 12))}. The animal lived and ate." for _ in range(300)]
    known = [json.dumps({"doc_id": f"base-{n}", "text": text}) for n, text in enumerate(met)]
    (folder / "base.jsonl").write_text("\n".join(known))
    (folder / "terms.csv").write_text("term,category\n" + "\n".join(f"{taxon},animal" for taxon in TAXA))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALEOTRAIN_RUNS", str(folder / "bases"))
        done = here("run", "pretrain", *options({"family": "deberta", "corpus": folder / "base.jsonl", "vocab_size": 260, "hidden_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128, "max_seq_length": 64, "test_fraction": .1,
            "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": 200, "precision": "fp32",
            "learning_rate": 3e-3, "logging_steps": 20,
            "eval_steps": 200, "save_steps": 200, "eval_words": 60, "test_words": 100}))
    assert done.returncode == 0, done.stderr[-3000:]
    (base,) = (folder / "bases").glob("pretrain-*/model")
    base.rename(folder / "base")
    return folder


def adapted(place: Path, name: str, **given) -> Path:
    """A run of DAPT on that text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALEOTRAIN_RUNS", str(place / name))
        done = here("run", "dapt", *options({"base_model": place / "base", "corpus": place / "domain.jsonl", "general": place / "general.jsonl",
            "terms": place / "terms.csv", "domain": "invented animals", "test_fraction": .4, "replay_fraction": .3, "max_seq_length": 64,
            "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "logging_steps": 20, "eval_words": 60, "test_words": 300,
            "term_occurrences": 200, "precision": "fp32",
            "warmup_steps": 5, "mlm_probability": .3, "term_boost": 2, "whole_word_share": .5, "replay_whole_word_share": .5} | given))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (place / name).glob("dapt-*")
    return folder


def verdicts(folder: Path, about: str) -> dict[str, str]:
    return {c["id"]: c["verdict"] for c in json.loads((folder / "claims.json").read_text()) if c["about"] == about}


def changes(folder: Path) -> dict[tuple[str, str, str], float]:
    return {(row["text"], row["measure"], row["pair"]): float(row["change"]) for row in table(folder, "changes")}


@pytest.fixture(scope="module")
def null(place) -> Path: return adapted(place, "null", learning_rate=1e-9, max_steps=6, eval_steps=3, save_steps=3)


@pytest.fixture(scope="module")
def planted(place) -> Path: return adapted(place, "planted", learning_rate=5e-3, max_steps=200, eval_steps=200, save_steps=200)


def test_a_training_that_learns_nothing_passes_no_claim_about_learning(null):
    learning = verdicts(null, "learning")
    assert learning.keys() == {"domain", "rare_terms", "term_ranks"} and set(learning.values()) == {"FAIL"}, learning # all decided
    assert set(verdicts(null, "forgetting").values()) <= {"PASS", "BEFORE TRAINING"}
    assert verdicts(null, "vocabulary")["fragmentation"] == "PASS" # of the new words, and said to be theirs


def test_in_a_null_run_all_of_it_is_the_vocabulary(null):
    found = changes(null)
    assert found["rare_terms", "perplexity", "A to V"] < -.5 # the figure that once passed
    for text in ("domain", "rare_terms", "general"):
        assert abs(found[text, "perplexity", "V to after"]) < 1e-3
        assert found[text, "perplexity", "A to after"] == pytest.approx(found[text, "perplexity", "A to V"], abs=1e-3)


def test_a_real_improvement_on_the_same_text_passes(planted):
    learning = verdicts(planted, "learning")
    assert {name: said for name, said in learning.items() if name != "control"} == dict.fromkeys(("domain", "rare_terms", "term_ranks"), "PASS")
    assert verdicts(planted, "forgetting") == {"general": "PASS"}


def test_the_placebo_is_the_same_training_on_other_text(place):
    planted = adapted(place, "placebo", learning_rate=3e-3, max_steps=30, eval_steps=10, save_steps=10, logging_steps=5, control="general")
    (claim,) = [c for c in json.loads((planted / "claims.json").read_text()) if c["id"] == "control"]
    assert claim["verdict"] == "INCONCLUSIVE" and claim["points_to"] == "PASS" and "1 seed, where 3 are needed" in claim["note"]
    found = changes(planted)
    assert found["domain", "perplexity", "V to placebo"] > found["domain", "perplexity", "V to after"]
    ours, placebo = events(planted), events(planted / "control/general")
    rates = [{e["step"]: e["learning_rate"] for e in some if e["kind"] == "train"} for some in (ours, placebo)]
    best = json.loads((planted / "manifest.json").read_text())["terminal"]["best_step"]
    assert best and {step: rates[0][step] for step in rates[0] if step <= best} == rates[1] # the same schedule up to the checkpoint kept
    start = [(folder / "checkpoints/step-000000/model.safetensors").read_bytes() for folder in (planted, planted / "control/general")]
    assert start[0] == start[1]


def test_a_null_run_by_the_command(runs):
    """The shipped sample, with few words to judge by: as somebody would type it, it once ended in -56.9 % and three PASS."""
    given = {"learning_rate": 1e-9, "max_steps": 1, "eval_steps": 1, "save_steps": 1, "eval_words": 20, "test_words": 60, "term_occurrences": 1,
             "terms": "tests/terms.csv", "max_seq_length": 64}
    done = command("paleotrain", "run", "dapt", *options(given))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = runs.glob("dapt-*")
    learning = [c for c in json.loads((folder / "claims.json").read_text()) if c["about"] == "learning"]
    assert len(learning) == 3 and {c["points_to"] or c["verdict"] for c in learning} == {"FAIL"}
    assert "FAIL" not in verdicts(folder, "forgetting").values()
