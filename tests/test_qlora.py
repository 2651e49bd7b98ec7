"""Domain adapters: run_qlora.ipynb in real four bits, exact resume, TRL's first step, plain PEFT, the merge, the chain over domains, what is refused."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import events, here, killed_at, only_run, options, table, train_process

TINY = {"max_seq_length": 64, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "max_steps": 12, "logging_steps": 3,
        "eval_steps": 4, "save_steps": 4, "early_stopping_patience": None, "precision": "fp32", "device": "cpu", "answer_tokens": 8, "lora_r": 32, "seed": 5}
ANSWERS = {"rivers": "it is wide and blue", "ice": "it was cut by ice"}


def saved_base(place: Path, seed: int = 0, **config) -> Path:
    """A Llama of two narrow layers with a character tokenizer, as a plain folder."""
    import torch

    from paleotrain.models.causal import Shape, new_causal
    from paleotrain.tokenizers.train import train_tokenizer
    text = "what is the river of ice number? it is wide and blue, it was cut.\n Answer yes, no or maybe 0123456789"
    tokenizer = train_tokenizer("character", [text], 80, min_frequency=1)
    torch.manual_seed(seed)
    model = new_causal("llama", tokenizer, Shape(128, 2, 4), 128)
    for name, value in config.items(): setattr(model.config, name, value)
    model.save_pretrained(place); tokenizer.save_pretrained(place)
    return place


def prepared(data: Path, name: str, sizes=(40, 24, 24)) -> Path:
    """A domain's folder as `paleotrain run prepare` leaves it: every third question has a key."""
    folder = data / "sft" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, size, first in zip(("train", "validation", "test"), sizes, (0, 1000, 2000), strict=True):
        rows = []
        for n in range(first, first + size):
            asked, answer = (f"is it {n}? Answer yes, no or maybe.", "no") if n % 3 == 0 else (f"what is the {name} {n}?", ANSWERS.get(name, "it is blue"))
            rows.append({"doc_id": f"{name}:{n}", "source": name, "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def given(runs, tmp_path, monkeypatch) -> dict:
    """The parameters of an adapter, with places of its own for data and artifacts."""
    for name in ("data", "artifacts"): monkeypatch.setenv(f"PALEOTRAIN_{name.upper()}", str(tmp_path / name))
    for name in ANSWERS: prepared(tmp_path / "data", name)
    (tmp_path / "general.txt").write_text("The river is wide and blue. " * 400)
    return TINY | {"domain": "rivers", "base_model": str(saved_base(tmp_path / "base")), "general": str(tmp_path / "general.txt"), "general_words": 300}


def test_run_qlora_from_a_domain_to_an_adapter(runs, given, tmp_path):
    done = here("run", "qlora", *options(given))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["report"], manifest["adapter"]["quantization"], manifest["adapter"]["layers"]) == ("qlora", "nf4", 14)
    assert manifest["adapter"]["optimizer"] == "adamw_8bit" and manifest["adapter"]["base_bytes"] < manifest["adapter"]["base_full_bytes"] / 4
    assert {split: one["documents"] for split, one in manifest["data"]["splits"].items()} == {"train": 40, "validation": 24, "test": 24}
    figures = [e for e in events(folder) if e["kind"] == "eval"]
    assert [e["step"] for e in figures] == [0, 4, 8, 12] and figures[-1]["nats"] < figures[0]["nats"] == figures[-1]["base_nats"] == manifest["before"]["nats"]
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert [claims[id]["verdict"] for id in ("adapter_beats_base", "adapter_trained", "base_unchanged", "four_bit_gradients")] == ["PASS"] * 4
    assert claims["cross_domain_forgetting"]["verdict"] in ("FAIL", "TOO FEW") # the general text has a few stretches only
    assert "ice" in claims["cross_domain_forgetting"]["note"]
    losses = {row["set"]: row for row in table(folder, "losses")}
    assert [(name, row["role"]) for name, row in losses.items()] == [
        ("train", "own"), ("validation", "own"), ("test", "own"), ("ice", "other"), ("general text", "general")]
    assert float(losses["test"]["after"]) == claims["adapter_beats_base"]["value"] and float(losses["test"]["full"]) > 1
    items = [row for row in table(folder, "items") if row["set"] == "test"]
    for name, column in (("before", "base_nats"), ("after", "nats")):
        from math import exp
        by_hand = exp(sum(float(row[column]) for row in items) / sum(int(row["tokens"]) for row in items))
        assert abs(by_hand - float(losses["test"][name])) < 1e-3 * by_hand
    assert [row["set"] for row in table(folder, "accuracy")] == ["all", "rivers"] and table(folder, "accuracy")[0]["n"] == "8"
    assert len([line for line in (folder / "samples.jsonl").read_text().split("\n") if line]) == 8
    assert (folder / "report.html").exists() and not list((folder / "model").glob("model.safetensors"))
    kept = tmp_path / "artifacts/adapters/rivers"
    assert {p.name: p.read_bytes() for p in (folder / "model").iterdir()} == {p.name: p.read_bytes() for p in kept.iterdir()}
    assert_peft_alone_writes_the_same(tmp_path, folder)
    assert_merged_and_refused(tmp_path)


def assert_peft_alone_writes_the_same(tmp_path: Path, folder: Path):
    """The card's own code, without this package, on the full base."""
    code = (folder / "model/README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('"artifacts/adapters/rivers"', repr(str(tmp_path / "artifacts/adapters/rivers"))).replace('.../tmp', str(tmp_path))
    shown = code.split('AutoModelForCausalLM.from_pretrained("')[1].split('"')[0]
    code = code.replace(shown, str(tmp_path / "base")).replace('"..."', '"what is the rivers 7?"').replace("max_new_tokens=64", "max_new_tokens=8")
    (tmp_path / "plain.py").write_text(code + "\nprint(repr(tokenizer.decode(written)))")
    done = subprocess.run([sys.executable, str(tmp_path / "plain.py")], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "said.txt").write_text(done.stdout.strip().split("\n")[-1])


def assert_merged_and_refused(tmp_path: Path):
    """`paleotrain merge` gives a plain model that writes what plain PEFT wrote; another base is refused, unless told to take it."""
    adapter, base = tmp_path / "artifacts/adapters/rivers", str(tmp_path / "base")
    done = here("merge", str(adapter), "--base", base)
    assert done.returncode == 0 and "on 24 test conversations with" in done.stdout, done.stdout + done.stderr
    code = """import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained("artifacts/merged/rivers")
model = AutoModelForCausalLM.from_pretrained("artifacts/merged/rivers")
messages = [{"role": "user", "content": "what is the rivers 7?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print(repr(tokenizer.decode(written)))"""
    plain = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": ""})
    assert plain.stdout.strip().split("\n")[-1] == (tmp_path / "said.txt").read_text(), plain.stderr[-2000:]
    other = str(saved_base(tmp_path / "other", seed=1))
    done = here("merge", str(adapter), "--base", other)
    assert done.returncode == 2 and "was trained on" in done.stderr and "take this one with --any-base" in done.stderr
    assert here("merge", str(adapter), "--base", other, "--any-base", "--output", str(tmp_path / "odd")).returncode == 0
    done = here("run", "generate", "-p", "model", str(adapter), "-p", "prompt", "what")
    assert done.returncode == 2 and "an adapter, which is no model by itself; merge it into its base: paleotrain merge" in done.stderr


ADAPTED = """
from paleotrain.phases import qlora
from paleotrain.core.settings import load_settings
from paleotrain.phases.qlora import QloraConfig
from paleotrain.phases.qlora import judge_qlora
from paleotrain.runs.session import open_run
settings = load_settings()
run, config = open_run("qlora", QloraConfig, given, settings)
data = qlora.prepare(run, config, settings)
loaded, config = qlora.load(run, config, data, settings)
plan, mix = qlora.plan_qlora(run, config, data, loaded)
judge_qlora(run, config, data, loaded, qlora.train_qlora(run, config, loaded, data, plan, mix), settings)
"""


def test_a_killed_and_resumed_adapter_is_the_same_to_the_bit(runs, given):
    """kill -9 at step 6 of 12, dropout on, states in 8 bits, tags as new tokens: weights, optimizer and curve as of a run nobody touched."""
    given |= {"template": "tags"}
    assert train_process(ADAPTED, given) == 0
    whole = only_run(runs)
    assert train_process(ADAPTED, given, die=6) == -signal.SIGKILL
    (killed,) = set(runs.iterdir()) - {whole}
    assert {p.name for p in killed.glob("checkpoints/step-*")} == {"step-000000", "step-000004"}
    assert train_process(ADAPTED, {"resume": killed.name}) == 0
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        assert (killed / "checkpoints/step-000012" / name).read_bytes() == (whole / "checkpoints/step-000012" / name).read_bytes(), name
    for kind, figure in (("train", "loss"), ("eval", "nats"), ("eval", "train_nats")):
        assert [(e["step"], e[figure]) for e in events(killed) if e["kind"] == kind] == [(e["step"], e[figure]) for e in events(whole) if e["kind"] == kind]
    assert table(killed, "losses") == table(whole, "losses") and (killed / "events.attempt-1.jsonl").exists()
    import torch
    states = torch.load(whole / "checkpoints/step-000012/optimizer.pt", weights_only=True)["state"].values()
    assert "torch.uint8" in str([value for state in states for value in state.values()]) # 8 bits, where there are 4,096 weights and more
    trained = next(one for one in json.loads((whole / "claims.json").read_text()) if one["id"] == "adapter_trained")
    assert (trained["verdict"], trained["n"]) == ("PASS", 2 * 14 + 1), trained # A and B of 14 layers, and the rows of the tags
    about = json.loads((whole / "manifest.json").read_text())["adapter"]
    assert about["new_rows"] == 6 and about["bytes"] < 1.05 * about["plain_bytes"]


def test_the_first_step_is_that_of_trl(runs, given, tmp_path, monkeypatch):
    """The same eight conversations in two micro-batches through SFTTrainer with assistant-only loss: loss and LoRA gradients equal to 1e-5.

    SFTTrainer rounds the LoRA weights of a four-bit base to bf16; so that the same weights are compared, ours are such numbers, and its are held in float32.
    """
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from paleotrain.phases import qlora
    from paleotrain.models.lora import lora_weights
    from paleotrain.core.settings import load_settings
    from paleotrain.phases.qlora import QloraConfig
    from paleotrain.training.callbacks import RunCallback
    from paleotrain.runs.session import open_run
    prepared(tmp_path / "data", "rivers", (8, 24, 24))
    settings, found = load_settings(), {}
    given |= {"max_steps": 1, "lora_dropout": 0.0, "gradient_checkpointing": False, "optim": "adamw_torch", "max_grad_norm": 1e9}

    def gradients(model) -> torch.Tensor: return torch.cat([weight.grad.flatten().clone() for _, weight in sorted(lora_weights(model).items())]).double()

    def adapted():
        run, config = open_run("qlora", QloraConfig, given, settings)
        data = qlora.prepare(run, config, settings)
        loaded, config = qlora.load(run, config, data, settings)
        maker = torch.Generator().manual_seed(3)
        with torch.no_grad(): [weight.normal_(0, .05, generator=maker).copy_(weight.bfloat16()) for _, weight in sorted(lora_weights(loaded.model).items())]
        return run, config, data, loaded

    run, config, data, loaded = adapted()
    monkeypatch.setattr(RunCallback, "on_pre_optimizer_step", lambda self, *_, model=None, **__: found.update(ours=gradients(model)), raising=False)
    qlora.train_qlora(run, config, loaded, data, *qlora.plan_qlora(run, config, data, loaded))
    ours = next(e["loss"] for e in events(run.folder) if e["kind"] == "train")
    run.lock.release()

    class Seen(SFTTrainer):
        losses: list[float] = []
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
            return loss
    class Gradient(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model=None, **__): found.update(theirs=gradients(model))
    other, *_, theirs = adapted()
    arguments = SFTConfig(output_dir=str(tmp_path / "trl"), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2, assistant_only_loss=True,
                          max_length=64, use_cpu=True, bf16=False, max_grad_norm=1e9, report_to=[], gradient_checkpointing=False, learning_rate=3e-3)
    rows = Dataset.from_list([{"messages": list(one.messages)} for one in data.splits["train"]])
    trainer = Seen(model=theirs.model, args=arguments, train_dataset=rows, processing_class=theirs.tokenizer, callbacks=[Gradient()])
    for weight in lora_weights(theirs.model).values(): weight.data = weight.data.float()
    trainer.train()
    other.lock.release()
    assert abs(sum(Seen.losses) - ours) < 1e-5 * ours + 5e-6 # ours is written with five digits
    assert ((found["ours"] - found["theirs"]).norm() / found["theirs"].norm()).item() < 1e-5


def test_every_lora_gradient_is_that_of_the_dequantised_model(given, tmp_path):
    """The adapter's own batch and loss on a saved base, against plain float32 layers of the same weights, before and after an evaluation."""
    import torch

    from paleotrain.models.lora import attach, lora_weights
    from paleotrain.chat.template import add_plain
    from paleotrain.models.losses import use_chunked_loss
    from paleotrain.chat.template import Conversation
    from paleotrain.training.examples import encode, nats_per_token, padded_batch
    from paleotrain.models.quantized import agreement, dequantised, load_base
    loaded = load_base(given["base_model"], "cpu", "nf4", "fp32")
    add_plain(loaded.tokenizer)
    rows = [json.loads(line) for line in (tmp_path / "data/sft/rivers/train.jsonl").read_text().split("\n") if line]
    examples = encode(loaded.tokenizer, [Conversation(r["doc_id"], tuple(r["messages"]), "", "", "x:1") for r in rows], 64, "cut", set()).examples
    model = attach(loaded, r=8, alpha=16, dropout=0.0, targets=["all-linear"])
    with torch.no_grad(): [weight.normal_(0, .05) for weight in lora_weights(model).values()]

    def gradient(model) -> torch.Tensor:
        use_chunked_loss(model.train(), 16).zero_grad()
        model(**padded_batch([((0, 0, 0), [one]) for one in examples[:12]])).loss.backward()
        del model.forward
        return torch.cat([weight.grad.flatten().clone() for weight in lora_weights(model).values()])

    wanted = gradient(dequantised(model))
    assert agreement(gradient(model), wanted).holds
    nats_per_token(model, examples, 512)
    assert agreement(gradient(model), wanted).holds


def no_data(given, tmp_path): return given | {"domain": "law"}, "domain: no data for 'law'"
def other_layout(given, tmp_path):
    (tmp_path / "data/sft/rivers/train.jsonl").write_text('{"doc_id": "a", "text": "the river"}\n')
    return given, "no chat layout has the keys doc_id, text; rename them to messages"
def not_causal(given, tmp_path):
    path = tmp_path / "base/config.json"
    path.write_text(path.read_text().replace("LlamaForCausalLM", "LlamaForSequenceClassification"))
    return given, "a LlamaForSequenceClassification is no causal language model"
def no_such_layer(given, tmp_path):
    return given | {"target_modules": "q_proj;query"}, "target_modules: 'query' names no linear layer; use all-linear, or some of"
def quantised_already(given, tmp_path):
    place = saved_base(tmp_path / "four", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    return given | {"base_model": str(place)}, "already quantised (bitsandbytes)"
def too_long(given, tmp_path): return given | {"max_seq_length": 512}, "max_seq_length: 512 for a model of 128 positions"
def paged(given, tmp_path): return given | {"optim": "paged_adamw_8bit"}, "paged_adamw_8bit on a CPU"
def empty(given, tmp_path): (tmp_path / "data/sft/rivers/test.jsonl").write_text(""); return given, "test.jsonl: no conversation in it"
def twice(given, tmp_path):
    folder = tmp_path / "data/sft/rivers"
    with (folder / "train.jsonl").open("a") as file: file.write((folder / "test.jsonl").read_text().split("\n")[0] + "\n")
    return given, "stands in train and in test"
def template(given, tmp_path): return given | {"quantization": "int8"}, "quantization: Input should be 'nf4' or 'none'"


BAD = [no_data, other_layout, not_causal, no_such_layer, quantised_already, too_long, paged, empty, twice, template]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_bad_input_ends_in_one_line(runs, given, tmp_path, bad):
    """One line that names the place, what was found and what to do, before a step is made."""
    from paleotrain.core.settings import UserError
    values, said = bad(given, tmp_path)
    with pytest.raises(UserError) as told: exec(ADAPTED, {"given": values})
    assert said in str(told.value) and "\n" not in str(told.value) and "; " in str(told.value)
    assert not list(runs.glob("*/checkpoints/*"))


def test_the_command_ends_with_two_on_bad_input(runs, given):
    done = here("run", "qlora", *options(given | {"domain": "law"}))
    assert done.returncode == 2 and done.stderr.strip().split("\n")[-1].startswith("error: domain: no data for 'law'")


def test_a_merge_without_disk_is_refused_before_a_model_loads(given, tmp_path):
    """A tmpfs would need rights: the free space is said to be nothing."""
    from unittest.mock import patch

    from paleotrain.training.adapters import check_room
    from paleotrain.core.settings import UserError
    nothing = type("usage", (), {"free": 10 ** 6})
    with patch.object(shutil, "disk_usage", lambda _: nothing), pytest.raises(UserError, match="0.0 GB free where the merged model takes 2.0 GB"):
        check_room(tmp_path / "merged/model", 2 * 2 ** 30)


def test_a_killed_chain_goes_on_inside_its_adapter(runs, given, tmp_path):
    """run_domains.ipynb over two domains; killed in the second, the first stays as it is; the report, the table and all claims are there at the end."""
    words = options({k: v for k, v in given.items() if k != "domain"} | {"domains": "rivers;ice", "max_steps": 8})
    killed = killed_at("*/adapters/ice/checkpoints/step-000004", runs, "run", "domains", *words)
    first = (killed / "adapters/rivers/manifest.json").read_bytes()
    done = here("run", "domains", "--resume", killed.name)
    assert done.returncode == 0 and "rivers has finished before" in done.stdout, done.stderr[-3000:]
    assert (killed / "adapters/rivers/manifest.json").read_bytes() == first
    whole = killed
    assert [(row["adapter"], row["set"]) for row in table(whole, "cross")] == [
        ("rivers", "rivers"), ("rivers", "ice"), ("rivers", "general text"), ("ice", "ice"), ("ice", "rivers"), ("ice", "general text")]
    claims = {c["id"]: c["verdict"] for c in json.loads((whole / "claims.json").read_text())}
    assert [claims[f"adapter_beats_base:{name}"] for name in ANSWERS] == ["PASS", "PASS"] and "NOT RUN" not in claims.values()
    assert (whole / "report.html").exists() and "rivers" in (whole / "report.html").read_text()


def test_real_domains_have_questions_with_a_key():
    """The prepared sets, where they are: splits by the group's hash, and questions whose answer stands among their options."""
    from paleotrain.evaluation.multiple_choice import questions_of
    from paleotrain.core.settings import load_settings
    from paleotrain.data.readers import ReadReport
    from paleotrain.phases.qlora import read_splits
    settings = load_settings()
    there = [name for name in ("debate", "medicine", "ecology", "education") if (settings.data / f"sft/{name}/test.jsonl").is_file()]
    if not there: pytest.skip("data/sft is not here: paleotrain run prepare --preset prepare_all")
    for name in there:
        splits = read_splits([str(settings.data / "sft" / name)], settings, ReadReport(), 42)
        assert all(splits.values()) and questions_of(splits["test"])
