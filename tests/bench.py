"""Speed-ups, each against what it replaces, interleaved in one run; prints ratios. Not part of the tests.

    python tests/bench.py
"""
import statistics
import time

import torch

from paleotrain.evaluation.pseudo_likelihood import Target, Window, score
from paleotrain.models.masked import autocast, new_mlm, plain_forward, use_summed_loss
from paleotrain.tokenizers.train import train_unigram

WORDS = "the animal of this bed was buried in mud and turned to stone long before any river reached the sea floor near old town".split()


def interleaved(name: str, old, new, rounds: int = 7) -> None:
    """Median seconds of both, measured in turn, and their ratio with its range."""
    pairs = []
    for number in range(rounds + 1):
        times = []
        for run in (old, new):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        if number: pairs.append(times)  # the first round warms up
    ratios = sorted(a / b for a, b in pairs)
    print(f"{name:46}{statistics.median(a for a, _ in pairs):8.3f} s {statistics.median(b for _, b in pairs):8.3f} s"
          f"   {statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {rounds})")


def step(model, batch, precision: str, whole_head: bool):
    def run() -> None:
        model.zero_grad()
        with autocast("cpu", precision):
            if whole_head:
                logits = plain_forward(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten(), reduction="sum")
            else: loss = model(**batch).loss
        (loss / (batch["labels"] >= 0).sum()).backward()
    return run


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    tokenizer = train_unigram(iter([" ".join(WORDS)] * 50), 100)
    model = new_mlm(tokenizer, 192, 4, 3, 512)
    model.deberta.embeddings.word_embeddings = torch.nn.Embedding(16_000, 192)
    model.lm_predictions.lm_head.bias = torch.nn.Parameter(torch.zeros(16_000))
    model.config.vocab_size = 16_000
    use_summed_loss(model)
    ids = torch.randint(4, 16_000, (16, 128))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.where(torch.rand(ids.shape) < 0.15, ids, -100)}
    print(f"{'':46}{'old':>10} {'new':>10}")
    interleaved("head: all positions -> masked ones (fp32)", step(model, batch, "fp32", True), step(model, batch, "fp32", False))
    interleaved("precision: fp32 -> bf16 autocast", step(model, batch, "fp32", False), step(model, batch, "bf16", False))
    windows = [Window(" ".join(WORDS), str(n), (Target(4, 10), Target(20, 23))) for n in range(60)]
    interleaved("scoring: one row a batch -> rows together", lambda: score(model, tokenizer, windows, batch_tokens=1), lambda: score(model, tokenizer, windows))


if __name__ == "__main__":
    main()
