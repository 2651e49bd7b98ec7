"""Every lead of every phase over a grid of outcomes: each sentence is held against the signs of the claims, and nothing that failed may be left out."""
import re
from dataclasses import replace
from pathlib import Path

import pytest

from paleotrain.report import summary
from paleotrain.runs.claims import Claim, Result, claim, of_seeds, settle
from paleotrain.report.page import PAGES
from paleotrain.report.record import NARROW, RunRecord, percent

LEADS = {name: page.lead for name, page in PAGES.items() if name != "pretrain"} | {"masked": PAGES["pretrain"].lead}
PHASES = {"masked": "pretrain", "causal": "pretrain"} # where the phase has another name


def promised() -> list[Claim]:
    return [claim("domain", "Reads it better", "perplexity of held-out words", "<= -10 %", "learning", "V to after", -.1),
            claim("general", "Has not forgotten English", "perplexity of general words", "<= +3 %", "forgetting", "A to after", .03),
            claim("copies", "Has no copies", "copies that are left", "= 0", "property", unit="copies")]


def came_out(change: float, reach: float, units: int = 60) -> Result:
    low, high = change - reach, change + reach
    return Result(100 * (1 + change), 5000, 100 * (1 + low), 100 * (1 + high), 100., change, low, high, (low, high), units)


def settled(learned: Result | None, kept: Result | None, copies: int = 0, **given: object) -> list[Claim]:
    claims = promised()
    settle(claims, "domain", learned, **given) # type: ignore[arg-type]
    settle(claims, "general", kept, **given) # type: ignore[arg-type]
    settle(claims, "copies", Result(copies, 40), met=not copies)
    return claims


OUTCOMES = {
    "better": settled(came_out(-.3, .05), came_out(.01, .01)),
    "worse": settled(came_out(.228, .1), came_out(.359, .15), 3),
    "better at a price": settled(came_out(-.3, .05), came_out(.108, .03)),
    "a little better": settled(came_out(-.04, .02), came_out(-.02, .01)),
    "undecided": settled(came_out(-.05, .08), came_out(.04, .03)),
    "undecided and worse": settled(came_out(.05, .2), came_out(.2, .19)),
    "too few": settled(came_out(-.3, .05, 12), came_out(.359, .15, 12)),
    "too few, undecided": settled(came_out(-.1, .05, 12), came_out(.03, .01, 12)),
    "not run": settled(None, Result(0., 0)),
    "held before training": settled(came_out(-.3, .05), came_out(.01, .01), before=True),
    "missed before training": settled(came_out(.1, .05), came_out(.102, .015), before=True),
    "one seed": settled(came_out(-.3, .05), came_out(.108, .03), doubt=of_seeds(1)),
    "nothing learned": settled(came_out(0., .0001), came_out(0., .0001)),
}


def made(phase: str, claims: list[Claim], status: str = "finished", reason: str = "", best_step: int = 8, trained: bool = True) -> RunRecord:
    "A run of a phase with these claims and little else."
    events = [{"kind": "train", "step": 8, "loss": 3.}, {"kind": "eval", "step": 8, "nats": 2.}] if trained else []
    terminal = {"status": status, "reason": reason, "best_step": best_step, "steps": 8} if reason else None
    manifest = {"phase": PHASES.get(phase, phase), "run_id": f"{phase}-1", "terminal": terminal, "config": {"max_steps": {"value": 20}}}
    return RunRecord(Path("/nowhere"), status, manifest, events, [dict(c) for c in claims], {"metrics": [], "terms": [], "fragmentation": []}, [], {})


def said(phase: str, run: RunRecord) -> str:
    return re.sub("<[^>]+>", "", LEADS[phase](run)).replace(NARROW, " ")


def is_bad(c: Claim) -> bool:
    return "FAIL" in (c["verdict"], c["points_to"]) or c["note"].startswith("missed before")


def check(text: str, claims: list[Claim]) -> None:
    "Against the signs alone: a rise is a rise, what failed is there with its figure, what held is not told of another."
    for c in claims:
        told = re.findall(f"{c['metric']} (fell by|rose by|changed by|did not change)(?: (\\S+ %))?", text)
        if c["change"] is not None:
            low, high = c["change_low"], c["change_high"]
            assert low is not None and high is not None
            nothing = max(abs(low), abs(high)) < .0005
            verb = "did not change" if nothing else "fell by" if high < 0 else "rose by" if low > 0 else "changed by"
            figure = percent(c["change"], verb == "changed by").replace(NARROW, " ").lstrip("−" if verb == "fell by" else "")
            assert all(one[0] == verb and (nothing or one[1] == figure) for one in told), (c["id"], told)
            if c["verdict"] != "PASS": assert told, f"{c['id']}, {c['verdict']}, is not told: {text}"
        if is_bad(c): assert c["metric"] in text and re.search(f"{c['metric']}.*?was asked", text), text
        if c["verdict"] == "NOT RUN": assert f"“{c['statement']}” was not judged" in text
        if c["verdict"] == "TOO FEW": assert f"too few documents (12): {'points to ' + c['points_to'] if c['points_to'] else 'no verdict'}" in text
        held = re.findall(r"Held[^.]*?:([^.]*)\.", text)
        assert c["verdict"] == "PASS" or not any(c["statement"] in names for names in held)
    assert not re.search(r"None|\bnan\b|much less|\{|\bstands?\b", text), text


@pytest.mark.parametrize("phase", LEADS)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_lead_cannot_contradict_its_claims(phase: str, outcome: str) -> None:
    claims = OUTCOMES[outcome]
    text = said(phase, made(phase, claims, reason="the last step"))
    check(text, claims)
    assert "No result has been judged" not in text or all(c["verdict"] == "NOT RUN" for c in claims)
    assert "failed (" not in text and "interrupted" not in text and "never beat" not in text


@pytest.mark.parametrize("phase", [name for name in LEADS if PHASES.get(name, name) in summary.TRAIN])
@pytest.mark.parametrize("outcome", ["better", "worse", "nothing learned"])
def test_a_training_that_never_beat_its_start_says_so_first(phase: str, outcome: str) -> None:
    text = said(phase, made(phase, OUTCOMES[outcome], reason="no better", best_step=0))
    assert text.startswith("Training never beat the state before its first step")
    check(text, OUTCOMES[outcome])


@pytest.mark.parametrize("phase", LEADS)
def test_a_failed_run_says_what_it_was_doing(phase: str) -> None:
    wrong = made(phase, [], "failed", "UserError: none.txt: no such file; check the path", trained=False)
    text = said(phase, wrong)
    assert "failed (none.txt: no such file; check the path) while it was reading its input" in text
    assert not re.search("was being|were trained for|(?<!nothing )was trained|was adapted|No result", text), text
    assert ("nothing was trained" in text) == (PHASES.get(phase, phase) in summary.TRAIN)
    assert "--resume" not in summary.go_on(wrong) and "the fix" in summary.go_on(wrong)


@pytest.mark.parametrize(("reason", "resumed"), [("OutOfMemoryError: CUDA out of memory", True), ("OSError: [Errno 28] No space left on device", True),
                                                 ("UserError: /runs: the disk is full; make room", True), ("KeyError: 'a'", True),
                                                 ("UserError: training: loss is nan at step 3; lower learning_rate", False),
                                                 ("UserError: terms.csv: no column 'term'; name it", False)])
def test_a_resume_is_suggested_where_it_can_help(reason: str, resumed: bool) -> None:
    run = made("dapt", OUTCOMES["not run"], "failed", reason)
    assert ("--resume dapt-1" in summary.go_on(run)) == resumed
    assert "while it was training" in said("dapt", run) and "at step 8 of 20" in said("dapt", run)
    assert "--resume dapt-1" in summary.go_on(replace(run, status="interrupted"))


@pytest.mark.parametrize("phase", LEADS)
def test_an_interrupted_run_says_where(phase: str) -> None:
    text = said(phase, made(phase, [], "interrupted"))
    assert "was interrupted" in text and "had written by then" in text
    check(text, [])


def test_an_empty_split_is_named() -> None:
    run = made("prepare", OUTCOMES["not run"], reason="done")
    empty = {"corpora": {"papers": {"train": {"documents": 4}, "validation": {"documents": 0}, "test": {"documents": 0}}}}
    text = said("prepare", replace(run, manifest=run.manifest | empty))
    assert "Empty, so that nothing can be judged on it: papers validation, papers test." in text
