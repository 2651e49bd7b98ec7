"""A base without a working head, and text that decides nothing: told before training, recovered where that can be, and never a verdict."""
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, events, useless_model
from test_bad_input import GOOD, prepared, written

from paleotrain.phases import recovery
from paleotrain.tokenizers.encode import tokenizer_hash
from paleotrain.data.words import count_words
from paleotrain.phases.dapt import NO_HEAD, load_base
from paleotrain.models.masked import load_mlm
from paleotrain.phases.recovery import recovered
from paleotrain.runs.directory import Interrupted

SHORT = {"terms": None, "max_seq_length": 64, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "eval_words": 20, "test_words": 20}
BATCH = 8 * 64 # tokens at most
TOWN = "In the year {} the town of {}ton had a market, a school, {} shops and a mayor who wrote letters to his {} friends."
ENGLISH = [json.dumps({"text": TOWN.format(1700 + i, name, i, i)})
           for i, name in enumerate(["Nor", "Wel", "Hamp", "Ash", "Brigh", "Taun"] * 12)]


@pytest.fixture
def base(tmp_path, monkeypatch) -> str:
    """A saved base whose head is useless, and a folder of its own for what is recovered."""
    from transformers import AutoTokenizer
    monkeypatch.setenv("PALEOTRAIN_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("PALEOTRAIN_DATA", str(tmp_path / "data"))
    useless_model().save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(ROOT / "artifacts/tiny-base").save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def started(place: Path, base: str, general: str | None, **parameters):
    """A run up to its base."""
    place.mkdir(exist_ok=True)
    run, config, data, settings = prepared(place, base_model=base, corpus=[written(place, "c.jsonl", "\n".join(GOOD))],
                                           general=general and [general], **{**SHORT, "recover_tokens": 2 * BATCH, **parameters})
    run.update(phase="dapt")
    return run, config, data, settings


@pytest.mark.parametrize(("headless", "words"), [(True, "missing"), (False, "present but useless: perplexity ")])
def test_a_base_without_a_working_head_and_no_general_text_goes_on_with_a_doubt(headless, words, base, tmp_path, capsys):
    if headless: useless_model().deberta.save_pretrained(base)
    run, config, data, settings = started(tmp_path / "a", base, None)
    found = recovered(run, config, data, load_base(run, config, data, settings), settings)
    assert found.doubt == NO_HEAD == "the base's head does not work" and found.baseline == found.place == base
    assert run.manifest["parent"]["head"].startswith(words) and run.manifest["baseline"].startswith(f"A: base as loaded, its head {words}")
    warned = capsys.readouterr().err
    assert f"warning: {NO_HEAD} ({words}" in warned and "give general text (-p general), on which the head is recovered first" in warned


def test_general_text_too_small_to_recover_on_is_told(base, tmp_path, capsys):
    few = written(tmp_path, "few.jsonl", "\n".join(ENGLISH[:6]))
    run, config, data, settings = started(tmp_path / "a", base, few)
    whole = dict(data.general.counts["train"])
    found = recovered(run, config, data, load_base(run, config, data, settings), settings)
    assert found.doubt == NO_HEAD and "documents of general text are too few to recover it" in capsys.readouterr().err
    assert data.general.counts["train"] == whole and "recovery" not in run.manifest


def test_a_useless_head_is_recovered_and_the_next_run_takes_it_over(base, tmp_path, capsys):
    general = written(tmp_path, "general.jsonl", "\n".join(ENGLISH))
    run, config, data, settings = started(tmp_path / "a", base, general)
    roles = {split: {d.text for d in data.general.documents(split)} for split in ("train", "validation", "test")}
    first = load_base(run, config, data, settings)
    found = recovered(run, config, data, first, settings)
    record = run.manifest["recovery"]
    # the text: half of the replay, and nothing of what judges
    (cached,) = (settings.data / "cache").glob("recovery-*")
    read = {json.loads(line)["text"] for file in cached.glob("*.jsonl") for line in file.read_text().splitlines()}
    replay = {d.text for d in data.general.documents("train")}
    assert read | replay == roles["train"] and not read & replay and not read & (roles["validation"] | roles["test"])
    told = run.manifest["data"]["general"]
    assert told["recovery"] == {"documents": len(read), "words": sum(map(count_words, read))} and told["replay"]["documents"] == len(replay)
    # all weights are trained, under the original tokenizer
    old, new = load_mlm(base), load_mlm(found.baseline)
    assert tokenizer_hash(new.tokenizer) == tokenizer_hash(old.tokenizer) == tokenizer_hash(first.old_tokenizer)
    same = [name for (name, a), b in zip(old.model.named_parameters(), new.model.parameters(), strict=True) if torch.equal(a, b)]
    assert not same, same
    # what is said
    assert found.doubt.startswith("the base's head does not work, recovered on ") and found.place == base != found.baseline
    assert run.manifest["baseline"].startswith(f"B: base, its head recovered on {record['tokens']:,} tokens of general text, validation loss not flat; head ")
    assert run.manifest["parent"]["head"].startswith("present but useless: ") and 0 < record["tokens"] <= 2 * BATCH
    (inner,) = (run.folder / "recovery").iterdir()
    assert [(p["step"], p["nats"]) for p in record["curve"]] == [(e["step"], e["nats"]) for e in events(inner) if e["kind"] == "eval"]
    # the next run
    capsys.readouterr()
    run, config, data, settings = started(tmp_path / "b", base, general)
    again = recovered(run, config, data, load_base(run, config, data, settings), settings)
    assert again.baseline == found.baseline and again.doubt == found.doubt and run.manifest["recovery"] == record
    assert "recovered before, taken over from " in capsys.readouterr().out and not (run.folder / "recovery").exists()
    run.update(recovery={"key": record["key"]}) # of a run that is resumed: it goes on with the model it began with, whatever code there is now
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recovery, "recovery_key", lambda *_: "another")
        config, data, settings = started(tmp_path / "c", base, general)[1:]
        assert recovered(run, config, data, first, settings).baseline == found.baseline
    other = recovery.recovery_config(config.model_copy(update={"learning_rate": 1e-9}), cached)
    assert recovery.recovery_key(other, again, cached) != record["key"] # another recovery


def test_a_recovery_that_was_stopped_goes_on(base, tmp_path, monkeypatch):
    general = written(tmp_path, "general.jsonl", "\n".join(ENGLISH))
    run, config, data, settings = started(tmp_path / "a", base, general, recover_tokens=4 * BATCH)
    first, logged = load_base(run, config, data, settings), recovery.loop.log_train
    def stopping(callback, step):
        logged(callback, step)
        if step == 2: (run.folder / "cancel").touch()
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="stopped in "):
        patched.setattr(recovery.loop, "log_train", stopping)
        recovered(run, config, data, first, settings)
    assert not list((settings.artifacts / "recovered").glob("*"))
    (run.folder / "cancel").unlink()
    run.lock.release()
    (tmp_path / "a/run").rename(tmp_path / "kept") # `prepared` makes the folder
    run, config, data, settings = started(tmp_path / "a", base, general, recover_tokens=4 * BATCH)
    (tmp_path / "kept/recovery").rename(run.folder / "recovery")
    recovered(run, config, data, load_base(run, config, data, settings), settings)
    (inner,) = (run.folder / "recovery").iterdir()
    assert [e["step"] for e in events(inner) if e["kind"] == "train"] == [1, 2, 3, 4]
    assert len(json.loads((inner / "manifest.json").read_text())["attempts"]) == 2


def test_a_head_that_was_recovered_until_its_loss_is_flat_leaves_no_doubt(base, tmp_path, monkeypatch):
    run, config, data, settings = started(tmp_path / "a", base, written(tmp_path, "general.jsonl", "\n".join(ENGLISH)), recover_tokens=40 * BATCH)
    first = load_base(run, config, data, settings)
    monkeypatch.setattr(recovery, "check_head", lambda *_: ("present and at work", ""))
    monkeypatch.setattr(recovery, "FLAT", 100.0) # nats: nothing is an improvement
    found = recovered(run, config, data, first, settings)
    assert found.doubt == "" and run.manifest["recovery"]["flat"] and run.manifest["recovery"]["steps"] < 40
    assert "validation loss flat; head present and at work" in run.manifest["baseline"]


def test_a_head_that_works_is_left_alone(tmp_path):
    run, config, data, settings = started(tmp_path / "a", "artifacts/tiny-base", "data/sample/general.jsonl")
    whole = data.general.counts["train"]
    base = load_base(run, config, data, settings)
    assert recovered(run, config, data, base, settings) is base and base.doubt == "" and data.general.counts["train"] == whole
    assert run.manifest["baseline"].startswith("A: tiny-base as loaded, its head present and at work: perplexity ")


def test_general_text_that_is_domain_text_decides_nothing_on_forgetting(tmp_path, capsys):
    lines = (ROOT / "data/sample/cambrian.jsonl").read_text().splitlines()
    halves = [written(tmp_path, f"{n}.jsonl", "\n".join(lines[n::2])) for n in (0, 1)]
    for name, given in (("half", {"general": [halves[1]]}), ("mixed", {"general": [halves[1], "data/sample/general.jsonl"]}),
                        ("no list", {"general": [halves[1]], "terms": None})):
        (tmp_path / name).mkdir()
        _, _, data, _ = prepared(tmp_path / name, corpus=[halves[0]], **given)
        assert list(data.doubts) == ["general"] and data.doubts["general"].startswith("the general text reads like domain text: it"), name
        assert f"warning: {data.doubts['general']}; forgetting cannot be told on it: give general text" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    assert not prepared(tmp_path / "other", corpus=[halves[0]], general=["data/sample/general.jsonl"])[2].doubts


@pytest.mark.parametrize(("role", "claims"), [("corpus", ["domain", "rare_terms"]), ("general", ["general"])])
def test_a_base_that_was_trained_on_the_text_it_is_judged_by_decides_nothing(role, claims, base, tmp_path, capsys):
    from paleotrain.core.files import sha256_file, write_json
    given = {"corpus": written(tmp_path, "c.jsonl", "\n".join(GOOD)), "general": written(tmp_path, "g.jsonl", "\n".join(ENGLISH))}
    write_json(Path(base) / "manifest.json", {"inputs": [{"sha256": sha256_file(Path(given[role])), "splits": ["train"]}]})
    _, _, data, _ = prepared(tmp_path, base_model=base, **{name: [path] for name, path in given.items()})
    assert list(data.doubts) == claims and all(said.startswith("the base model was itself trained on ") for said in data.doubts.values())
    assert "figures on this text are flattered before and after" in capsys.readouterr().err


def test_a_corpus_too_small_to_judge_is_told_with_its_numbers(tmp_path, capsys):
    _, _, data, _ = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(GOOD))], general=[written(tmp_path, "g.jsonl", "\n".join(ENGLISH[:30]))])
    said = capsys.readouterr().err
    for kind, what in (("domain", "the domain"), ("terms", "rare terms"), ("general", "forgetting")):
        windows = data.windows[f"{kind}/test"]
        words = sum(len(window.targets) for window in windows)
        assert f"{len({w.unit for w in windows})} test documents ({words} hidden words) are too few to decide anything about {what}, where 20 are" in said, kind


@pytest.mark.parametrize(("term", "found"), [("Opabinia", "the training text"), ("lonely", "the test split (")])
def test_a_list_whose_terms_occur_nowhere_decides_nothing_on_them(term, found, tmp_path, capsys):
    terms = written(tmp_path, "terms.csv", f"term,category,source\n{term},x,y\n")
    tests = written(tmp_path, "t.jsonl", "\n".join(line.replace("mud", "silt") for line in GOOD[:20]))
    _, _, data, _ = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(line.replace("bed", "lonely bed") for line in GOOD))], test_files=[tests],
                             terms=terms)
    assert list(data.doubts) == ["rare_terms"] and data.doubts["rare_terms"].startswith(f"none of the 1 terms occurs in {found}")
    assert f"warning: {data.doubts['rare_terms']}; give text that has them" in capsys.readouterr().err


def test_words_that_the_tokenizer_does_not_know_decide_nothing(tmp_path, capsys):
    chinese = [json.dumps({"text": f"第{i}号标本是三叶虫的化石，它生活在古代的浅海里。"}, ensure_ascii=False) for i in range(90)]
    run, config, data, settings = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(chinese))], base_model="artifacts/tiny-base",
                                           general=[written(tmp_path, "g.jsonl", "\n".join(ENGLISH))], **SHORT)
    load_base(run, config, data, settings)
    assert list(data.doubts) == ["domain"] and "hidden words are unknown to the tokenizer, and to guess" in data.doubts["domain"]
    assert f"warning: {data.doubts['domain']}; take a base that was trained on text in this language" in capsys.readouterr().err


@pytest.mark.parametrize("add_terms", [True, False])
def test_terms_that_stay_in_pieces_are_told_with_the_fix(add_terms, tmp_path, capsys):
    run, config, data, settings = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(GOOD))], base_model="artifacts/tiny-base",
                                           add_terms=add_terms, **SHORT | {"terms": "tests/terms.csv"})
    load_base(run, config, data, settings)
    assert ("are cut into pieces: set add_terms to true" in capsys.readouterr().err) != add_terms
