"""The report of a model from scratch, end to end: the invented run of 10_report/07_causal in every state, rendered and read back."""
import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import HOSTILE, examples, page_of
from paleotrain.report.record import NARROW, read_run
from paleotrain.report.page import render_report
from paleotrain.report.terminal import claims_table, compare_runs

SECTIONS = ["Verdicts", "Curves", "Scores", "Samples", "Oddities", "Model", "Data", "Parameters", "Limits", "Environment", "Repeat", "Glossary"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = examples("10_report/07_causal")["causal_run"](tmp_path_factory.mktemp("whole"))
    render_report(folder)
    return folder


def words(html: str) -> str: return re.sub("<[^>]+>", "", html).replace(NARROW, " ")
def lead(page: str) -> str: return words(re.findall(r'<p class="lead">.*?</p>', page, re.S)[0])


def set_manifest(folder: Path, **entries: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def halfway(folder: Path) -> Path:
    "The invented run as it stands after 800 steps: nothing judged, no tables, no samples of a chosen checkpoint."
    examples("10_report/07_causal")["causal_run"](folder)
    set_manifest(folder, terminal=None)
    lines = [line for line in (folder / "events.jsonl").read_text().split("\n") if line and json.loads(line)["step"] <= 800]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    promised = examples("10_report/07_causal")["causal_claims"]()
    claims = [{k: c[k] for k in ("id", "statement", "metric", "criterion", "threshold", "unit")} | {"verdict": "NOT RUN"} for c in promised]
    (folder / "claims.json").write_text(json.dumps(claims))
    shutil.rmtree(folder / "tables"); (folder / "samples.jsonl").unlink()
    return folder


def test_a_finished_run_has_every_section(whole: Path) -> None:
    page = page_of(whole)
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == SECTIONS and 'class="absent"' not in page
    assert page.count("<svg") == 5 and page.count('role="img"') == 5 # loss, minutes, rates, speed, units
    assert re.findall(r'class="badge ([\w-]+)"', page) == ["pass", "pass", "fail", "inconclusive"]
    assert "Damaged file" not in page # samples with a prompt and no hidden word are whole
    assert "<script" not in page and len(page.encode()) < 1e6
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:)[^"'\s>]+|url\(\s*["']?(?!#|data:)""", page) == []


def test_the_lead_says_result_baseline_and_failure(whole: Path) -> None:
    said = lead(page_of(whole))
    assert said.startswith("A Llama of 1.01 million parameters was trained from random weights on 187,400 words from 120 documents: ")
    assert "it read 8.19 million tokens, 7.29 times the text." in said
    assert "1.64 nats per character (95 % interval 1.61 to 1.67), against 2.87 (unigram model)" in said
    assert "; that is 2.34 bits per byte (2.30 to 2.39), against 2.79 (xz" in said
    assert "he share of test characters that the tokenizer lacks: 0.0400 %, where at most 0.01 % was asked" in said
    assert "hidden word" not in page_of(whole) # nor a word of what masked models do


def test_numbers_are_those_of_the_files(whole: Path) -> None:
    page = page_of(whole)
    with (whole / "tables/scores.csv").open() as file: scores = list(csv.DictReader(file))
    rows = [[words(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in re.findall(r"<tr>.*?</tr>", page)]
    shown = {(row[1], row[2].split(" ")[0]) for row in rows if len(row) == 8}
    assert shown == {(r["measure"], f"{float(r['value']):.3g}") for r in scores} # of validation and test, no other
    assert ["parameters", "1,012,345, +1.2 % from the 1,000,000 asked"] in rows
    assert ["train", "120", "187,400", "1,124,400", "1,124,400"] in rows # words, characters, tokens; no chunks
    evals = [json.loads(line) for line in (whole / "events.jsonl").read_text().split("\n") if '"eval"' in line]
    first = next(i for i, e in enumerate(evals) if e["nats"] <= 1.88)
    before, after = (evals[i]["step"] * .295 / 60 for i in (first - 1, first)) # a step takes 0.295 s in this run
    assert f"reached by {after:.1f} min, not yet at {before:.1f} min" in page


def test_samples_stand_as_they_were_written(whole: Path) -> None:
    page = page_of(whole)
    for line in (whole / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        assert f"<pre style=\"margin:.3rem 0\"><b>{sample['prompt']}</b>{sample['text']}</pre>" in page # whole, with its line breaks
    assert "All 4 samples" in page and "greedy · distinct-2 0.41" in page # the bad one too
    assert [len(re.findall(f">step {step:,} · ", page)) for step in (0, 750, 1250, 2000)] == [3, 3, 3, 3]


def test_a_running_one_shows_what_it_has(tmp_path: Path) -> None:
    folder = halfway(tmp_path)
    with FileLock(folder / "writer.lock"):
        assert read_run(folder).status == "running"
        page = render_report(folder).read_text(encoding="utf-8")
    assert "is being trained from random weights" in lead(page) and "still running, at step 800 of 2,000" in lead(page)
    assert "No result has been judged yet. At step 750 the validation loss was 1.90 nats per character, lower than at step 0" in lead(page)
    assert page.count("<svg") == 4 and page.count("The sea floor </b>") == 4 # four evaluations so far: 0, 250, 500, 750
    assert "best so far" in page and "checkpoint kept" not in page
    for sentence in ("No text scored yet", "No unit scored yet", "No samples of the chosen checkpoint"): assert sentence in page
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == SECTIONS and page.count('class="badge not-run"') == 5


def test_a_failed_one_says_where_and_how_to_go_on(tmp_path: Path) -> None:
    folder = halfway(tmp_path)
    set_manifest(folder, terminal={"status": "failed", "reason": "loss became NaN in layer 3"})
    (folder / "samples.jsonl").write_text('{"prompt": "a"}\n')
    page = render_report(folder).read_text(encoding="utf-8")
    assert '<b class="status failed">' in page and "failed at step 800 of 2,000 (loss became NaN in layer 3)" in lead(page)
    assert "<code>paleotrain run pretrain --resume pretrain-20260412-101503-5e2d</code>" in page
    assert "Failed at step 800: loss became NaN in layer 3" in page # in the figure too
    assert "Damaged file: samples.jsonl (1 of 1 entries cannot be read)" in page and "samples.jsonl is damaged, see Limits" in page


def test_one_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"run_id": "pretrain-x", "phase": "pretrain", "report": "causal"}')
    page = render_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == SECTIONS
    assert "No result has been judged yet." in lead(page) and page.count("<svg") == 0 and page.count('class="absent"') >= 12


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    names = examples("10_report/07_causal")
    folder = names["causal_run"](tmp_path)
    manifest = names["causal_manifest"]()
    manifest["parent"] |= {"model": HOSTILE, "family": HOSTILE, "shape": {HOSTILE: 3}}
    manifest["parent"]["tokenizer"]["kind"] = HOSTILE
    manifest["reference"]["label"] = HOSTILE
    manifest["hardware"] |= {"device": HOSTILE, "attention": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": HOSTILE, "text": HOSTILE}) + "\n")
    with (folder / "events.jsonl").open("a") as file: file.write(json.dumps({"step": 2000, "kind": "sample", "prompt": HOSTILE, "text": HOSTILE}) + "\n")
    for name, old in (("units", "Fossil locality 7"), ("scores", "xz after"), ("scores", "bits per byte")):
        path = folder / f"tables/{name}.csv"
        with path.open(newline="") as file: rows = list(csv.DictReader(file))
        names["write_rows"](path, [{k: HOSTILE + v if old in v and old != "bits per byte" else v for k, v in row.items()} for row in rows])
    page = render_report(folder).read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;") > 12


def test_terminal_tables(whole: Path) -> None:
    assert "Learns to write" in claims_table(whole) and "0.0400 %" in claims_table(whole)
    assert compare_runs([whole, whole]).splitlines()[2].split() == ["status", "finished", "finished"]
