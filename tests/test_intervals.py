"""Verdicts that are wrong no more often than they say, and units that are independent."""
import math
from pathlib import Path

import numpy as np
import pytest

from calibrate import MOST, SIZES, cases, ends, figure, samples, wrong
from paleotrain.data.readers import ReadReport, read_documents
from paleotrain.evaluation.intervals import BITS, FEW_RANKS, FEW_RATES, SURE, Scores, compare, compare_rates, exact_interval, points, share, skewed_ends, wilson
from paleotrain.evaluation.pseudo_likelihood import word_windows
from paleotrain.evaluation.intervals import unit_kind, unit_names

CASES = list(cases())

@pytest.mark.parametrize(("name", "kind", "pool"), CASES, ids=[name for name, _, _ in CASES])
def test_a_verdict_at_the_criterion_is_seldom_wrong_and_a_percentile_interval_often(name: str, kind: str, pool: np.ndarray) -> None:
    fewest = {"perplexity": SIZES[0], "difference": FEW_RANKS}.get(kind, FEW_RATES)
    drawn, truth = samples(pool, fewest, 3000), float(figure(kind, pool)[0])
    rates = {method: max(wrong(found, truth)) for method, level, found in ends(kind, drawn, 400)
             if (method, level) in (("skewed", SURE), ("percentile", 0.95))}
    assert rates["skewed"] <= MOST < rates["percentile"], rates

def test_what_a_verdict_uses_is_what_was_calibrated() -> None:
    rng = np.random.default_rng(5)
    old, new, size = rng.gamma(2, 2, 300), rng.gamma(2, 2, 300), rng.integers(3, 9, 300)
    units = [str(n) for n in rng.permutation(300) % 30]
    def made(nats: np.ndarray) -> Scores: return Scores(nats, size, size, units, [""] * 300, bytes=size, words=size)
    mine = [np.array(units) == unit for unit in sorted(set(units))]
    own = np.array([[column[which].sum() for column in (old, new, size)] for which in mine])
    for kind, found in (("perplexity", compare(made(old), made(new))), ("rates", compare_rates(made(old), made(new), scale=BITS))):
        value, moves = figure(kind, own)
        np.testing.assert_allclose(found.sure, np.expm1(skewed_ends(value, moves, SURE)))
        assert found.sure[0] < found.change_low < found.change < found.change_high < found.sure[1]

@pytest.mark.parametrize("least", [0.99, 0.98, 0.95])
def test_no_share_at_the_criterion_is_wrong_more_often_than_said(least: float) -> None:
    worst = {"exact": 0.0, "wilson": 0.0}
    for n in (20, 27, 55, 200):
        ways = [math.comb(n, right) * least ** right * (1 - least) ** (n - right) for right in range(n + 1)]
        sure = [share(right, n).sure for right in range(n + 1)]
        passed = sum(way for way, ends in zip(ways, sure, strict=True) if ends and ends[1] <= 1 - least)
        failed = sum(way for way, ends in zip(ways, sure, strict=True) if ends and ends[0] > 1 - least)
        worst["exact"] = max(worst["exact"], passed, failed)
        worst["wilson"] = max(worst["wilson"], sum(way for right, way in enumerate(ways) if wilson(right, n)[1] < least))
    assert worst["exact"] <= 0.025 < MOST < worst["wilson"], worst

@pytest.mark.parametrize(("n", "gained"), [(20, 0.05), (60, 0.02), (150, 0.005), (368, 0.0)])
def test_points_lost_at_the_criterion_are_judged_wrong_no_more_often_than_said(n: int, gained: float) -> None:
    lost, passed, failed = gained + 0.01, 0.0, 0.0 # one point is lost
    for down in range(n + 1):
        for up in range(n - down + 1 if gained else 1):
            way = math.comb(n, down) * math.comb(n - down, up) * lost**down * gained**up * (1 - lost - gained) ** (n - down - up)
            if way < 1e-5: continue
            low, high = points([[1]] * down + [[-1]] * up + [[0]] * (n - down - up)).sure or (0.0, 0.0)
            passed, failed = passed + way * (high <= 1), failed + way * (low > 1)
    assert max(passed, failed) <= 0.0275, (passed, failed)

def book(folder: Path, name: str) -> Path:
    "A text file of more than 30,000 bytes, in two chapters."
    path = folder / f"{name}.txt"
    chapters = (f"CHAPTER {number}\n\n" + f"The {name} of bed {number} lies in black mud. " * 500 + "\n\n" for number in ("I", "II"))
    path.write_text("".join(chapters), encoding="utf-8")
    return path

def test_sections_of_a_few_books_say_so_and_five_books_are_resampled(tmp_path: Path) -> None:
    files = [book(tmp_path, name) for name in ("agnostid", "brachiopod", "coral", "diatom", "echinoid")]
    two, five = (list(read_documents(files[:count], ReadReport())) for count in (2, 5))
    assert len(two) == 4 and (unit_kind(two), len(set(unit_names(two)))) == ("sections of 2 books", 4)
    assert (unit_kind(five), sorted(set(unit_names(five)))) == ("books", [path.stem for path in files])
    windows = word_windows(five, None, 100, 120, seed=1)
    assert {window.kind for window in windows} == {"books"} and {window.unit for window in windows} == {path.stem for path in files}
    assert exact_interval(0, 5)[1] > 0.5 # and five of anything are few
