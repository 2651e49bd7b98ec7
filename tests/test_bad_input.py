"""Bad input: one line that names place, finding and fix, before any model loads, and nothing lost."""
import json
import os
from pathlib import Path

import pytest
from conftest import SMALL, command, here, only_run, options

from paleotrain.core.settings import UserError, load_settings
from paleotrain.core.config import resolve
from paleotrain.core.files import sha256, stable_fraction
from paleotrain.phases.dapt import DaptConfig, load_base, prepare
from paleotrain.runs.directory import Run, derive_status

GOOD = [json.dumps({"doc_id": f"d{i}", "text": f"Document number {i} tells of mud and shells and of a trilobite called number {i} in bed {i % 7}."})
        for i in range(60)]
LONG = "Sentence {} is long enough to be a paragraph of sixty characters, surely."


def prepared(tmp_path: Path, **parameters):
    """What run_dapt does before a model loads, in this process."""
    settings = load_settings()
    config, _ = resolve(DaptConfig, {"general": None, **parameters}, "demo", settings)
    folder = tmp_path / "run"
    folder.mkdir()
    run = Run(folder)
    run.update(attempts=[{"attempt": 1}], config={}, terminal=None)
    return run, config, prepare(run, config, settings), settings


def refusal(tmp_path: Path, **parameters) -> str:
    with pytest.raises(UserError) as caught: prepared(tmp_path, **parameters)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(tmp_path: Path, name: str, text: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_missing_folder(tmp_path):
    assert "no_such_folder" in refusal(tmp_path, corpus=[str(tmp_path / "no_such_folder")])


def test_empty_corpus(tmp_path):
    assert "empty.jsonl" in refusal(tmp_path, corpus=[written(tmp_path, "empty.jsonl", "")])


def test_broken_lines_over_the_share(tmp_path):
    said = refusal(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join([*GOOD[:3], '{"text": "half']))])
    assert "c.jsonl:4" in said and "not JSON" in said


def test_one_broken_line_under_the_share_is_counted_and_shown(tmp_path, capsys):
    lines = [*GOOD * 3, '{"text": 1', *(line.replace("mud", f"silt {n}") for n, line in enumerate(GOOD))]
    run, _, data, _ = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(lines))])
    assert data.splits.report.bad == 1
    assert "c.jsonl:181" in capsys.readouterr().err and any(json.loads(line)["kind"] == "warning" for line in run.events.read_text().splitlines())


def test_lines_without_text_name_the_fields_found(tmp_path):
    said = refusal(tmp_path, corpus=[written(tmp_path, "c.jsonl", '{"body": "x", "title": "y"}\n')])
    assert "body" in said and "title" in said


def test_bom_crlf_and_nul(tmp_path):
    text = "\ufeff" + "\r\n".join(GOOD) + "\r\n"
    _, _, data, _ = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", text)])
    assert sum(c["documents"] for c in data.splits.counts.values()) == 60
    (tmp_path / "second").mkdir()
    assert "NUL" in refusal(tmp_path / "second", corpus=[written(tmp_path, "nul.jsonl", b'{"text": "a\x00b"}\n')])


def test_term_list_with_duplicates(tmp_path):
    terms = written(tmp_path, "terms.csv", "term,category,source\nOlenus,taxon,x\nmud,rock,x\nOlenus,taxon,x\n")
    said = refusal(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(GOOD))], terms=terms)
    assert "terms.csv:4" in said and "Olenus" in said and "duplicate" in said


def test_evaluation_text_that_stands_in_training(tmp_path):
    train = written(tmp_path, "train.jsonl", "\n".join(json.dumps({"doc_id": f"t{i}", "text": LONG.format(i)}) for i in range(40)))
    test = written(tmp_path, "test.jsonl", json.dumps({"doc_id": "copy", "text": LONG.format(7)}))
    said = refusal(tmp_path, corpus=[train], test_files=[test])
    assert "test.jsonl" in said and "copy" in said and "training" in said


def test_base_model_that_is_not_there(tmp_path):
    said = refusal(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(GOOD))], base_model="artifacts/no-such-model")
    assert said.startswith("base_model: no folder 'artifacts/no-such-model'")


def test_base_on_the_hub_while_offline(tmp_path, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run, config, data, settings = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(GOOD))], base_model="nobody/no-such-model")
    with pytest.raises(UserError, match="not in the hub's cache, and cannot be fetched .offline"): load_base(run, config, data, settings)


def test_unknown_parameter_through_the_command(runs):
    done = here("run", "dapt", "-p", "max_stesp", "40")
    assert done.returncode == 2 and not list(runs.glob("dapt-*"))
    assert done.stderr.strip().splitlines()[-1] == "error: max_stesp: no parameter of run_dapt; did you mean max_steps?"


def test_mistyped_parameter_under_papermill(runs):
    done = command("papermill", "nbs/run_dapt.ipynb", os.devnull, "-p", "max_steps", "many")
    assert done.returncode == 1 and not list(runs.glob("dapt-*"))
    assert done.stderr.strip().splitlines()[-1].startswith("UserError: max_steps: Input should be a valid integer")


def test_strings_that_are_unambiguous_are_coerced(runs):
    settings = load_settings()
    config, _ = resolve(DaptConfig, {"add_terms": "true", "learning_rate": "2e-4", "max_steps": "40"}, "demo", settings)
    assert (config.add_terms, config.learning_rate, config.max_steps) == (True, 2e-4, 40)


def test_output_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(tmp_path / "file/runs"))
    done = here("run", "dapt")
    assert done.returncode == 2 and "cannot be made" in done.stderr.strip().splitlines()[-1]


def test_run_to_resume_that_does_not_exist(runs):
    done = here("run", "dapt", "--resume", "dapt-19990101-000000-0000")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: dapt-19990101-000000-0000: no such run in")


def test_failure_after_the_start_is_recorded_and_reported(runs, tmp_path):
    """A run that has begun and cannot go on is failed, says why, and still has a report."""
    done = here("run", "dapt", *options(SMALL | {"corpus": written(tmp_path, "c.jsonl", "")}))
    assert done.returncode == 2 and "c.jsonl" in done.stderr.strip().splitlines()[-1]
    folder = only_run(runs)
    assert derive_status(folder) == "failed" and (folder / "report.html").exists() and (folder / "run.ipynb").exists()
    assert "c.jsonl" in json.loads((folder / "manifest.json").read_text())["terminal"]["reason"]


def test_text_without_words(tmp_path):
    digits = "\n".join(json.dumps({"text": f"{i} {i + 1} {i * 7} 4 5 6"}) for i in range(60))
    assert refusal(tmp_path, corpus=[written(tmp_path, "digits.jsonl", digits)], terms=None).startswith("corpus: no word to hide in the ")


def test_a_table_longer_than_the_model_reads_is_left_out_for_both(tmp_path, capsys):
    """Few characters a token: 281 characters of figures are more than the 512 positions of the model; found before training, not after it."""
    table = "b5 1.5 x9 2.2 " * 200
    lines = [json.dumps({"text": f"{table} {i}", "doc_id": f"t{i}"}) for i in range(4)]
    run, config, data, settings = prepared(tmp_path, corpus=[written(tmp_path, "c.jsonl", "\n".join(GOOD))], terms=None,
                                           test_files=[written(tmp_path, "t.jsonl", "\n".join([*lines, *(g.replace("mud", "silt") for g in GOOD[:20])]))],
                                           max_seq_length=512)
    before = len(data.windows["domain/test"])
    load_base(run, config, data, settings)
    assert 0 < len(data.windows["domain/test"]) < before
    assert "windows have more tokens than the model has positions and are left out" in capsys.readouterr().err
    assert len(run.manifest["data"]["windows"]) == 64


def test_general_text_that_tests_the_domain_or_is_its_test(tmp_path):
    """The same file as domain and general text: neither trains on what the other is judged by."""
    same = written(tmp_path, "c.jsonl", "\n".join(GOOD))
    _, _, data, _ = prepared(tmp_path, corpus=[same], general=[same], terms=None)
    texts = {(part, split): {d.text for d in splits.documents(split)} for part, splits in (("domain", data.splits), ("general", data.general))
             for split in ("train", "validation", "test")}
    trained = texts["domain", "train"] | texts["general", "train"]
    assert not trained & set().union(*(found for (_, split), found in texts.items() if split != "train"))


def english(tmp_path: Path, falls_to: str) -> str:
    """A file of one general document, which the hash sends to training or not."""
    for night in range(100):
        text = f"It was late in the night {night}. " * 50
        if ("test" if stable_fraction(sha256(text.strip()), 42) < 0.6 else "train") == falls_to: return written(tmp_path, "english.txt", text)
    raise AssertionError


def test_few_general_documents(tmp_path, capsys):
    """Without general validation text the head is judged on domain text, and the run says that forgetting is not measured."""
    run, config, data, settings = prepared(tmp_path, corpus=["data/sample/cambrian.jsonl"], general=[english(tmp_path, falls_to="train")])
    assert not data.windows["general/validation"] and "forgetting is not measured there" in capsys.readouterr().err
    load_base(run, config, data, settings)
    assert "on domain text" in run.manifest["parent"]["head"] and "nan" not in run.manifest["parent"]["head"]


def test_one_general_document(tmp_path):
    said = refusal(tmp_path, corpus=["data/sample/cambrian.jsonl"], general=[english(tmp_path, falls_to="test")])
    assert said.startswith("general: no document for training: 1 read in 1 files (english.txt first)")


def test_input_that_changed_before_a_resume(tmp_path):
    terms = Path(written(tmp_path, "terms.csv", "term,category,source\ntrilobite,taxon,x\nshells,taxon,x\n"))
    corpus = [written(tmp_path, "c.jsonl", "\n".join(GOOD))]
    run, config, _, settings = prepared(tmp_path, corpus=corpus, terms=str(terms))
    terms.write_text("term,category,source\nmud,taxon,x\nshells,taxon,x\n")
    with pytest.raises(UserError, match="terms.csv: not what it was when the run began"): prepare(run, config, settings)


def test_files_of_the_same_name_are_units_of_their_own(tmp_path):
    for i in range(40):
        (tmp_path / f"same/{i}").mkdir(parents=True)
        (tmp_path / f"same/{i}/text.txt").write_text(f"Document number {i} tells of mud and shells and of a trilobite called number {i}. " * 5)
    _, _, data, _ = prepared(tmp_path, corpus=[str(tmp_path / "same")], test_fraction=0.5)
    assert len({w.unit for w in data.windows["domain/test"]}) == data.splits.counts["test"]["documents"] > 5
