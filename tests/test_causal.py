"""What is trained here loads anywhere: GPT-2, Llama and Qwen2 in a process that knows nothing of paleotrain, with equal logits."""
import json
import subprocess
import sys

import pytest
import torch

from paleotrain.models.causal import Shape, load_causal, new_causal, solve_shape, use_causal_loss
from paleotrain.core.configurations import FAMILIES, parse_size
from paleotrain.core.settings import UserError
from paleotrain.tokenizers.train import train_tokenizer

LINES = ["the trilobite lived on the sea floor", "a shell was buried in the mud", "the mud became stone"]

STRANGER = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(["the mud of the sea"], return_tensors="pt")["input_ids"]
    with torch.no_grad(): logits = model(ids).logits
    torch.save({"ids": ids, "logits": logits, "class": type(model).__name__}, Path(folder) / "read.pt")
print(json.dumps(sorted(name for name in sys.modules if name.startswith("paleotrain"))))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of each family with its tokenizer, saved with the training's forward in place; folders and models."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer("character", LINES, 60, min_frequency=1)
    folder = tmp_path_factory.mktemp("causal")
    models = {}
    for family in FAMILIES:
        models[family] = new_causal(family, tokenizer, Shape(32, 2, 0 if family == "char_lstm" else 2), 32, device="cpu").eval()
        use_causal_loss(models[family]).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    return folder, models, tokenizer


def test_loads_without_us(saved, tmp_path):
    folder, models, tokenizer = saved
    strangers = [family for family in FAMILIES if family != "char_lstm"]
    done = subprocess.run([sys.executable, "-I", "-c", STRANGER, *(str(folder / family) for family in strangers)],
                          cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [] # no module of ours was there to help
    ids = tokenizer(["the mud of the sea"], return_tensors="pt")["input_ids"]
    for family, kind in zip(strangers, ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM"), strict=True):
        read = torch.load(folder / family / "read.pt")
        assert (read["class"], read["ids"].tolist()) == (kind, ids.tolist())
        with torch.no_grad(): torch.testing.assert_close(read["logits"], models[family](ids).logits, atol=1e-6, rtol=1e-5) # sdpa there, eager here
    for family in FAMILIES:
        with torch.no_grad(): assert torch.equal(load_causal(folder / family).model(ids).logits, models[family](ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_learns_a_line(saved, family):
    """Every weight moves, the exact loss falls, and the line comes back from its beginning."""
    _, _, tokenizer = saved
    torch.manual_seed(1)
    model = use_causal_loss(new_causal(family, tokenizer, Shape(32, 1, 0 if family == "char_lstm" else 1), 40, device="cpu"))
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(LINES[0])["input_ids"], tokenizer.eos_token_id]])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=.02)
    losses = []
    for _ in range(80):
        loss = model(input_ids=ids[:, :-1], labels=ids[:, 1:]).loss / (ids.numel() - 1)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < .1 < 2 < losses[0], losses[::10]
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    made = model.eval().generate(ids[:, :4], attention_mask=torch.ones_like(ids[:, :4]), max_new_tokens=40, do_sample=False)
    assert made.tolist() == ids.tolist() # and stops by itself


@pytest.mark.parametrize("size", ["0.3M", "1M", "3M", "10M", "30M", "100M"])
@pytest.mark.parametrize("family", FAMILIES)
def test_size_is_met_for_any_vocabulary(family, size):
    """The library's own count of the solved shape is within 5 %, or the refusal says so in a line; never anything else."""
    from transformers import AutoModelForCausalLM
    from paleotrain.models.causal import causal_config
    asked = parse_size(size)
    for pieces in (30, 68, 256, 1000, 2000, 4000, 8000, 32_000):
        for context in (64, 1024):
            try: shape = solve_shape(family, pieces, asked, context)
            except UserError as error:
                assert "\n" not in str(error) and pieces * 32 > .8 * asked, error # only where the vocabulary eats the model
                continue
            with torch.device("meta"): model = AutoModelForCausalLM.from_config(causal_config(family, pieces, shape, context))
            assert abs(model.num_parameters() / asked - 1) <= .05, (pieces, context, shape)
