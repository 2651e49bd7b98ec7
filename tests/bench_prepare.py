"""Throughput and memory of preparing a corpus, each against the obvious alternative, in one run; prints ratios. Not part of the tests.

    python tests/bench_prepare.py           reading and normalising, on 40 MB
    python tests/bench_prepare.py 1000      and the whole preparation of so many MB in a process of its own, with its peak memory
"""
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

from paleotrain.core.settings import load_settings



def sentences(settings) -> list[str]:
    """Paragraphs of the real books where they are there, else of the sample."""
    books = sorted((settings.corpora / "geology").glob("*.txt"))
    if books: return [p for path in books for p in path.read_text(encoding="utf-8").split("\n\n") if len(p) > 200]
    return [json.loads(line)["text"] for line in (settings.data / "sample/cambrian.jsonl").read_text().splitlines()]


def write_corpus(path: Path, megabytes: float, paragraphs: list[str]) -> None:
    """Documents of about 2 KB, no two alike: five paragraphs drawn anew, each with its words a little disturbed."""
    draw, size = random.Random(0), 0
    with path.open("wb") as file:
        while size < megabytes * 1e6:
            words = "\n\n".join(draw.sample(paragraphs, 4)).split(" ")
            for _ in range(len(words) // 12): words[draw.randrange(len(words))] = draw.choice(words)
            size += file.write(json.dumps({"doc_id": str(size), "title": "", "text": " ".join(words)}, ensure_ascii=False).encode() + b"\n")


def ours(path: Path, settings) -> int:
    from paleotrain.data.readers import ReadReport
    from paleotrain.data.sources import plain_source, read_records
    from paleotrain.data.corpus_writer import as_document, normalising
    source = plain_source(str(path), "own", settings)
    return sum(len(doc["norm_text"]) for doc in normalising()(map(as_document, read_records(source, [path], ReadReport()))))


def joined(text: str) -> str: return "\n\n".join(" ".join(p.split()) for p in unicodedata.normalize("NFC", text).split("\n\n"))


def plain_json(path: Path) -> int:
    """No checks, no map back: json, NFC, white space."""
    total = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            total += len(joined(json.loads(line)["text"]))
    return total


def datasets_map(path: Path, cache: str) -> int:
    """The same with datasets: load_dataset and map in one process."""
    import datasets
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
    done = rows.map(lambda row: {"text": joined(row["text"])}, load_from_cache_file=False)
    return sum(map(len, done["text"]))


def clocked(run, *arguments) -> float:
    begun = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - begun


def whole(megabytes: float, paragraphs: list[str]) -> None:
    """A preparation from the command, and the peak resident memory of its notebook's process."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "text.jsonl"
        write_corpus(path, megabytes, paragraphs)
        code = ("import resource, sys, time; from pathlib import Path\n"
                "sys.path.insert(0, 'tests'); from bench_prepare import prepare_here; prepare_here(Path(sys.argv[1]))")
        subprocess.run([sys.executable, "-c", code, place], check=True)


def prepare_here(place: Path) -> None:
    import os

    import paleotrain.phases.prepare as prepare
    from paleotrain.core.config import resolve
    from paleotrain.data.corpus_writer import write_corpora, write_sft
    from paleotrain.runs.directory import Run
    os.environ["PALEOTRAIN_DATA"] = str(place / "data")
    settings = load_settings()
    config, _ = resolve(prepare.PrepareConfig, {"sources": [str(place / "text.jsonl")], "name": "own"}, None, settings)
    (place / "run").mkdir()
    run = Run(place / "run")
    run.update(attempts=[{"attempt": 1}], config={}, terminal=None)
    size = (place / "text.jsonl").stat().st_size / 1e6

    def told(step: str, begun: float) -> float:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"{step:28}{time.monotonic() - begun:8.0f} s {size / (time.monotonic() - begun):8.1f} MB/s   peak memory {peak:6.0f} MB", flush=True)
        return time.monotonic()
    print(f"imports{'':44}peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:6.0f} MB", flush=True)
    begun = time.monotonic()
    prepare.promise_claims(run)
    gathered = prepare.gather(run, config, settings)
    store, ledger = prepare.read_all(run, config, gathered, settings)
    begun = told("read, normalise, sign", begun)
    made, apart = prepare.sort_out(config, store, ledger)
    begun = told("copies, splits, comparison", begun)
    sources = [one.source for one in gathered]
    write_corpora(run, store, made, ledger, sources, config.seed, settings)
    write_sft(run, store, made, sources, None, settings)
    told("write", begun)
    print(f"{len(store):,} documents, {made.fate.count('near copy'):,} near copies, {apart.compared:,} pairs compared")


def main() -> None:
    settings = load_settings()
    paragraphs = sentences(settings)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "text.jsonl"
        write_corpus(path, 40, paragraphs)
        size, times = path.stat().st_size / 1e6, []
        for number in range(4): # the first warms up
            row = clocked(ours, path, settings), clocked(plain_json, path), clocked(datasets_map, path, f"{place}/cache{number}")
            if number: times.append(row)
        for name, column in zip(("ours: read, check, normalise, align", "json and join", "datasets.map"), zip(*times, strict=True), strict=True):
            ratios = sorted(row[0] / seconds for row, seconds in zip(times, column, strict=True))
            print(f"{name:40}{size / statistics.median(column):7.1f} MB/s   ours takes {statistics.median(ratios):.2f} x its time "
                  f"({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(times)})")
    if len(sys.argv) > 1: whole(float(sys.argv[1]), paragraphs)


if __name__ == "__main__":
    main()
