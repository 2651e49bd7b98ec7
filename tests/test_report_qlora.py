"""The reports of domain adapters, end to end: the invented runs of 10_report/18_compare in every state."""
import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import HOSTILE, examples, page_of, sections
from paleotrain.report import compare as report_compare
from paleotrain.report import domains as report_domains
from paleotrain.report.record import NARROW, number, percent, read_run
from paleotrain.report.page import render_report

QLORA = ["Verdicts", "Before and after", "Elsewhere", "Questions with a key", "Samples", "Curves", "Oddities", "Adapter", "Data", "Parameters", "Limits",
         "Environment", "Repeat", "Glossary"]
DOMAINS = ["Verdicts", "Cross-domain", "Domains side by side", "Accuracy", "Each domain", "Oddities", "Data", "Parameters", "Limits", "Environment", "Repeat",
           "Glossary"]
NAMES = ["medicine", "ecology", "education", "debate"]


def made(kind: str, folder: Path, *given: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run: Path = examples("10_report/18_compare")[f"{kind}_run"](folder, *given)
    return run


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made("qlora", tmp_path_factory.mktemp("adapter"))
    render_report(folder)
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made("domains", tmp_path_factory.mktemp("chain"))
    render_report(folder)
    return folder


def words(page: str) -> str: return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", page))).replace(NARROW, " ")
def lead(page: str) -> str: return words(re.findall(r'<p class="lead">.*?</p>', page, re.S)[0])
def part(page: str, name: str) -> str: return re.split(r"<h2[^>]*>", page)[1 + sections(page).index(name)]
def share(text: str, signed: bool = False) -> str: return percent(float(text), signed).replace(NARROW, " ")
def rendered(folder: Path) -> str: return render_report(folder).read_text(encoding="utf-8")


def cells(table: str) -> list[list[str]]:
    "The text of every body row."
    return [[words(cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)] for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)]


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


def rewrite(folder: Path, **parts: Any) -> None:
    about = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(about | parts))


@pytest.mark.parametrize(("kind", "expected"), [("adapter", QLORA), ("chain", DOMAINS)])
def test_every_section_in_a_small_page_that_asks_for_nothing(kind: str, expected: list[str], request: pytest.FixtureRequest) -> None:
    page = page_of(request.getfixturevalue(kind))
    assert sections(page) == expected and 'class="absent"' not in page
    assert "<script" not in page and len(page.encode()) < 1e6
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:)[^"'\s>]+|url\(\s*["']?(?!#|data:)""", page) == []
    assert all(f'id="{at}"' in page for at in re.findall(r'href="#([^"]+)"', page)) # every oddity leads somewhere
    assert "Damaged file" not in page and "nan" not in re.findall(r"\w+", words(page)) and "None" not in re.findall(r"\w+", words(page))


def test_the_leads_say_what_came_out_and_what_it_cost(adapter: Path, chain: Path) -> None:
    said, test = lead(page_of(adapter)), next(r for r in rows(adapter, "losses") if r["set"] == "test")
    fell = [share(str(-float(test[k]))).removesuffix(" %") for k in ("change", "change_high", "change_low")]
    assert f"fell by {fell[0]} % (95 % interval {fell[1]} to {fell[2]} %), from {number(float(test['before']))} to {number(float(test['after']))}" in said
    others = [r for r in rows(adapter, "losses") if r["role"] != "own"]
    worst = max(others, key=lambda r: float(r["change"]))
    assert f"Of 4 other texts {worst['set']} came out worst: its perplexity rose by {share(worst['change'])}" in said
    assert f"rose by {share(worst['change'])}" in said and "where at most +3 % was asked" in said
    said = lead(page_of(chain))
    sure = [r for r in rows(chain, "domains") if float(r["change_high"]) < 0 and float(r["test_units"]) >= 20]
    assert f"fell for certain in {len(sure)} of 4: medicine {share(rows(chain, 'domains')[0]['change'], True)}" in said
    lost = [r for r in rows(chain, "cross") if r["role"] != "own" and float(r["change_low"]) > 0 and float(r["units"]) >= 20]
    assert f"Of 16 pairs of an adapter and another text {len(lost)} got worse" in said
    assert "Also " in said and "“education: Answers its domain better than the base” −" in said and ": INCONCLUSIVE" in said and "debate +" in said


def test_perplexities_are_those_of_the_table(adapter: Path) -> None:
    page = page_of(adapter)
    for section, own in (("Before and after", True), ("Elsewhere", False)):
        shown = {row[0]: row for row in cells(part(page, section)) if row}
        asked = [r for r in rows(adapter, "losses") if (r["role"] == "own") == own]
        assert list(shown) == [r["set"] for r in asked]
        for r in asked:
            before, after = (f"{number(float(r[k]))} ({number(float(r[f'{k}_low']))} to {number(float(r[f'{k}_high']))})" for k in ("before", "after"))
            assert shown[r["set"]][3:5] == [before, after] and share(r["change"], True) in shown[r["set"]][1]
            assert shown[r["set"]][5:7] == [f"{int(r['units']):,}", f"{int(r['items']):,}"]
    assert [row[2] for row in cells(part(page, "Elsewhere")) if row] == ["learned", "unclear", "forgotten", "forgotten"] # education has 14 documents
    assert part(page, "Elsewhere").count("<svg") == 2 and part(page, "Before and after").count("<svg") == 2


def test_questions_are_held_against_guessing(adapter: Path) -> None:
    shown = part(page_of(adapter), "Questions with a key")
    table = {row[0]: row for row in cells(shown) if len(row) == 7}
    for r in rows(adapter, "accuracy"):
        assert table[r["set"]][1] == r["n"] and table[r["set"]][5:] == [share(r["chance"]), share(r["majority"])]
        assert table[r["set"]][4].startswith(share(r["after"])) and table[r["set"]][2].startswith(f"{float(r['change']):+.1f}".replace("-", "−"))
    choices = [(r["right_before"], r["right_after"]) for r in rows(adapter, "choices")]
    won, lost, right, wrong = (choices.count(pair) for pair in (("False", "True"), ("True", "False"), ("True", "True"), ("False", "False")))
    assert f"{won} came to be right and {lost} to be wrong; {right} were right before and after, {wrong} wrong." in words(shown)
    assert ">chance<" in shown and ">majority<" in shown


def test_the_heat_map_is_that_of_the_table_and_readable_without_colour(chain: Path) -> None:
    shown = part(page_of(chain), "Cross-domain")
    body = [row for row in cells(shown) if row]
    signs = {"▼": 0, "▲": 0, "○": 0}
    for y, name in enumerate(NAMES):
        for x, text in enumerate([*NAMES, "general text"]):
            r = next(r for r in rows(chain, "cross") if r["adapter"] == name and r["set"] == text)
            low, high = float(r["change_low"]), float(r["change_high"])
            sign = "○" if float(r["units"]) < 20 else "▼" if high < 0 else "▲" if low > 0 else "○"
            signs[sign] += 1
            assert body[y][x] == f"{sign} {share(r['change'], True)} {share(r['change_low'], True).removesuffix(' %')} to {share(r['change_high'], True)}"
    assert signs["▼"] and signs["▲"] and signs["○"]
    assert shown.count("repeating-linear-gradient") == signs["▲"] and shown.count("background:#fff") == signs["○"] and shown.count("outline:2.5px") == 4


def test_domains_side_by_side(chain: Path) -> None:
    page = page_of(chain)
    table = {row[0].split()[0]: row for row in cells(part(page, "Domains side by side")) if len(row) == 9}
    for r in rows(chain, "domains"):
        assert table[r["domain"]][3:7] == [number(float(r["before"])), number(float(r["after"])), f"{int(r['examples']):,}", f"{float(r['test_units']):.0f}"]
        assert table[r["domain"]][2] == r["verdict"] and table[r["domain"]][7] == f"{float(r['minutes']):.1f}"
    assert "not trained again: taken from domains-20261121-0001/adapters/ecology" in table["ecology"][0]
    assert part(page, "Each domain").count("<svg") == 8 # perplexities and curves of each
    assert [words(name) for name in re.findall("<h3[^>]*>([^<]+)", part(page, "Each domain"))] == NAMES
    assert page.count('class="badge fail"') == 3 and page.count('class="badge inconclusive"') == 2 # a negative result is shown like any other


def test_oddities_are_explained(adapter: Path, tmp_path: Path) -> None:
    shown = words(part(page_of(adapter), "Oddities"))
    assert "lies above the validation loss" in shown and "dropout (0.05) is on while training" in shown and "not above validation: nothing is wrong" in shown
    assert "41 prompts were cut to fit the context of 256 tokens" in shown and "Too few documents: education (14 documents)" in shown
    shown = words(part(rendered(made("qlora", tmp_path, "debate")), "Oddities"))
    test = next(r for r in rows(tmp_path, "losses") if r["set"] == "test")
    assert f"already on the test text of debate ({number(float(test['before']))} against {number(float(test['after']))})" in shown
    assert "it made the model worse here" in shown


def test_memory_and_sizes(adapter: Path) -> None:
    shown, about = words(part(page_of(adapter), "Adapter")), json.loads((adapter / "manifest.json").read_text())
    assert "rank 8, alpha 16, dropout 0.05" in shown and "302,720, 10.6 % of the base's 2,853,120" in shown and "1.23 MB" in shown
    for what, _, how in about["memory"]["rows"]: assert what in shown and how.replace(" x ", " × ") in shown
    assert "predicted 69.2 MB" in shown and "measured 66.4 MB −4.0 % from the prediction" in shown


@pytest.mark.parametrize("end", ["killed", "failed"])
def test_an_adapter_that_did_not_come_to_its_end(end: str, tmp_path: Path) -> None:
    page = rendered(made("qlora", tmp_path, "medicine", end))
    empty = ["Before and after", "Elsewhere", "Questions with a key", "Samples"] # a run that failed shows no placeholders, one that was stopped does
    assert sections(page) == [name for name in QLORA if end == "killed" or name not in empty] and page.count('class="badge not-run"') == 4
    if end == "failed": assert 'class="absent"' not in page and f"before there was anything to show under: {', '.join(empty)}." in page
    else:
        for section in empty: assert 'class="absent"' in part(page, section), section
    assert part(page, "Curves").count("<svg") == 2 and "best so far" in page
    said = {"killed": "was interrupted at step 240 of 510", "failed": "failed at step 240 of 510 (the loss is not a number at step 40"}[end]
    assert said in lead(page) and "No result has been judged yet. At step 240 the validation loss was" in lead(page)
    assert "Go on with <code>paleotrain run qlora --resume" in page


def test_a_chain_that_did_not_come_to_its_end(tmp_path: Path) -> None:
    folder = made("domains", tmp_path, "killed")
    page = rendered(folder)
    assert sections(page) == DOMAINS and "2 of 4 domain adapters" in lead(page) and "education: interrupted, at step 20 of 50" in lead(page)
    assert len([row for row in cells(part(page, "Cross-domain")) if row]) == 2
    assert "not begun" in part(page, "Domains side by side")
    assert page.count('class="badge not-run"') == 4
    with FileLock(folder / "writer.lock"), FileLock(folder / "adapters/education/writer.lock"): said = report_domains.lead(read_run(folder))
    assert "The chain is running; education: being trained, at step 20 of 50" in said


@pytest.mark.parametrize(("kind", "expected"), [("qlora", QLORA), ("domains", DOMAINS)])
def test_one_that_has_only_begun(kind: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"run_id": f"{kind}-x", "phase": kind, "report": kind}))
    page = rendered(tmp_path)
    assert sections(page) == expected and page.count("<svg") == 0 and page.count('class="absent"') >= 6


def test_tables_of_headings_alone_and_a_damaged_file(tmp_path: Path) -> None:
    for place in (folder := made("domains", tmp_path), folder / "adapters/medicine"):
        for path in place.glob("tables/*.csv"): path.write_text(path.read_text().split("\n")[0] + "\n")
        (place / "samples.jsonl").write_text('{"prompt": "a"}\n')
        rewrite(place, memory={}, adapter={}, data={})
    inner, whole = rendered(folder / "adapters/medicine"), rendered(folder)
    assert sections(inner) == QLORA and "samples.jsonl is damaged, see Limits" in inner and "No adapter made yet" in inner
    assert sections(whole) == DOMAINS and "No text read by several adapters yet" in whole
    assert "Medicine: damaged file: samples.jsonl" in whole


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    write_rows = examples("10_report/18_compare")["write_rows"]
    folder = made("domains", tmp_path)
    inner = folder / "adapters/medicine"
    for place, table, columns in ((folder, "cross", ("adapter", "set")), (folder, "domains", ("domain", "verdict", "reused_from")), (inner, "losses", ("set",)),
                                  (inner, "accuracy", ("set",)), (inner, "choices", ("source", "key"))):
        found = rows(place, table)
        write_rows(place / f"tables/{table}.csv", found + [found[-1] | dict.fromkeys(columns, HOSTILE)])
    sample = dict.fromkeys(("id", "expected", "before"), HOSTILE) | {"prompt": HOSTILE * 9, "after": "y" + HOSTILE}
    (inner / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    about = json.loads((inner / "manifest.json").read_text())
    about["adapter"] |= dict.fromkeys(("domain", "quantization", "compute", "optimizer", "template"), HOSTILE) | {"targets": [HOSTILE]}
    about["data"] |= {"split_by": HOSTILE, "splits": {HOSTILE: about["data"]["splits"]["train"]}, "example": {"place": HOSTILE, "segments": [[HOSTILE, True]]}}
    about["data"]["sources"][0] |= {"name": HOSTILE, "role": HOSTILE}
    about["memory"]["rows"] = [[HOSTILE, 5, HOSTILE]]
    about["parent"] |= {"model": HOSTILE, "family": HOSTILE}
    rewrite(inner, title=HOSTILE, **{name: about[name] for name in ("adapter", "data", "memory", "parent")})
    rewrite(folder, title=HOSTILE, domains=[HOSTILE, *NAMES])
    warned = [{"step": 40, "kind": "warning", "message": HOSTILE}, {"step": 40, "kind": "check", "name": HOSTILE, "ok": False, "message": HOSTILE}]
    with (inner / "events.jsonl").open("a") as file: file.write("".join(json.dumps(e) + "\n" for e in warned))
    for place in (folder, inner):
        page = rendered(place)
        assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;") > 15
        assert sections(page) == (DOMAINS if place == folder else QLORA)


def test_a_direction_needs_documents() -> None:
    change = {"change_low": -.2, "change_high": -.1}
    assert [report_compare.direction(change | {"units": n}) for n in (19, 20)] == ["unclear", "learned"]
