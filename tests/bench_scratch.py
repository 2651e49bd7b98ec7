"""What eager attention with bf16 autocast is worth on this machine: training steps of the shakespeare_char model, three ways in turn.

    python tests/bench_scratch.py [ROUNDS]
"""
import sys
import time
from statistics import median

import torch

from paleotrain.models.causal import Shape, new_causal, use_causal_loss
from paleotrain.models.masked import autocast
from paleotrain.tokenizers.train import train_tokenizer

WAYS = {"eager, bf16": ("eager", "bf16"), "sdpa, bf16": ("sdpa", "bf16"), "sdpa, fp32": ("sdpa", "fp32")}
ROWS, CONTEXT, STEPS = 32, 128, 8


def main(rounds: int) -> None:
    tokenizer = train_tokenizer("character", ["".join(map(chr, range(33, 98)))], 100, min_frequency=1)
    ids = torch.randint(len(tokenizer), (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    models = {}
    for name, (attention, _) in WAYS.items():
        torch.manual_seed(1)
        model = use_causal_loss(new_causal("llama", tokenizer, Shape(192, 4, 4), CONTEXT, device="cpu"))
        model.set_attn_implementation(attention)
        models[name] = model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    def seconds(name: str) -> tuple[float, float]:
        model, optimizer = models[name]
        begun = time.perf_counter()
        for _ in range(STEPS):
            with autocast("cpu", WAYS[name][1]): loss = model(input_ids=ids[:, :-1], labels=ids[:, 1:]).loss / ids[:, 1:].numel()
            loss.backward(); optimizer.step(); optimizer.zero_grad()
        return time.perf_counter() - begun, float(loss.detach())

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(rounds + 1): # the first round warms up
        for name in WAYS: found[name].append(seconds(name))
    for name, all_rounds in found.items():
        ratios = [found["sdpa, fp32"][n][0] / all_rounds[n][0] for n in range(1, rounds + 1)]
        speed = STEPS * ROWS * CONTEXT / median(s for s, _ in all_rounds[1:])
        print(f"{name:14}{speed:>10,.0f} tokens/s   {median(ratios):.2f} times fp32 ({min(ratios):.2f} to {max(ratios):.2f}), loss {all_rounds[-1][1]:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
