"""Causal models from scratch: exact gradients, a kill and a resume for each family, and run_pretrain.ipynb end to end."""
import json
import signal
from pathlib import Path

import pytest

from conftest import events, here, only_run, options, train_process

FAMILIES = ("gpt2", "llama", "qwen2", "char_lstm")
TINY = {"tokenizer": "character", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.1,
        "split": "position", "validation_fraction": 0.2, "test_fraction": 0.2, "max_seq_length": 32, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "max_steps": 12, "logging_steps": 3, "eval_steps": 4, "save_steps": 4,
        "early_stopping_patience": None, "precision": "fp32", "device": "cpu", "sample_tokens": 8, "eval_words": 40, "test_words": 200, "seed": 5}


@pytest.fixture
def text(tmp_path) -> Path:
    """A file of short lines that a small model learns something of at once."""
    place = tmp_path / "toy.txt"
    place.write_text("".join(f"{'a trilobite' if i % 3 else 'the old shell'} lay in layer {i % 7}.\n" for i in range(300)))
    return place


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_accumulated_batches_equal_one_batch(family, tmp_path):
    """4 x 4 against 16 x 1, fp32, dropout off: equal to 1e-6 relative."""
    import numpy as np
    import torch
    from transformers import TrainerCallback

    from paleotrain.training.batches import batch_loader
    from paleotrain.models.causal import Shape, new_causal, use_causal_loss
    from paleotrain.training.callbacks import Tally
    from paleotrain.training.plan import TrainConfig
    from paleotrain.training.stream import Contexts, next_token_batch
    from paleotrain.tokenizers.train import train_tokenizer
    from paleotrain.training.trainer import make_trainer, training_arguments
    tokenizer = train_tokenizer("character", ["abcdefgh \n"], 20, min_frequency=1)
    stream = np.random.default_rng(0).integers(0, len(tokenizer), 600).astype(np.uint16)

    class Gradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.value = torch.cat([p.grad.flatten().clone() for p in model.parameters()]).double()

    def gradient(batch: int, accumulation: int) -> tuple[torch.Tensor, float]:
        torch.manual_seed(3)
        model = use_causal_loss(new_causal(family, tokenizer, Shape(32, 2, 2), 16))
        config = TrainConfig(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_grad_norm=1e9, precision="fp32", device="cpu")
        seen, tally, mix = Gradient(), Tally(), Contexts(stream, 16, batch, 0)
        keys = Contexts(stream, 16, 16, 0).epoch(0)[0] # the same sixteen contexts, whatever the batch
        mix.epoch = lambda number: [keys[i:i + batch] for i in range(0, 16, batch)]
        make_trainer(model, training_arguments(config, 1, 0, tmp_path), lambda: batch_loader(mix, next_token_batch, accumulation), tally, [seen]).train()
        return seen.value, tally.nats / tally.predicted

    (whole, loss), (parts, same) = gradient(16, 1), gradient(4, 4)
    assert ((whole - parts).norm() / whole.norm()).item() < 1e-6
    assert abs(loss - same) < 1e-6


FAMILIES_TRAINED = """
from paleotrain.phases import pretrain_causal as phase
from paleotrain.core.settings import load_settings
from paleotrain.phases.pretrain import PretrainConfig
from paleotrain.runs.session import open_run
settings = load_settings()
for family, resume in given.pop("families").items():
    run, config = open_run("pretrain", PretrainConfig, {"resume": resume} if resume else given | {"family": family}, settings)
    data = phase.prepare(run, config, settings)
    loaded = phase.load_or_make(run, config, data, settings)
    plan, mix, collate, config = phase.plan_pretrain(run, config, data, loaded, settings)
    phase.judge_pretrain(run, config, data, phase.train_pretrain(run, config, loaded, data, plan, mix, collate))
"""


def test_a_killed_and_resumed_run_ends_in_the_same_weights_for_each_family(runs, text):
    """kill -9 at step 6 of 12, after the checkpoint of step 4: the resumed run's last checkpoint is that of a run nobody touched, to the bit."""
    given = TINY | {"corpus": [str(text)]}
    assert train_process(FAMILIES_TRAINED, given | {"families": dict.fromkeys(FAMILIES)}) == 0
    def by_family(folders): return {json.loads((f / "manifest.json").read_text())["parent"]["family"]: f for f in folders}
    whole = by_family(runs.iterdir())
    for family in FAMILIES: assert train_process(FAMILIES_TRAINED, given | {"families": {family: None}}, die=6) == -signal.SIGKILL
    killed = by_family(set(runs.iterdir()) - set(whole.values()))
    assert set(whole) == set(killed) == set(FAMILIES)
    assert {p.name for folder in killed.values() for p in folder.glob("checkpoints/step-*")} == {"step-000000", "step-000004"}
    assert train_process(FAMILIES_TRAINED, {"families": {family: folder.name for family, folder in killed.items()}}) == 0
    for family, folder in killed.items():
        for name in ("model.safetensors", "optimizer.pt"):
            assert (folder / "checkpoints/step-000012" / name).read_bytes() == (whole[family] / "checkpoints/step-000012" / name).read_bytes(), (family, name)
        curve = [(e["step"], e["loss"]) for e in events(folder) if e["kind"] == "train"]
        assert curve == [(e["step"], e["loss"]) for e in events(whole[family]) if e["kind"] == "train"]
        assert (folder / "events.attempt-1.jsonl").exists()


def test_run_pretrain_from_a_text_file_to_a_report(runs, text):
    asked = {"corpus": text, "family": "llama", "parameters": "60k", "max_steps": 8, "prompts": "a tri;the "}
    done = here("run", "pretrain", *options(TINY | asked))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert abs(manifest["parent"]["parameters"] - 60_000) <= 3_000 and "60,000 asked" in done.stdout
    example = "".join(token["text"] for token in manifest["example"] if token["kind"] == "plain")
    assert example.strip() and example.strip() in text.read_text() # what it trains on, as it stands there
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert {"validation_nats_per_character", "bits_per_byte"} <= set(claims)
    samples = [e for e in events(folder) if e["kind"] == "sample"]
    assert [(e["step"], e["prompt"]) for e in samples] == [(step, prompt) for step in (0, 4, 8) for prompt in ("a tri", "the ")] # before training too
    page = (folder / "report.html").read_text()
    assert all(json.loads(line)["text"].split()[0] in page for line in (folder / "samples.jsonl").read_text().splitlines() if json.loads(line)["text"].split())
    judged = here("evaluate", folder.name, "--data", str(text)) # a phase of its own for models that write
    assert judged.returncode == 0, judged.stderr[-3000:]
    assert "Reads the text better than a compressor" in judged.stdout and len(list(runs.glob("evaluate-*/report.html"))) == 1


@pytest.mark.parametrize(("changes", "said"), [
    ({"max_seq_length": 4000}, "characters leave nothing for validation beside a gap of"),
    ({"tokenizer": "bpe", "vocab_size": 3000, "max_seq_length": 16}, "pieces asked and the training text yields"),
    ({"device": "cuda"}, "device: 'cuda' asked and no CUDA device here"),
    ({"parameters": "1k"}, "ask for"),
    ({"corpus": "LATIN"}, "is not UTF-8; save it as UTF-8"),
    ({"corpus": "EMPTY"}, "0 characters leave nothing"),
])
def test_bad_input_ends_in_one_line(runs, text, tmp_path, monkeypatch, changes, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "LATIN.txt").write_bytes("Größe\n".encode("latin-1") * 400)
    (tmp_path / "EMPTY.txt").write_bytes(b"")
    from paleotrain.phases import pretrain_causal as phase
    from paleotrain.core.settings import UserError, load_settings
    from paleotrain.phases.pretrain import PretrainConfig
    from paleotrain.runs.session import open_run
    if "corpus" in changes: changes = changes | {"corpus": str(tmp_path / f"{changes['corpus']}.txt")}
    settings = load_settings()
    run, config = open_run("pretrain", PretrainConfig, TINY | {"corpus": str(text), "family": "llama"} | changes, settings)
    with pytest.raises(UserError) as error:
        data = phase.prepare(run, config, settings)
        loaded = phase.load_or_make(run, config, data, settings)
        phase.plan_pretrain(run, config, data, loaded, settings)
    run.lock.release()
    assert said in str(error.value) and "\n" not in str(error.value)
