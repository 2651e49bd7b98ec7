"""How often a verdict is wrong where the truth is exactly the criterion: false PASS and false FAIL, in percent, by kind of figure and number of units.

    python tests/calibrate.py [SAMPLES]      10,000 samples each

The units are those of tests/pools.csv (tests/pools.py made it). A pool is shifted until its change *is* the criterion, samples are drawn from it, and
each is judged by the interval of paleotrain.evaluation.intervals and by the usual ones. Kept (starred) is what has an upper 95 % bound of at most 3.5 %.
"""
import csv
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from paleotrain.evaluation.intervals import Floats, mean_and_moves, skewed_ends, student, wilson

SIZES = (20, 38, 60, 120, 200)
MOST = 0.035 # false verdicts of either kind
LEVELS = (0.95, 0.97, 0.98, 0.99, 0.995)
KINDS = {"domain words, V to after": ("perplexity", -0.10), "rare terms, V to after": ("perplexity", -0.20), "rare terms, A to after": ("perplexity", -0.20),
         "general words, A to after": ("perplexity", 0.03), "conversations": ("perplexity", -0.01), "bits per byte": ("rates", 0.01),
         "ranks, V to after": ("difference", -0.05)} # pool: figure, criterion
Ends = tuple[Floats, Floats]
Method = Callable[[Floats, Floats, Floats, Floats, float], Ends] # value, moves, sums and sizes that the value is made of, level

def pools() -> dict[str, Floats]:
    "The units of each pool [units, 3]: nats before, nats after, size."
    found: dict[str, list[list[float]]] = {}
    with (Path(__file__).parent / "pools.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file): found.setdefault(row["pool"], []).append([float(row[name]) for name in ("before", "after", "size")])
    return {name: np.array(rows) for name, rows in found.items()}

def figure(kind: str, units: Floats) -> tuple[Floats, Floats]:
    "Logarithm of the change, or the mean before, with how far each unit moves it; units [..., units, 3]."
    before, after, size = np.moveaxis(units, -1, 0)
    (old, old_moves), (new, new_moves) = mean_and_moves(before, size), mean_and_moves(after, size)
    if kind == "constant": return old, old_moves
    if kind in ("perplexity", "difference"): return new - old, new_moves - old_moves
    return np.log(new / old), new_moves / new[..., None] - old_moves / old[..., None]

def on_criterion(kind: str, pool: Floats, change: float) -> Floats:
    "The pool with its nats after training moved until its change is exactly this."
    moved = pool.copy()
    gap = (change if kind == "difference" else math.log1p(change)) - figure(kind, pool)[0]
    moved[:, 1] = pool[:, 1] * math.exp(gap) if kind == "rates" else pool[:, 1] + gap * pool[:, 2]
    return moved

def redrawn(kind: str, units: Floats, count: int, seed: int) -> tuple[Floats, Floats]:
    "The value and its standard error on redrawn units [count, samples]."
    before, after, size = np.moveaxis(units, -1, 0)
    top, bottom = {"perplexity": (after - before, size), "difference": (after - before, size), "rates": (after, before), "constant": (before, size)}[kind]
    number = top.shape[1]
    counts = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), count).astype(np.float32)
    a, b, aa, ab, bb = (counts @ column.T.astype(np.float32) for column in (top, bottom, top * top, top * bottom, bottom * bottom))
    ratio = a / b
    error = np.sqrt(np.maximum(aa - 2 * ratio * ab + ratio**2 * bb, 1e-12) * number / (number - 1)) / np.abs(b)
    return (np.log(ratio), error / np.abs(ratio)) if kind == "rates" else (ratio, error)

def ends(kind: str, units: Floats, count: int = 1000) -> Iterator[tuple[str, float, Ends]]:
    "Method, level, and both ends of the interval of each sample; units [samples, units, 3]."
    value, moves = figure(kind, units)
    number = moves.shape[-1]
    error = np.sqrt((moves**2).mean(-1) / (number - 1))
    drawn, errors = redrawn(kind, units, count, 1)
    for level in LEVELS:
        sides, t = [(1 - level) / 2, (1 + level) / 2], student(number - 1, level)
        low, high = np.quantile(drawn, sides, axis=0)
        yield "percentile", level, (low, high)
        low, high = np.quantile((drawn - value) / errors, sides, axis=0)
        yield "bootstrap-t", level, (value - high * error, value - low * error)
        yield "Student's t", level, (value - t * error, value + t * error)
        yield "skewed", level, skewed_ends(value, moves, level)

def wrong(interval: Ends, truth: float) -> tuple[float, float]:
    "Shares of samples that PASS and that FAIL, with the truth exactly on the limit."
    return float((interval[1] < truth).mean()), float((interval[0] > truth).mean())

def samples(pool: Floats, number: int, count: int, seed: int = 0) -> Floats: # [count, number, 3]
    return pool[np.random.default_rng((seed, number)).integers(0, len(pool), (count, number))]

def cases() -> Iterator[tuple[str, str, Floats]]:
    "Name, kind of figure, and pool on its criterion; rates against a constant too."
    for name, pool in pools().items():
        kind, change = KINDS[name]
        yield name, kind, on_criterion(kind, pool, change)
        if kind == "rates": yield f"{name}, against a constant", "constant", pool

def main(count: int = 10_000) -> None:
    for name, kind, pool in cases():
        truth = float(figure(kind, pool)[0])
        print(f"\n{name}: {len(pool)} units; false PASS / false FAIL in %, at most {100 * MOST:g} with its upper bound where starred")
        print(" units  method      " + "".join(f"{level:>15.1%}" for level in LEVELS))
        for number in SIZES:
            cells: dict[str, list[str]] = {}
            for method, _, found in ends(kind, samples(pool, number, count)):
                rates = wrong(found, truth)
                kept = max(wilson(round(rate * count), count)[1] for rate in rates) <= MOST
                cells.setdefault(method, []).append(f"{100 * rates[0]:.1f} / {100 * rates[1]:.1f}{'*' if kept else ' '}")
            for method, row in cells.items(): print(f"{number:6}  {method:12}" + "".join(f"{cell:>15}" for cell in row), flush=True)

if __name__ == "__main__": main(*map(int, sys.argv[1:]))
