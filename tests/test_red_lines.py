"""Each red line is crossed by a tiny model with one fault planted in its training, and none by the same model without."""
import copy
import math
import random
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from paleotrain.evaluation.answers import answer, score_answers
from paleotrain.models.causal import Shape, new_causal
from paleotrain.chat.template import add_chat, render, weigh_tags
from paleotrain.core.files import set_seed
from paleotrain.chat.instructions import Item
from paleotrain.evaluation.red_lines import ADVICE, RedLines, crossed, crossings
from paleotrain.tokenizers.train import train_tokenizer

LIMITS = RedLines(after_steps=150) # the other lines at their defaults; the task is learnt in 100 steps at most
WORDS = sorted({a + b + c for a in "bdfgklmnrs" for b in ("a", "e", "o") for c in ("lm", "nt", "rk", "st")})[:100]


def prose(lines: int, rng: random.Random) -> list[str]:
    """Text in which each word mostly decides the next: more than a unigram model can know."""
    texts = []
    for _ in range(lines):
        at = [rng.randrange(len(WORDS))]
        while len(at) < 8: at.append((at[-1] * 7 + 3) % len(WORDS) if rng.random() < .9 else rng.randrange(len(WORDS)))
        texts.append(" ".join(WORDS[n] for n in at))
    return texts


def follower(word: str) -> str: return WORDS[(WORDS.index(word) * 7 + 3) % len(WORDS)]


def nats_a_token(model, ids: Tensor) -> Tensor: # mean nats a token, ids [rows, tokens]
    return cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())


@pytest.fixture(scope="module")
def base():
    """A model that has learnt the prose, its tokenizer with chat tags, and how well it did."""
    set_seed(1)
    rng = random.Random(1)
    tokenizer = train_tokenizer("bpe_words", prose(2000, rng), 700)
    def coded(lines: int) -> Tensor: return torch.tensor(tokenizer(prose(lines, rng), add_special_tokens=False)["input_ids"]) # each word is one token
    model = new_causal("llama", tokenizer, Shape(64, 2, 2), 32)
    held_out, optimizer = coded(60), torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad(); nats_a_token(model, coded(32)).backward(); optimizer.step()
    add_chat(tokenizer); weigh_tags(model, tokenizer)
    counts = Counter(held_out[:, 1:].flatten().tolist())
    unigram = -sum(n * math.log(n / counts.total()) for n in counts.values()) / counts.total()
    with torch.no_grad(): before = float(nats_a_token(model, held_out))
    assert before < unigram - .5 # it has something to lose
    return model, tokenizer, held_out, before, unigram


def right(words: list[str], rng: random.Random) -> list[str]: return [follower(word) for word in words]
def every_weight(model): return model.parameters()
def answers_and_tag(ids: Tensor, supervised: Tensor, close: int) -> Tensor: return torch.where(supervised, ids, -100)


def events(base, steps: int = 150, learning_rate: float = 1e-3, answers: Callable = right, begin: Callable = every_weight,
           labels: Callable = answers_and_tag) -> list[dict]:
    """Evaluations of a phase in which the assistant names the word that follows the user's in the prose; a fault is another argument."""
    given, tokenizer, held_out, before, unigram = base
    model, rng, close = copy.deepcopy(given), random.Random(2), tokenizer.eos_token_id
    optimizer = torch.optim.AdamW(begin(model), learning_rate)
    items = [Item(word, ({"role": "user", "content": word},), follower(word)) for word in WORDS]
    history, losses, first = [], [], None
    example = cache(lambda word, said: render(tokenizer, ({"role": "user", "content": word}, {"role": "assistant", "content": said})))
    for step in range(1, steps + 1):
        asked = rng.sample(WORDS, 32)
        rendered = [example(word, said) for word, said in zip(asked, answers(asked, rng), strict=True)]
        ids, supervised = torch.tensor([one.ids for one in rendered]), torch.tensor([one.supervised for one in rendered])
        loss = cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), labels(ids, supervised, close)[:, 1:].flatten())
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        first = first or loss.item(); losses.append(loss.item())
        if step % 50: continue
        with torch.no_grad(): now = float(nats_a_token(model, held_out))
        history.append({"step": step, "train_loss": sum(losses) / len(losses), "first_loss": first, "base_nats": now, "base_nats_before": before,
                        "unigram_nats": unigram, **score_answers(answer(model, tokenizer, items, 4))})
        losses = []
    return history


def names(history: list[dict]) -> list[str]: return [line.name for line in crossings(history, LIMITS)]


def test_a_clean_run_crosses_no_line_and_learns(base):
    history = events(base, 200)
    assert [crossed(history[:n], LIMITS) for n in range(1, len(history) + 1)] == [None] * len(history)
    assert history[-1]["exact"] == 1 and history[-1]["train_loss"] < .1 * history[0]["first_loss"], history


def another_code(words, rng): return [WORDS[WORDS.index(follower(word)) - 1] for word in words] # as a tokenizer that is one off would give
def one_answer(words, rng): return [WORDS[0]] * len(words) # learnt faster, it ruins the prose as well, and that line is named first
def dealt_anew(words, rng): return [follower(word) for word in rng.sample(words, len(words))]


def one_norm(model): return [model.model.norm.weight] # all else frozen


def permuted(model):
    with torch.no_grad(): model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight[torch.randperm(model.config.vocab_size)])
    return model.parameters()


def tag_untrained(ids, supervised, close): return torch.where(supervised & (ids != close), ids, -100)


FAULTS = [("garbage", {"answers": another_code}), ("loss_stuck", {"learning_rate": 0.}), ("loss_stuck", {"begin": one_norm}),
          ("malformed_tags", {"labels": tag_untrained}), ("mode_collapse", {"answers": one_answer, "learning_rate": 3e-4}),
          ("base_perplexity", {"begin": permuted})]


@pytest.mark.parametrize(("line", "fault"), FAULTS, ids=lambda value: value if isinstance(value, str) else next(iter(value)))
def test_a_fault_crosses_its_line_and_is_named_after_it(base, line, fault):
    history = events(base, **fault)
    assert [crossed(history[:n], LIMITS) for n in (1, 2)] == [None] * 2 # never before after_steps
    found = crossed(history[:3], LIMITS)
    assert found is not None and found.name == line and found.step == 150, (found, history)


@pytest.mark.parametrize("fault", [{"learning_rate": 3.}, {"answers": dealt_anew}], ids=["learning_rate", "labels"])
def test_what_breaks_everything_is_garbage_too(base, fault):
    history = events(base, **fault)
    assert "garbage" in names(history) and crossed(history, LIMITS) is not None, history


def test_every_line_has_a_fault(): assert {line for line, _ in FAULTS} == set(ADVICE)
