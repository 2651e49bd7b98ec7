"""The reports of chat training, end to end: the invented chain of 10_report/14_chat in every state."""
import json
import re
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import HOSTILE, examples, page_of, sections, table
from paleotrain.report import curriculum as report_curriculum
from paleotrain.report.record import NARROW, read_run
from paleotrain.evaluation.red_lines import ADVICE
from paleotrain.report.page import render_report

SFT = ["Verdicts", "Before and after", "Curves", "Scores", "Failures", "Red lines", "Oddities", "Data", "Parameters", "Limits",
       "Environment", "Repeat", "Glossary"]
CHAIN = ["Verdicts", "Reference prompts", "Forgetting", "Phases", "Kinds of prompts", "Failures", "Red lines", "Oddities", "Data", "Parameters", "Limits",
         "Environment", "Repeat", "Glossary"]


def made(kind: str, folder: Path, **given: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run: Path = examples("10_report/14_chat")[f"{kind}_run"](folder, **given)
    return run


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made("chain", tmp_path_factory.mktemp("chain"))
    render_report(folder)
    return folder


@pytest.fixture(scope="module")
def phase(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made("sft", tmp_path_factory.mktemp("phase"))
    render_report(folder)
    return folder


def words(html: str) -> str: return re.sub("<[^>]+>", "", html).replace(NARROW, " ")
def lead(page: str) -> str: return words(re.findall(r'<p class="lead">.*?</p>', page, re.S)[0])
def part(page: str, name: str) -> str: return re.split(r"<h2[^>]*>", page)[1 + sections(page).index(name)]


@pytest.mark.parametrize(("kind", "expected"), [("chain", CHAIN), ("phase", SFT)])
def test_every_section_in_a_small_page_that_asks_for_nothing(kind: str, expected: list[str], request: pytest.FixtureRequest) -> None:
    page = page_of(request.getfixturevalue(kind))
    assert sections(page) == expected and 'class="absent"' not in page
    assert "<script" not in page and len(page.encode()) < 1e6
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:)[^"'\s>]+|url\(\s*["']?(?!#|data:)""", page) == []
    assert "Damaged file" not in page # samples with answers of several models are whole


def test_the_leads_say_what_was_taught_and_what_it_cost(chain: Path, phase: Path) -> None:
    said = lead(page_of(chain))
    minutes = sum(float(r["minutes"]) for r in table(chain, "phases"))
    exact = {(r["after"], r["set"]): float(r["exact"]) for r in table(chain, "matrix") if r["exact"]}
    worst = max((exact[s, s] - exact["knowledge", s], s) for s in ("alpha", "beta", "gamma"))
    assert f"it took {minutes:.1f} minutes with evaluations and cost {100 * worst[0]:.1f} points (95 % interval" in said
    assert f"of exact match on {worst[1]}, the phase it forgot most of" in said
    now = ", ".join(f"{s} {100 * exact['knowledge', s]:.1f} %" for s in ("alpha", "beta", "gamma", "knowledge"))
    assert f"Of unseen prompts it now answers exactly: {now}; of the reference prompts 7 of 7" in said and "was asked: undecided" in said
    assert "99.3 % (95 % interval 98.3 to 99.7 %) of 600 unseen prompts" in lead(page_of(phase))


def test_the_matrix_and_the_scores_are_those_of_the_files(chain: Path, phase: Path) -> None:
    drawn = part(page_of(chain), "Forgetting").replace(NARROW, " ")
    for r in table(chain, "matrix"):
        if not r["exact"]: continue
        share, low, high = (100 * float(r[name]) for name in ("exact", "exact_low", "exact_high"))
        assert f">{share:.1f} %<" in drawn and f">{low:.1f} to {high:.1f}<" in drawn
    assert drawn.count(">–<") == 6 and "after base" not in drawn # what a phase had not been taught yet
    shown = words(part(page_of(phase), "Scores"))
    for r in table(phase, "scores"):
        assert (f"{100 * float(r['exact']):.1f} %" in shown) and (r["kind"] == "all" or f"{r['kind']}, n = {float(r['n']):,.0f}" in shown)


def test_reference_prompts_right_and_wrong_by_more_than_colour(chain: Path) -> None:
    shown = part(page_of(chain), "Reference prompts")
    samples = [json.loads(line) for line in (chain / "samples.jsonl").read_text().splitlines()]
    right = sum(text == s["expected"] for s in samples for text in s["answers"].values())
    assert (shown.count("✓"), shown.count("✕")) == (right + 1, 5 * len(samples) - right + 1) # and one in the legend
    assert "<ins" in shown and "<del" in shown


def test_wrong_answers_are_shown_and_counted(chain: Path, phase: Path) -> None:
    shown = part(page_of(phase), "Failures")
    for name in ("gamma", "alpha", "beta"):
        wrong = [r for r in table(phase, "answers") if r["set"] == name and r["exact"] == "False"]
        assert f"<b>{name}</b>: {len(wrong)} of " in shown
    assert shown.count("✕") == sum(min(40, sum(r["exact"] == "False" for r in table(phase, "answers") if r["set"] == name)) for name in ("gamma", "alpha",
        "beta"))
    last = next(r for r in table(chain / "phases/knowledge", "answers") if r["kind"] == "arithmetic" and r["exact"] == "False")
    assert f"asked for: {last['expected']}<" in part(page_of(chain), "Failures") # 42 is told as 42, not as 42.0


def test_five_red_lines_and_three_situations_that_are_none(chain: Path, phase: Path) -> None:
    for page, columns in ((page_of(chain), 4), (page_of(phase), 1)):
        shown = part(page, "Red lines")
        assert all(f"<b>{name.replace('_', ' ')}</b>" in shown for name in ADVICE) and len(ADVICE) == 5
        assert shown.count("of the way") + shown.count("most answers were right before") == 5 * columns
        assert "restart the phase<" not in page and "✕ crossed" not in page
        for name in ("A generalisation gap", "sparse content", "A loss that falls slowly"): assert name in shown
    events = [json.loads(line) for line in (phase / "events.jsonl").read_text().splitlines()]
    worst = min(e["distinct"] for e in events if e["kind"] == "eval" and e["step"] >= 100)
    assert f"{worst:.3g}" in part(page_of(phase), "Red lines") and f"{(1 - worst) / .9:.0%} of the way" in part(page_of(phase), "Red lines")


def test_what_is_learnt_is_marked_and_told(phase: Path, chain: Path) -> None:
    shown, data = part(page_of(phase), "Data"), json.loads((phase / "manifest.json").read_text())["data"]
    learnt = data["example"]["segments"][1][0].replace("<", "&lt;").replace(">", "&gt;")
    assert re.search(r'<span style="[^"]*border-bottom:2px solid[^"]*">' + re.escape(learnt), shown) # underlined, not by colour alone
    assert "learnt, counted in the loss" in shown and "20.0 % of the learnt tokens asked, 19.8 % achieved" in words(shown)
    for source in data["sources"]: assert f"{100 * source['share']:.1f}{NARROW}%" in shown
    assert page_of(chain).count("learnt, counted in the loss") == 4 # an example a phase


def test_a_red_line_stops_the_chain_and_the_advice_is_to_restart(tmp_path: Path) -> None:
    folder = made("chain", tmp_path, end="red_line")
    page = render_report(folder).read_text(encoding="utf-8")
    assert "The chain was stopped in gamma, which crossed the red line “mode collapse”: restart that phase" in lead(page)
    assert "gamma crossed a red line: mode collapse, at step 160: 0.03, at least 0.1 allowed" in page and "restart the phase" in page
    assert ADVICE["mode_collapse"][1:].replace("'", "&#x27;") in page and page.count("✕ crossed") == 1
    assert "--resume" not in page # nobody is told to go on
    assert sections(page) == CHAIN and "Not begun." in page and "Stopped by the red line “mode collapse” at step 160." in page
    inner = render_report(folder / "phases/gamma").read_text(encoding="utf-8")
    assert "crossed the red line “mode collapse” at step 160 and was stopped: restart it" in lead(inner) and "--resume" not in inner


def test_a_missed_gate_and_damaged_files(tmp_path: Path) -> None:
    folder = made("chain", tmp_path, end="gate")
    (folder / "samples.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "phases/beta/claims.json").write_text("[{")
    page = render_report(folder).read_text(encoding="utf-8")
    assert "stopped after beta, which missed its gate (exact ≥ 0.99: 0.983)" in lead(page)
    assert "--resume" not in page and "Change that phase and run the chain again" in lead(page) # going on would judge the same again
    assert "2 of 4 phases (alpha, beta)" in lead(page) and "took 9.7 minutes with evaluations, 5.6 of them in an earlier run" in lead(page)
    assert "Not trained again: taken from curriculum-20260430-171500-0a1b" in page and "✕</span> exact ≥ 0.99" in page
    assert "samples.jsonl is damaged, see Limits" in page and "Damaged file: samples.jsonl (1 of 1 entries cannot be read)" in page
    assert "Beta: damaged file: claims.json (not JSON" in page


def test_prompts_without_one_right_answer_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    folder = examples("10_report/14_chat")["without_answers"](made("sft", tmp_path))
    page = render_report(folder).read_text(encoding="utf-8")
    assert "None of its 600 prompts has a single right answer; 100.0 % of the answers are well formed" in lead(page) and "exactly" not in lead(page)
    assert "None of these prompts has one right answer" in page and "no prompt of it has one right answer" in words(part(page, "Failures"))
    shown = "".join(part(page, name) for name in ("Before and after", "Failures"))
    assert "✓" not in shown and "✕" not in shown and "No answers judged yet" not in page
    assert "well formed, %" in page and "answered exactly, %" not in page


def test_unseen_is_said_only_where_it_was_counted(tmp_path: Path) -> None:
    folder = made("chain", tmp_path)
    about = json.loads((folder / "manifest.json").read_text())
    about["data"]["phases"][2]["evaluation_seen"] = 3 # of gamma
    (folder / "manifest.json").write_text(json.dumps(about))
    page = words(render_report(folder).read_text(encoding="utf-8"))
    assert "of 600 prompts of its own" in page and page.count("unseen prompts of its own") == 3 and "Of unseen prompts" not in page
    inner = folder / "phases/gamma"
    about = json.loads((inner / "manifest.json").read_text())
    about["data"]["overlap"] = "3 of 600 prompts of gamma stand in the conversations"
    (inner / "manifest.json").write_text(json.dumps(about))
    assert "of 600 prompts exactly as asked" in lead(render_report(inner).read_text(encoding="utf-8"))


def test_a_killed_chain_and_a_running_one(tmp_path: Path) -> None:
    folder = made("chain", tmp_path, end="killed")
    page = render_report(folder).read_text(encoding="utf-8")
    assert "was interrupted; gamma: interrupted, at step 200 of 420" in lead(page) and "Go on with <code>paleotrain run curriculum --resume" in page
    assert sections(page) == CHAIN and "The reference prompts have not been answered yet" in page and "Answers of the model after beta" in page
    assert part(page, "Phases").count("<svg") == 3 and page.count('class="badge not-run"') == 6
    with FileLock(folder / "writer.lock"), FileLock(folder / "phases/gamma/writer.lock"): said = report_curriculum.lead(read_run(folder))
    assert "The chain is running; gamma: being trained, at step 200 of 420" in said


@pytest.mark.parametrize(("kind", "expected"), [("curriculum", CHAIN), ("sft", SFT)])
def test_one_that_has_only_begun(kind: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"run_id": f"{kind}-x", "phase": kind, "report": kind}))
    page = render_report(tmp_path).read_text(encoding="utf-8")
    assert sections(page) == expected and page.count("<svg") == 0 and page.count('class="absent"') >= 10


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    names = examples("10_report/14_chat")
    folder = made("chain", tmp_path)
    inner = folder / "phases/knowledge"
    samples = [{"prompt": HOSTILE, "expected": HOSTILE, "answers": {HOSTILE: HOSTILE, "knowledge": "x" + HOSTILE}}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    (inner / "samples.jsonl").write_text(json.dumps({"prompt": HOSTILE, "expected": HOSTILE, "before": HOSTILE, "after": "y"}) + "\n")
    for place, name, column in ((folder, "phases", "reused_from"), (folder, "gates", "gate"), (inner, "answers", "answer"), (inner, "answers", "prompt"),
                                (inner, "answers", "expected"), (inner, "answers", "kind"), (inner, "scores", "kind")):
        lines = table(place, name)
        names["write_rows"](place / f"tables/{name}.csv", [line | {column: HOSTILE if line[column] != "all" else "all"} for line in lines])
    about = json.loads((inner / "manifest.json").read_text())
    about["data"] |= {"split_by": HOSTILE, "overlap": HOSTILE, "kinds": {HOSTILE: 3}, "left_out": {HOSTILE: 2}, "example": {"place": HOSTILE,
        "segments": [[HOSTILE, True]]}}
    about["data"]["sources"][0] |= {"name": HOSTILE, "role": HOSTILE}
    about["parent"] |= {"model": HOSTILE, "family": HOSTILE}
    (inner / "manifest.json").write_text(json.dumps(about))
    red = {"step": 400, "kind": "red_line", "name": HOSTILE, "found": .1, "limit": .2, "said": HOSTILE}
    sample = {"step": 400, "kind": "sample", "prompt": HOSTILE, "expected": HOSTILE, "text": HOSTILE}
    with (inner / "events.jsonl").open("a") as file: file.write(json.dumps(red) + "\n" + json.dumps(sample) + "\n")
    chain = json.loads((folder / "manifest.json").read_text())
    chain["chain"]["phases"][3] |= {"data": {"generator": HOSTILE, HOSTILE: HOSTILE}, "start": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(chain))
    for place in (folder, inner):
        page = render_report(place).read_text(encoding="utf-8")
        assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;") > 20

