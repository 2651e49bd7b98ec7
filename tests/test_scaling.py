"""run_scaling.ipynb and its report end to end: three micro rungs, a killed ladder that goes on, and what is refused."""
import csv
import json
import math
import os
import re

import numpy as np
import pytest
from conftest import events, here, killed_at, only_run, options

MICRO = {"rungs": "llama bpe 15k;llama bpe 40k;llama bpe 60k", "corpus": "data/sample", "test_fraction": 0.3, "validation_fraction": 0.1, "vocab_size": 300,
         "tokens": 2048, "max_seq_length": 32, "per_device_train_batch_size": 16, "evaluations": 2, "eval_words": 60, "test_words": 300}


def rows(folder, name):
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


def ladder(**given):
    """A ladder to its end, in this process; its run and the statuses it has logged."""
    from paleotrain.core.settings import load_settings
    from paleotrain.phases.scaling import ScalingConfig, climb, prepare_ladder
    from paleotrain.runs.session import open_run
    run, config = open_run("scaling", ScalingConfig, MICRO | given, load_settings())
    prepare_ladder(run, config, load_settings())
    climb(run, config, load_settings())
    return run.folder, [e["status"] for e in events(run.folder) if e["kind"] == "status"]


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """One ladder of three micro rungs that the tests below look at."""
    place = tmp_path_factory.mktemp("scaling") / "runs"
    before = {name: os.environ.get(name) for name in ("PALEOTRAIN_RUNS", "PALEOTRAIN_PRESET")}
    os.environ |= {"PALEOTRAIN_RUNS": str(place), "PALEOTRAIN_PRESET": "demo"}
    try: done = here("run", "scaling", *options(MICRO))
    finally:
        for name, value in before.items(): os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert done.returncode == 0, done.stderr[-3000:]
    return only_run(place), done


def test_three_rungs_and_what_they_come_to(climbed):
    folder, done = climbed
    assert [p.name for p in sorted((folder / "rungs").iterdir())] == ["llama-bpe-15k", "llama-bpe-40k", "llama-bpe-60k"]
    told = [line for line in done.stdout.splitlines() if line.startswith(("llama-bpe-", "rung "))]
    assert [line.split()[0] for line in told] == ["llama-bpe-15k", "llama-bpe-40k", "llama-bpe-60k", "rung", "rung", "rung"] # planned before the first trained
    assert all("2,048 tokens" in line for line in told[:3]) and told[3] == "rung 1 of 3: llama-bpe-15k"
    status = [e for e in events(folder) if e["kind"] == "status"]
    assert [e["status"] for e in status] == ["started", "claims", "rung", "rung", "rung", "finished"]
    table = rows(folder, "ladder")
    for row, size in zip(table, (15_000, 40_000, 60_000), strict=True):
        made = int(row["parameters"])
        assert abs(made / size - 1) <= .05 and f"{made:,} parameters" in next(line for line in told if line.startswith(row["rung"]))
        assert int(float(row["tokens"])) == 2048 and float(row["bits_per_byte_low"]) <= float(row["bits_per_byte"]) <= float(row["bits_per_byte_high"])
        assert float(row["compute"]) == 6 * int(row["non_embedding"]) * 2048


def test_figures_are_those_of_the_rungs_own_runs(climbed):
    """Each rung is a whole run; the ladder's bits a byte are its own, found by other code."""
    folder, _ = climbed
    for row in rows(folder, "ladder"):
        rung = folder / "rungs" / row["rung"]
        (own,) = [r for r in rows(rung, "scores") if r["measure"] == "bits a byte" and r["split"] == "test" and r["baseline_name"] == "xz"]
        assert math.isclose(float(own["value"]), float(row["bits_per_byte"]), rel_tol=1e-4)
        manifest = json.loads((rung / "manifest.json").read_text())
        assert manifest["run_id"] == f"{folder.name}/rungs/{row['rung']}" and manifest["terminal"]["status"] == "finished"
        assert manifest["parent"]["parameters"] == int(row["parameters"])
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(rung / "model")
        embeddings = model.get_input_embeddings().weight
        assert sum(p.numel() for p in model.parameters() if p is not embeddings) == int(row["non_embedding"])


def test_line_through_the_rungs_is_that_of_polyfit(climbed):
    folder, _ = climbed
    table, laws = rows(folder, "ladder"), rows(folder, "laws")
    for law in laws:
        x, y = ([math.log(float(row[name])) for row in table] for name in (law["against"], "bits_per_byte"))
        assert np.allclose(np.polyfit(x, y, 1), [-float(law["exponent"]), math.log(float(law["scale"]))], atol=1e-6)
    assert [law["against"] for law in laws] == ["parameters", "compute"]
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert math.isclose(claims["exponent"]["value"], float(laws[0]["exponent"]))
    assert claims["matched"]["verdict"] == "NOT RUN" and claims["bigger_is_better"]["n"] == int(float(table[0]["n"]))


def test_report_of_the_ladder_and_of_a_rung(climbed):
    folder, _ = climbed
    page = (folder / "report.html").read_text()
    for said in ("What size is worth", "exponent b", "llama bpe 60k", "of the validation text", "paleotrain run scaling"): assert said in page
    assert page.count("<svg") >= 3 and not re.search(r'(?:src|href)="https?:', page) and len(page) < 5e6
    done = here("report", str(folder / "rungs/llama-bpe-15k"))
    assert done.returncode == 0 and (folder / "rungs/llama-bpe-15k/report.html").exists(), done.stderr[-2000:]


def test_a_killed_ladder_goes_on_inside_its_rung(runs, monkeypatch, tmp_path):
    """kill -9 while the second rung trains: the first is left alone, the second goes on from its checkpoint, to the end of a ladder nobody disturbed."""
    long = MICRO | {"rungs": "llama bpe 15k;llama bpe 40k", "tokens": 30_000, "evaluations": 6}
    folder = killed_at("*/rungs/llama-bpe-40k/checkpoints/step-*[1-9]*/checkpoint.json", runs, "run", "scaling", *options(long))
    from paleotrain.runs.directory import derive_status
    for child in (folder, folder / "rungs/llama-bpe-40k"): assert derive_status(child) == "interrupted"
    first = (folder / "rungs/llama-bpe-15k/manifest.json").read_bytes()
    done = here("run", "scaling", "--resume", folder.name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rung 1 of 2: llama-bpe-15k has finished before" in done.stdout and (folder / "rungs/llama-bpe-15k/manifest.json").read_bytes() == first
    second = json.loads((folder / "rungs/llama-bpe-40k/manifest.json").read_text())
    assert len(second["attempts"]) == 2 and second["attempts"][1]["from_step"] > 0
    steps = [e["step"] for e in events(folder / "rungs/llama-bpe-40k") if e["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == round(30_000 / 512)
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(tmp_path / "others")) # so that nothing is taken over
    undisturbed, said = ladder(**long)
    assert said == ["started", "claims", "rung", "rung", "finished"]
    for name in ("rungs/llama-bpe-15k/model", "rungs/llama-bpe-40k/model"):
        assert (folder / name / "model.safetensors").read_bytes() == (undisturbed / name / "model.safetensors").read_bytes()
    assert (folder / "claims.json").read_bytes() == (undisturbed / "claims.json").read_bytes()


def test_a_longer_ladder_trains_its_new_rung_alone(climbed, monkeypatch, tmp_path, capsys):
    """The rung of an earlier ladder is taken over whole; on other text, from another split or by other code it is trained anew."""
    from paleotrain.runs import series
    first, _ = climbed
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(first.parent))
    second, said = ladder(rungs="llama bpe 15k;llama bpe 50k")
    assert said == ["started", "claims", "reused", "rung", "finished"]
    assert f"rung 1 of 2: llama-bpe-15k: nothing has changed since {first.name}/rungs/llama-bpe-15k, taken over" in capsys.readouterr().out
    for name in ("model/model.safetensors", "events.jsonl", "tables/units.csv", "claims.json"):
        assert (second / "rungs/llama-bpe-15k" / name).read_bytes() == (first / "rungs/llama-bpe-15k" / name).read_bytes()
    manifest = json.loads((second / "rungs/llama-bpe-15k/manifest.json").read_text())
    assert (manifest["run_id"], manifest["reused_from"]) == (f"{second.name}/rungs/llama-bpe-15k", f"{first.name}/rungs/llama-bpe-15k")
    figures = ("rung", "parameters", "bits_per_byte", "validation_bits_per_byte", "tokens", "seconds")
    assert [rows(second, "ladder")[0][name] for name in figures] == [rows(first, "ladder")[0][name] for name in figures]
    trained = ["started", "claims", "rung", "finished"]
    more = tmp_path / "more.jsonl"
    for animal in ("worm", "trilobite"): # a file that is called as it was
        more.write_text(json.dumps({"text": f"The last fossil of the valley is a {animal}."}) + "\n")
        assert ladder(rungs="llama bpe 15k", corpus=f"data/sample;{more}")[1] == trained
    assert ladder(rungs="llama bpe 15k", test_fraction=0.35)[1] == trained
    monkeypatch.setattr(series, "code_hash", lambda trains: "of other modules")
    assert ladder(rungs="llama bpe 15k")[1] == trained
    assert ladder(rungs="llama bpe 15k")[1] == ["started", "claims", "reused", "finished"]


@pytest.mark.parametrize(("given", "said"), [
    ({"rungs": "llama 15k"}, "rungs: 'llama 15k' is no rung; write family, tokenizer and size"),
    ({"rungs": "lama bpe 15k"}, "rungs: no family 'lama'"),
    ({"rungs": "llama bpe 15k;llama bpe 15k"}, "rungs: llama-bpe-15k stands there twice"),
    ({"rungs": "llama bpe 1k"}, "vocab_size: 300 pieces take"),
])
def test_bad_ladders_are_refused_in_one_line(runs, given, said):
    """In process: the command adds nothing but seconds."""
    from paleotrain.core.settings import UserError, load_settings
    from paleotrain.phases.scaling import ScalingConfig, prepare_ladder
    from paleotrain.runs.session import leave_run, open_run
    with pytest.raises(UserError, match=re.escape(said)):
        run, config = open_run("scaling", ScalingConfig, MICRO | given, load_settings())
        prepare_ladder(run, config, load_settings())
    leave_run()
    assert not list(runs.glob("*/rungs/*"))
