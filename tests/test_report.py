"""The report, end to end: the notebook's own example run, whole, interrupted and bare, rendered and read back."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from filelock import FileLock
from nbformat.sign import NotebookNotary

from conftest import HOSTILE, ROOT, examples, page_of
from paleotrain.report.record import VERDICTS, read_run
from paleotrain.report.blocks import BADGES
from paleotrain.report.page import PAGES, render_report
from paleotrain.report.terminal import claims_table, compare_runs

SECTIONS = ["Verdicts", "Before and after", "Curves", "Terms", "Samples", "Oddities", "Data", "Parameters", "Limits", "Environment", "Repeat", "Glossary"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = examples("10_report/01_record")["example_run"](tmp_path_factory.mktemp("whole"))
    render_report(folder)
    return folder




def set_manifest(folder: Path, **entries: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def requested(page: str) -> list[str]:
    "Whatever a browser would fetch for this page: addresses in src, href, url( and @import that are neither data nor an anchor."
    found = re.findall(r"""(?:\b(?:src|srcset|href|action|data|poster)\s*=\s*["']?|url\(\s*["']?|@import\s+["']?)([^"'\s)>]+)""", page)
    return [address for address in found if not address.startswith(("#", "data:"))]


def test_sections_verdicts_and_figures(whole: Path) -> None:
    page = page_of(whole)
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == SECTIONS
    assert re.findall(r'<a href="#([^"]+)', page) == re.findall(r'<h2 id="([^"]+)', page)
    assert re.findall(r'class="badge ([\w-]+)"', page) == ["pass", "inconclusive", "pass", "fail"]
    assert "Not run: “Fits the card” (no GPU &lt;here&gt;)" in page # what wanted a GPU is folded into one row
    assert "<h1>Adapting DeBERTa-v3 base to Cambrian palaeontology</h1>" in page
    assert "<title>Adapting DeBERTa-v3 base to Cambrian palaeontology · dapt-20260304-220512-9f3a</title>" in page
    assert page.count("<svg") == 5 and page.count("<figcaption>") == 5
    assert '<b class="status finished">finished</b>' in page and "class=\"absent\"" not in page


def test_plan_chunks_and_example(whole: Path) -> None:
    page = page_of(whole)
    rows = ["".join(re.findall(r">([^<]*)<", row)) for row in re.findall(r"<tr>.*?</tr>", page)]
    assert "effective batch128 chunks8 × 16 accumulated" in rows
    assert "splitdocumentswordstokenschunks" in rows and "train3121,243,8901,666,8133,273" in rows
    masked = re.findall(r'<span style="([^"]*)">Anomalocaris</span>', page)
    assert len(masked) == 1 and "background:" in masked[0] and "border-bottom:" in masked[0] # with or without the report's stylesheet
    assert page.count("never occur in the training text") == 1 # a problem of the plan is a warning event too


def test_lead_says_what_did_not_come_out(whole: Path) -> None:
    lead = re.sub("<[^>]+>", "", re.findall(r'<p class="lead">.*?</p>', page_of(whole))[0]).replace("\u202f", " ")
    assert "fell by 54.2 % (95 % interval 50.9 to 57.1 %) by training, from 134 to 61.4. The perplexity of words outside the term list fell by 14.6 % " in lead
    assert "(95 % interval 13.3 to 15.9 %); but the general perplexity rose by 10.8 %" in lead
    assert "at most +3 % was asked (+8.8 % by the new vocabulary before the first step, +1.9 % by the training)" in lead and "Not run" not in lead
    assert "rare-term perplexity fell by 26.2 % (95 % interval 10.1 to 43.8 %) by training," in lead
    assert "from 11.0 bits to 10.6 bits, where at most −20 % was asked: undecided" in lead


def test_page_is_small_and_asks_for_nothing(whole: Path) -> None:
    page = page_of(whole)
    assert len(page.encode()) < 1_000_000
    assert requested(page) == [] and "<script" not in page and "http://" not in page and "https://" not in page
    assert requested('<img src="http://a.invalid/x.png"><link href=/style.css>') == ["http://a.invalid/x.png", "/style.css"] # it can fail
    assert "default-src 'none'" in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    names = examples("10_report/01_record")
    folder = names["example_run"](tmp_path)
    spoilt = names["example_manifest"]()
    for key in ("title", "command", "baseline"): spoilt[key] = HOSTILE
    spoilt["config"]["max_steps"] |= {"value": HOSTILE, "origin": HOSTILE, "description": HOSTILE}
    spoilt["inputs"][0] |= {"path": HOSTILE, "licence": HOSTILE, "role": HOSTILE, "sha256": HOSTILE}
    spoilt["data"] |= {"test_units": [HOSTILE], "overlap": HOSTILE, "split_by": HOSTILE}
    spoilt["parent"] |= {"model": HOSTILE, "head": HOSTILE}
    spoilt["hardware"] |= {"cpu": HOSTILE, "gpu": HOSTILE}
    spoilt["terminal"]["reason"] = HOSTILE
    spoilt["plan"] = {"rows": [[HOSTILE] * 3], "problems": [HOSTILE]}
    spoilt["example"][0] |= {"text": HOSTILE, "kind": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(spoilt))
    claims = names["example_claims"]()
    for claim in claims: claim |= {key: HOSTILE for key in ("statement", "metric", "criterion", "note", "unit")}
    (folder / "claims.json").write_text(json.dumps(claims))
    sample = {"left": HOSTILE, "hidden": HOSTILE, "right": HOSTILE, "before": [[HOSTILE, .5]], "after": [[HOSTILE, .5]]}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    table = folder / "tables/terms.csv"
    table.write_text(table.read_text().replace("Anomalocaris,", '"<script>alert(""x"")</script>",'))
    warning = {"step": 1, "kind": "warning", "message": HOSTILE}
    with (folder / "events.jsonl").open("a") as file: file.write(f"\n{json.dumps(warning)}\n")
    page = render_report(folder).read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") > 25
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == SECTIONS


def test_interrupted_run_shows_what_it_has(tmp_path: Path) -> None:
    folder = examples("10_report/01_record")["example_run"](tmp_path)
    set_manifest(folder, terminal=None)
    claims = [{k: c[k] for k in ("id", "statement", "metric", "criterion", "threshold", "unit")} | {"verdict": "NOT RUN"}
              for c in json.loads((folder / "claims.json").read_text())]
    (folder / "claims.json").write_text(json.dumps(claims)) # as they are promised before the first step
    shutil.rmtree(folder / "tables"); (folder / "samples.jsonl").unlink()
    page = render_report(folder).read_text(encoding="utf-8")
    assert '<b class="status interrupted">' in page and "was interrupted at step 1,800 of 2,000" in page
    assert "No result has been judged yet." in page and page.count('class="badge not-run"') == 5
    assert page.count("<svg") == 2 # the curves are there, the comparison is not
    for sentence in ("No evaluation yet.", "No terms evaluated.", "No fragmentation measured.", "No samples yet."):
        assert sentence in page


def test_running_and_failed_are_told_apart(tmp_path: Path) -> None:
    folder = examples("10_report/01_record")["example_run"](tmp_path)
    set_manifest(folder, terminal=None)
    with FileLock(folder / "writer.lock"):
        assert read_run(folder).status == "running"
        assert "is still running, at step 1,800" in render_report(folder).read_text(encoding="utf-8")
    set_manifest(folder, terminal={"status": "failed", "reason": "loss became NaN at layer 3"})
    page = render_report(folder).read_text(encoding="utf-8")
    assert "failed at step 1,800 of 2,000 (loss became NaN at layer 3)" in page and '<b class="status failed">' in page


def test_bare_manifest_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    page = render_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == SECTIONS and page.count('class="absent"') >= 10
    (tmp_path / "claims.json").write_text("[{")
    (tmp_path / "samples.jsonl").write_text('{"left": "a"\n')
    page = render_report(tmp_path).read_text(encoding="utf-8")
    assert "Damaged file: claims.json (not JSON, " in page and "Damaged file: samples.jsonl (1 of 1 entries cannot be read)" in page
    assert "No claims yet" not in page and "No samples yet" not in page and page.count("is damaged, see Limits") == 4


@pytest.mark.parametrize(("name", "text", "said"), [
    ("events.jsonl", '5\n{"kind": "eval", "step": 2, "nats": 4.1}\n{"kind": "ev\n[]\n{"kind": "train"}\n{"ki', "3 of 5 entries cannot be read"),
    ("claims.json", "{}", "not a list"),
    ("claims.json", '[5, {"id": "domain"}]', "2 of 2 entries cannot be read"),
    ("claims.json", '[{"id": "domain", "stat', "not JSON, "),
    ("checkpoints/step-000800/checkpoint.json", '{"step": 8', "not JSON, "),
    ("checkpoints/step-000800/checkpoint.json", "5", "1 of 1 entries cannot be read"),
])
def test_damage_is_named_under_limits(tmp_path: Path, name: str, text: str, said: str) -> None:
    folder = examples("10_report/01_record")["example_run"](tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    page = render_report(folder).read_text(encoding="utf-8")
    assert f"<li>Damaged file: {name} ({said}" in page
    if name == "claims.json":
        assert "No claims yet" not in page and "No result has been judged" not in page and "claims.json is damaged, see Limits" in page
        assert claims_table(folder) == "claims.json is damaged, see Limits."
    assert compare_runs([folder, folder]).splitlines()[2].split()[0] == "status"


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    folder = examples("10_report/01_record")["example_run"](tmp_path)
    attempts = json.loads((folder / "manifest.json").read_text())["attempts"]
    set_manifest(folder, terminal=None, attempts=attempts[:1])
    with (folder / "events.jsonl").open("a") as file: file.write('\n{"kind": "status", "step": 1800, "status": "interrupted", "reason": "Ctrl-C"}\n')
    top = render_report(folder).read_text(encoding="utf-8").partition("</header>")[0]
    assert "was interrupted at step 1,800 of 2,000 (Ctrl-C)" in top
    assert "<code>paleotrain run dapt --resume dapt-20260304-220512-9f3a</code>" in top
    assert "Dotted: a resume" not in page_of(folder) # there was none


def test_rare_terms_are_shown_in_bits(tmp_path: Path) -> None:
    folder = examples("10_report/01_record")["example_run"](tmp_path)
    claims = json.loads((folder / "claims.json").read_text())
    change = {name: value / 6.36e13 - 1 for name, value in (("change", 1.97e6), ("change_low", 1.2e6), ("change_high", 3.1e6))}
    found = dict(baseline=6.36e13, value=1.97e6, low=1.2e6, high=3.1e6, **change)
    claims[1] |= {"metric": "perplexity of rare-term occurrences", "unit": "perplexity", "verdict": "PASS"} | found
    (folder / "claims.json").write_text(json.dumps(claims))
    page = render_report(folder).read_text(encoding="utf-8").replace("\u202f", " ")
    assert "45.9 bits" in page and "20.9 bits" in page and "−24.9 bits" in page and "shown in bits per occurrence" in page
    assert "×10" not in page and "32,300,000" not in page # no perplexity of 10¹³, and no factor of millions
    assert "45.9 bits" in claims_table(folder) and "-24.9 bits" in claims_table(folder).replace("−", "-")


def test_an_older_run_without_the_fields_of_claims(tmp_path: Path) -> None:
    folder = examples("10_report/01_record")["example_run"](tmp_path)
    old = [{k: v for k, v in c.items() if k not in ("about", "pair", "units", "points_to")} for c in json.loads((folder / "claims.json").read_text())]
    (folder / "claims.json").write_text(json.dumps(old))
    for name in ("states", "changes"): (folder / f"tables/{name}.csv").unlink()
    page = render_report(folder).read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == SECTIONS and re.findall(r'class="badge ([\w-]+)"', page) == ["pass", "inconclusive", "pass", "fail"]
    assert "by training" not in claims_table(folder) and "Has not forgotten English" in claims_table(folder)


def test_a_wrong_path_is_no_failed_training(tmp_path: Path) -> None:
    about = examples("10_report/01_record")["example_manifest"]()
    known = {name: about[name] for name in ("run_id", "phase", "command", "created", "config", "hardware", "seeds")}
    wrong = {"status": "failed", "reason": "UserError: none.txt: no such file or folder; check the path", "steps": 0}
    (tmp_path / "manifest.json").write_text(json.dumps(known | {"terminal": wrong}))
    (tmp_path / "events.jsonl").write_text('{"t": 1, "step": 0, "kind": "status", "status": "started"}\n')
    page = render_report(tmp_path).read_text(encoding="utf-8")
    lead = re.sub("<[^>]+>", "", page.partition("<nav>")[0].partition("</style>")[2])
    assert "The run failed (none.txt: no such file or folder; check the path) while it was reading its input; nothing was trained" in lead
    assert "was being trained" not in lead and "Start again with the fix" in lead and "--resume" not in page
    assert 'class="absent"' not in page and "anything to show under: Verdicts, Before and after, Curves, Terms, Samples, Oddities, Data." in lead
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == ["Parameters", "Limits", "Environment", "Repeat", "Glossary"]


def test_every_verdict_has_a_look_of_its_own() -> None:
    style = (ROOT / "nbs/report_template/blocks.css").read_text(encoding="utf-8")
    looks = [re.findall(rf"\.badge\.{verdict.lower().replace(' ', '-')} {{([^}}]*)}}", style) for verdict in VERDICTS]
    assert all(len(look) == 1 for look in looks) and len({look[0] for look in looks}) == len(VERDICTS)
    assert "background: var(--pass)" in looks[0][0] and "background: var(--fail)" in looks[1][0] # a failure weighs as much as a success
    assert len(set(BADGES.values())) == len(BADGES) == len(VERDICTS)


def test_glossary_is_linked_from_the_top(whole: Path) -> None:
    page = page_of(whole)
    assert page.index('<a href="#glossary">') < page.index("<h2") and "Dotted: a resume." in page
    for word in ("baseline", "macro over terms", "unigram model", "replay", "test units", "per character"): assert word in page.partition("<dl")[2]


def test_a_report_that_cannot_be_made_leaves_the_old_one(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = page_of(folder)
    (folder / "tables/terms.csv").write_text("term,n,nats_before,nats_after\nx,many,1,1\n")
    with pytest.raises(KeyError): render_report(folder)
    assert page_of(folder) == before and not list(folder.glob(".*tmp"))


def test_as_a_subprocess(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"run_id": "dapt-x"}')
    done = subprocess.run([sys.executable, "-m", "paleotrain.report.page", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path.resolve() / "report.html") and done.stderr == ""
    wrong = subprocess.run([sys.executable, "-m", "paleotrain.report.page", tmp_path / "none"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.strip().endswith("paleotrain runs lists them") and "Traceback" not in wrong.stderr


def test_terminal_tables(whole: Path, tmp_path: Path) -> None:
    lines = claims_table(whole).splitlines()
    assert max(map(len, lines)) <= 115 and len(lines) == 11
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    config = json.loads((other / "manifest.json").read_text())["config"]
    config["learning_rate"]["value"] = 1e-4
    set_manifest(other, config=config, run_id="dapt-other")
    text = compare_runs([whole, other])
    assert text.splitlines()[-1].split() == ["learning_rate", "5e-05", "0.0001"] and "max_steps" not in text


def page_requests(page: Path, tmp_path: Path, browser: str) -> list[str]:
    "Addresses that the page itself makes a headless browser fetch; the browser's own have no origin and are left out."
    log = tmp_path / "net.json"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--disable-dev-shm-usage", "--virtual-time-budget=2000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    places = [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", f"--screenshot={tmp_path / 'page.png'}"]
    subprocess.run([browser, *quiet, *places, page.as_uri()], check=True, capture_output=True, timeout=120)
    assert (tmp_path / "page.png").stat().st_size > 0
    text = log.read_text(encoding="utf-8").rstrip().rstrip(",")
    try: record = json.loads(text)
    except ValueError: record = json.loads(text + "]}") # the browser left before it closed its log
    start = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [event["params"] for event in record["events"] if event["type"] == start and "url" in event.get("params", {})]
    return [job["url"] for job in jobs if job.get("initiator") != "not an origin"]


def test_a_browser_requests_nothing(whole: Path, tmp_path: Path) -> None:
    browser = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if browser is None: pytest.skip("no chromium on PATH: the page was not opened in a browser")
    control = tmp_path / "control.html"
    control.write_text('<img src="http://control.invalid/x.png"><script src="https://cdn.invalid/a.js"></script>')
    assert page_requests(control, tmp_path, browser) == ["http://control.invalid/x.png", "https://cdn.invalid/a.js"] # the log sees requests
    shutil.rmtree(tmp_path / "profile")
    assert page_requests(whole / "report.html", tmp_path, browser) == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").glob("run_*.ipynb")), ids=lambda path: path.stem)
def test_a_run_notebook_shows_sections_that_its_report_has(notebook):
    phase = notebook.stem.removeprefix("run_")
    asked = re.findall(r'part\(run.folder, \\"(.+?)\\"\)', notebook.read_text(encoding="utf-8"))
    for kind in ("pretrain", "causal") if phase == "pretrain" else (phase,): # both kinds have them
        assert asked and set(asked) <= {one.title for one in PAGES[kind].sections}


def test_a_home_that_cannot_be_written_costs_no_report(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None: raise PermissionError("read-only home")
    monkeypatch.setattr(NotebookNotary, "sign", refused)
    assert render_report(Path(shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("report.*")))).is_file()


def test_the_notebook_of_a_report_is_trusted_and_has_the_look_of_its_page(whole: Path) -> None:
    notebook = nbformat.read(whole / "report.ipynb", as_version=4)
    assert NotebookNotary().check_signature(notebook) # or JupyterLab would show the letters of a figure alone
    shown = "".join(cell.outputs[0].data["text/html"] for cell in notebook.cells if cell.cell_type == "code")
    assert "<svg" in shown and ".badge.pass" in shown
