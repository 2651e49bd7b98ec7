"""Writes tests/pools.csv, the units that tests/calibrate.py draws from: what real documents cost a model before and after training, in nats.

Of ranks it is what each reciprocal lacks of 1.

    python tests/pools.py DAPT PRETRAIN      two finished runs; LOG.md has their commands

It reads the real text of the setting `corpora` that the runs did not train on. About ten minutes of a core.
"""
import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paleotrain.models.causal import load_causal
from paleotrain.core.settings import load_settings
from paleotrain.data.terms import read_terms, term_pattern
from paleotrain.data.readers import Document, ReadReport, expand, read_documents
from paleotrain.evaluation.pseudo_likelihood import spellings
from paleotrain.evaluation.intervals import Scores
from paleotrain.evaluation.pseudo_likelihood import Window, fitting, score, span_tokens, term_ranks, term_windows, word_windows
from paleotrain.models.masked import extend_model, load_mlm
from paleotrain.evaluation.surprisal import score_texts, unit_scores
from paleotrain.tokenizers.extend import extend_tokenizer

ROOT, SETTINGS = Path(__file__).parents[1], load_settings()
WIDTH = 280 # characters of a window, as the demo has them
Row = tuple[float, float, int] # nats before and after, and what they are divided by

def documents(*files: str) -> list[Document]:
    "The documents of files below `corpora`; the sections of a book are units here, or there would be too few."
    read = read_documents(expand([str(SETTINGS.corpora / file) for file in files], SETTINGS), ReadReport())
    return [replace(document, book="") for document in read]

def pages(whole: Iterable[Document], characters: int = 2500) -> Iterator[Document]:
    "Documents in pages, cut between words."
    for document in whole:
        words = document.text.split(" ")
        ends = np.cumsum([len(word) + 1 for word in words]) // characters
        for number, (_, part) in enumerate(itertools.groupby(zip(ends, words, strict=True), lambda pair: pair[0])):
            text = " ".join(word for _, word in part)
            yield Document(f"{document.doc_id} page {number}", text, f"{document.doc_id} page {number}", path=document.path)

def whole(window: Window, *tokenizers: Any) -> Window:
    "The window with the words that are one token in each vocabulary: one pass scores them all."
    offsets = [tokenizer(window.text, return_offsets_mapping=True)["offset_mapping"] for tokenizer in tokenizers]
    one = (t for t in window.targets if all(len(span_tokens(window.text, spans, t.start, t.end)) == 1 for spans in offsets))
    return replace(window, targets=tuple(one))

def sums(before: Scores, after: Scores, size: Sequence[float] | np.ndarray) -> list[Row]:
    "A row for each unit."
    names, unit = np.unique(np.array(before.units), return_inverse=True)
    columns = [np.bincount(unit, values) for values in (before.nats, after.nats, np.asarray(size, float))]
    return [(round(float(a), 3), round(float(b), 3), int(n)) for a, b, n in zip(*columns, strict=True)]

def masked(folder: Path) -> dict[str, list[Row]]:
    "Hidden words and occurrences of terms, by the base (A), the base with new words (V), and the trained model."
    terms = read_terms(ROOT / "artifacts/vocab/cambrian_terms.csv")
    pattern, base, tuned = term_pattern(terms), load_mlm(str(ROOT / "artifacts/tiny-base")), load_mlm(str(folder / "model"))
    new = load_mlm(str(ROOT / "artifacts/tiny-base"))
    tokenizer, added = extend_tokenizer(new.tokenizer, [term.term for term in terms], new.model.get_input_embeddings().num_embeddings)
    extend_model(new.model, new.tokenizer, tokenizer, added)
    same = spellings(folder, tuned.tokenizer)
    domain = [one for one in documents("geology/*") if "mantell" not in one.doc_id]
    general = documents("scratch_lm/wikipedia_subset.jsonl", "general/wikitext2_valid.txt")
    single: dict[str, list[Window]] = {}
    for window in term_windows(list(pages(domain)), pattern, 60, WIDTH): single.setdefault(window.unit, []).append(window)
    words = {name: word_windows(some, pattern, 14_000, WIDTH, 42, share=0.3) for name, some in (("domain words", domain), ("general words", general))}
    asked = {name: [whole(window, base.tokenizer, tokenizer) for window in windows] for name, windows in words.items()}
    asked["rare terms"] = [window for found in single.values() for window in found[:3]]
    states = {"A": (base.model, base.tokenizer, None), "V": (new.model, tokenizer, same), "after": (tuned.model, tuned.tokenizer, same)}
    pools: dict[str, list[Row]] = {}
    for name, pairs in (("rare terms", "VA"), ("domain words", "V"), ("general words", "A")):
        windows = fitting(asked[name], [state[:2] for state in states.values()])
        after = score(*states["after"][:2], windows, states["after"][2])
        for first in pairs:
            before = score(*states[first][:2], windows, states[first][2])
            pools[f"{name}, {first} to after"] = sums(before, after, np.ones(len(after.nats)))
            print(name, first, len(pools[f"{name}, {first} to after"]), flush=True)
    windows, names = fitting(asked["rare terms"], [state[:2] for state in states.values()]), [term.term for term in terms]
    missed = {name: 1 - 1 / term_ranks(*states[name][:2], windows, names).rank for name in ("V", "after")} # what is missing of each reciprocal rank
    pools["ranks, V to after"] = sums(*(replace(after, nats=missed[name], units=[w.unit for w in windows]) for name in missed), np.ones(len(windows)))
    return pools

def trained_on(loaded: Any, texts: Sequence[str], steps: int = 60) -> Any:
    "The causal model after a few steps on texts."
    torch.manual_seed(0)
    ids = [i for text in texts for i in loaded.tokenizer(text)["input_ids"]]
    optimizer, batch = torch.optim.AdamW(loaded.model.parameters(), 1e-3), 4 * 256
    loaded.model.train()
    for step in range(steps):
        rows = torch.tensor(ids[step * batch:(step + 1) * batch]).view(4, 256)
        loaded.model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loaded

def causal(folder: Path) -> dict[str, list[Row]]:
    "Bytes of encyclopaedia pages by an early and a late checkpoint; tokens of questions with their answers before and after some training on others."
    early, late = (load_causal(folder / f"checkpoints/step-{step:06}", "cpu") for step in (150, 300))
    pages = [(one.doc_id, one.text[:2000]) for one in documents("scratch_lm/wikipedia_subset.jsonl")]
    asked = [json.loads(line) for line in (SETTINGS.corpora / "domains/medicine/medquad_sample.jsonl").read_text(encoding="utf-8").split("\n") if line]
    chats = [(str(n), f"{one['question']}\n{' '.join(one['answer'].split())}"[:1000]) for n, one in enumerate(asked)]
    def scores(loaded: Any, texts: list[tuple[str, str]]) -> Scores: return unit_scores(score_texts(loaded.model, loaded.tokenizer, texts))
    first, then, before = scores(early, pages), scores(late, pages), scores(late, chats[:600])
    after = scores(trained_on(late, [text for _, text in chats[600:]]), chats[:600])
    return {"bits per byte": sums(first, then, np.asarray(first.bytes)), "conversations": sums(before, after, before.pieces)}

def main(dapt: str, pretrain: str) -> None:
    pools = masked(Path(dapt)) | causal(Path(pretrain))
    with (ROOT / "tests/pools.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["pool", "before", "after", "size"])
        writer.writerows([name, *row] for name, rows in pools.items() for row in rows)
    for name, rows in pools.items(): print(f"{name}: {len(rows)} units")

if __name__ == "__main__": main(*sys.argv[1:])
