"""Chat phases: run_sft.ipynb end to end on a tiny model made here, exact gradients, a kill and a resume, red lines, and what is refused."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import events, here, only_run, options, table, train_process

LETTERS = "abdehilnortuw"
WORDS = [a + b + c for a in LETTERS for b in LETTERS for c in LETTERS]
TINY = {"max_seq_length": 48, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "max_steps": 12, "logging_steps": 3,
        "eval_steps": 4, "save_steps": 4, "early_stopping_patience": None, "precision": "fp32", "device": "cpu", "answer_tokens": 6, "eval_items": 8,
        "general_words": 60, "after_steps": 1000, "seed": 5}


def saved_base(place: Path, context: int = 64, tags: bool = False) -> Path:
    """A Llama of a few thousand parameters with a character tokenizer, as a plain folder."""
    import torch

    from paleotrain.models.causal import Shape, new_causal
    from paleotrain.chat.template import add_chat, weigh_tags
    from paleotrain.tokenizers.train import train_tokenizer
    tokenizer = train_tokenizer("character", ["Say hello. Repeat blue and red. What is two and two? The river is wide."], 60, min_frequency=1)
    torch.manual_seed(0)
    model = new_causal("llama", tokenizer, Shape(32, 1, 2), context, dropout=0.1)
    if tags: add_chat(tokenizer); weigh_tags(model, tokenizer)
    model.save_pretrained(place); tokenizer.save_pretrained(place)
    return place


def lesson(place: Path, verb: str, words: list[str], source: str) -> Path:
    """Conversations as generators write them."""
    rows = [{"doc_id": f"{source}-{n}", "source": source, "kind": "copy", "messages": [{"role": "user", "content": f"{verb} {word}"},
             {"role": "assistant", "content": word}]} for n, word in enumerate(words)]
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def prompts(place: Path, verb: str, words: list[str]) -> Path:
    place.write_text(json.dumps([{"id": f"{verb}-{word}", "prompt": f"{verb} {word}", "answer": word, "kind": "copy"} for word in words]))
    return place


@pytest.fixture
def given(tmp_path) -> dict:
    """The parameters of a first phase."""
    (tmp_path / "general.txt").write_text("The river is wide and blue. " * 30)
    return TINY | {"base_model": str(saved_base(tmp_path / "base")), "data": str(lesson(tmp_path / "say.jsonl", "Say", WORDS[:60], "say")),
                   "evaluation": str(prompts(tmp_path / "say.json", "Say", WORDS[100:125])), "general": str(tmp_path / "general.txt")}


def later(given: dict, tmp_path: Path, base: str, **changes) -> dict:
    """The parameters of a second phase, which replays the first."""
    own, asked = lesson(tmp_path / "repeat.jsonl", "Repeat", WORDS[200:260], "repeat"), prompts(tmp_path / "repeat.json", "Repeat", WORDS[300:325])
    replay = {"replay": given["data"], "replay_share": 0.2}
    return given | replay | {"base_model": base, "data": str(own), "evaluation": f"{asked};{given['evaluation']}"} | changes


def phase(given: dict):
    """A phase up to its plan, in this process."""
    from paleotrain.phases import sft
    from paleotrain.core.settings import load_settings
    from paleotrain.runs.session import open_run
    settings = load_settings()
    run, config = open_run("sft", sft.SftConfig, given, settings)
    try:
        data = sft.prepare(run, config, settings)
        loaded = sft.load(run, config, data, settings)
        plan, mix, collate, config = sft.plan_sft(run, config, data, loaded, settings)
    except BaseException: run.lock.release(); raise
    return run, config, loaded, data, plan, mix, collate


def trained(*parts):
    from paleotrain.phases.sft import train_sft
    from paleotrain.phases.sft import judge_sft
    run, config, loaded, data, plan, mix, collate = parts
    done = train_sft(run, config, loaded, data, plan, mix, collate)
    return done, {claim["id"]: claim for claim in judge_sft(run, config, data, done)}


def test_run_sft_from_conversations_to_a_report(runs, given):
    done = here("run", "sft", *options(given | {"target_exact": 0.9}))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    manifest = json.loads((folder / "manifest.json").read_text())
    about = manifest["data"]
    assert manifest["report"] == "sft" and manifest["parent"]["new_rows"] == 6
    assert sum(split["examples"] for split in about["splits"].values()) == 60
    assert about["splits"]["train"]["supervised_tokens"] == 4 * about["splits"]["train"]["examples"] # three letters and the closing tag
    text, learned = about["example"]["segments"][1]
    assert learned and text.endswith("</myPT_assistant>")
    figures = [e for e in events(folder) if e["kind"] == "eval"]
    assert [e["step"] for e in figures] == [0, 4, 8, 12] and figures[-1]["nats"] < figures[1]["nats"] < figures[0]["nats"] == manifest["before"]["nats"]
    assert {"exact", "exact_low", "exact_high", "valid", "stopped", "case", "distinct", "earlier"} <= set(figures[0])
    for e in figures:
        assert e["base_nats"] > 0 and (e["base_nats_before"], e["unigram_nats"]) == (manifest["before"]["general"], manifest["before"]["unigram"])
    assert len([e for e in events(folder) if e["kind"] == "sample" and e["step"] == 4]) == 4
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert [(c["id"], c["about"]) for c in claims.values()] == [
        ("exact_match", "learning"), ("held_out_loss", "learning"), ("tag_validity", "learning"), ("stop_rate", "learning"),
        ("forgetting_points", "forgetting"), ("general_text", "forgetting"), ("no_red_line", "property")]
    assert (claims["exact_match"]["n"], claims["forgetting_points"]["verdict"], claims["no_red_line"]["verdict"]) == (25, "NOT RUN", "NOT RUN")
    assert claims["general_text"]["note"] == "too few stretches of 1 document (1)" and claims["general_text"]["change"] != 0 # and is not left out
    answers = table(folder, "answers")
    assert len(answers) == 25 and sum(row["exact"] == "True" for row in answers) == round(25 * claims["exact_match"]["value"])
    assert (folder / "report.html").exists()
    assert_plain_transformers_gives_the_same(folder, answers[0])


def assert_plain_transformers_gives_the_same(folder: Path, row: dict):
    """The card's own code, run without this package, writes the answer that the table has."""
    card = (folder / "model/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("Say hello.", row["prompt"]).replace("max_new_tokens=48", "max_new_tokens=6")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == row["answer"] + "\n"


@pytest.mark.parametrize("room", [0, 40])
def test_gradients_of_accumulated_batches_equal_one_batch(room, tmp_path):
    """4 x 4 against 16 x 1, answers of different lengths, fp32, dropout off: equal to 1e-6 relative."""
    import torch
    from transformers import TrainerCallback

    from paleotrain.training.batches import batch_loader
    from paleotrain.models.causal import load_causal, use_causal_loss
    from paleotrain.chat.template import Conversation
    from paleotrain.training.examples import ExampleMix, encode, packed_batch, padded_batch
    from paleotrain.training.callbacks import Tally
    from paleotrain.training.plan import TrainConfig
    from paleotrain.training.trainer import make_trainer, training_arguments
    base = saved_base(tmp_path / "base", tags=True)
    talks = [Conversation(f"c{n}", ({"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word * (1 + n % 3)}), "toy", "", f"toy:{n}")
             for n, word in enumerate(WORDS[:80])]

    class Gradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.value = torch.cat([p.grad.flatten().clone() for p in model.parameters()]).double()

    def gradient(batch: int, accumulation: int) -> tuple[torch.Tensor, Tally]:
        loaded = load_causal(base)
        for module in loaded.model.modules():
            if hasattr(module, "attention_dropout"): module.attention_dropout = 0.0
        examples = encode(loaded.tokenizer, talks, 40, "refuse", set()).examples
        config = TrainConfig(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_grad_norm=1e9, precision="fp32", device="cpu")
        seen, tally, mix = Gradient(), Tally(), ExampleMix(examples, batch, 0, room)
        mix.epoch = lambda number: [[(number, 0, row) for row in range(at, at + batch)] for at in range(0, 16, batch)] # the same sixteen, whatever the batch
        loader = lambda: batch_loader(mix, packed_batch if room else padded_batch, accumulation)
        make_trainer(use_causal_loss(loaded.model), training_arguments(config, 1, 0, tmp_path), loader, tally, [seen]).train()
        return seen.value, tally

    (whole, once), (parts, summed) = gradient(16, 1), gradient(4, 4)
    assert ((whole - parts).norm() / whole.norm()).item() < 1e-6
    assert once.predicted == summed.predicted and abs(once.nats / once.predicted - summed.nats / summed.predicted) < 1e-6


PHASE_TRAINED = """
from paleotrain.phases import sft
from paleotrain.core.settings import load_settings
from paleotrain.phases.sft import judge_sft
from paleotrain.runs.session import open_run
settings = load_settings()
run, config = open_run("sft", sft.SftConfig, given, settings)
data = sft.prepare(run, config, settings)
loaded = sft.load(run, config, data, settings)
plan, mix, collate, config = sft.plan_sft(run, config, data, loaded, settings)
judge_sft(run, config, data, sft.train_sft(run, config, loaded, data, plan, mix, collate))
"""


def run_of(runs: Path, given: dict, die: int = -1) -> tuple[int, Path]:
    """A phase in a process of its own, and its run."""
    before = set(runs.iterdir()) if runs.exists() else set()
    code = train_process(PHASE_TRAINED, given, die)
    return code, next(iter(set(runs.iterdir()) - before), None) or runs / given["resume"]


def test_a_killed_and_resumed_phase_ends_in_the_same_weights(runs, given, tmp_path):
    """kill -9 at step 6 of 12 of a second phase, packed and with replay, behind the checkpoint of step 4: weights and curve as of a run nobody touched."""
    given = later(given, tmp_path, str(saved_base(tmp_path / "tagged", tags=True)), packed=True)
    code, whole = run_of(runs, given)
    assert code == 0
    code, killed = run_of(runs, given, die=6)
    assert code == -signal.SIGKILL and {p.name for p in killed.glob("checkpoints/step-*")} == {"step-000000", "step-000004"}
    assert run_of(runs, {"resume": killed.name})[0] == 0
    for name in ("model.safetensors", "optimizer.pt"):
        assert (killed / "checkpoints/step-000012" / name).read_bytes() == (whole / "checkpoints/step-000012" / name).read_bytes(), name
    for kind, figure in (("train", "loss"), ("eval", "nats"), ("eval", "exact")):
        assert [(e["step"], e[figure]) for e in events(killed) if e["kind"] == kind] == [(e["step"], e[figure]) for e in events(whole) if e["kind"] == kind]
    assert (killed / "events.attempt-1.jsonl").exists()
    assert (killed / "before.jsonl").read_bytes() == (whole / "before.jsonl").read_bytes()
    manifest = json.loads((whole / "manifest.json").read_text())
    assert abs(manifest["data"]["replay"]["achieved"] - 0.2) < 0.005 and manifest["parent"]["new_rows"] == 0
    assert {row["set"] for row in table(whole, "answers")} == {"repeat", "say"}
    claims = {c["id"]: c for c in json.loads((whole / "claims.json").read_text())}
    assert claims["forgetting_points"]["verdict"] == "NOT RUN" and claims["forgetting_points"]["note"].endswith("there was nothing to forget")


def test_a_red_line_ends_the_phase_and_the_claim_names_it(runs, given):
    """Learning nothing at all: garbage at the first evaluation after after_steps, and no step behind it."""
    lines = {"after_steps": 5, "garbage": 0.5, "loss_stuck": 1e9, "malformed_tags": 0.0, "mode_collapse": 0.0}
    done, claims = trained(*phase(given | lines | {"learning_rate": 1e-9}))
    folder = only_run(runs)
    (line,) = [e for e in events(folder) if e["kind"] == "red_line"]
    assert (done.steps, line["step"], line["name"]) == (8, 8, "garbage") # the evaluation of step 4 is before after_steps
    assert done.reason.startswith("red line garbage: ") and line["said"] in claims["no_red_line"]["note"]
    assert claims["no_red_line"]["verdict"] == "FAIL" and claims["no_red_line"]["value"] == 1
    assert json.loads((folder / "manifest.json").read_text())["terminal"]["reason"] == done.reason


def talks(place: Path, rows: list[list[str]]) -> Path:
    """A file of conversations, each a list of turns that begins with the user's."""
    chats = [{"messages": [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, turns, strict=False)]} for turns in rows]
    place.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return place


def test_own_conversations_are_asked_for_their_own_answers(runs, given, tmp_path):
    """No evaluation file: held-out conversations are asked, exact match is counted, and the loss chooses the checkpoint.

    Of several turns the last answer is asked for; where the same was asked twice, either answer is right.
    """
    short = [["Say " + word, "so"] for word in WORDS[:150]]
    several = [["Say " + word, "so", "Repeat", "river is wide"] for word in WORDS[150:300]]
    twice = [["Say " + word, answer] for word in WORDS[300:400] for answer in ("so", "two")]
    own = talks(tmp_path / "own.jsonl", short + several + twice)
    parts = phase({name: value for name, value in given.items() if name != "evaluation"} | {"data": str(own), "max_steps": 20, "learning_rate": 1e-2})
    run, config, _, data, *_ = parts
    items = data.sets["validation"]
    assert {(len(item.messages), item.answer, item.also) for item in items} == {(1, "so", ()), (3, "river is wide", ()), (1, "so", ("two",))}
    assert items[0].answer == "so" and len(items) < len(data.prepared.validation) # what is asked twice is asked once
    done, claims = trained(*parts)
    (begin, *evaluations) = [e for e in events(run.folder) if e["kind"] == "eval"]
    assert begin["exact"] == 0 and all(e["exact"] is not None and e["decides"] == e["nats"] for e in evaluations)
    asked = [row for row in table(run.folder, "answers") if row["set"] == "validation"]
    right = {"so"} | {"two" if item.also else "so" for item in items}
    assert all((row["answer"] == row["expected"]) == (row["exact"] == "True") for row in asked) and right == {"so", "two"}
    assert claims["exact_match"]["verdict"] == "NOT RUN" and claims["exact_match"]["note"].startswith("no target was given")
    assert claims["exact_match"]["value"] == sum(row["exact"] == "True" for row in asked) / len(asked)
    assert claims["held_out_loss"]["verdict"] == "PASS" and claims["held_out_loss"]["units"] >= 20


def test_long_free_answers_are_no_garbage(runs, given, tmp_path):
    """Answers that are never met to the letter end no training, and make it no failure."""
    own = talks(tmp_path / "own.jsonl", [[f"Say {word}", f"The river is {word} and {word[::-1]} and wide."] for word in WORDS[:300]])
    free = {name: value for name, value in given.items() if name != "evaluation"}
    lines = {"after_steps": 1, "malformed_tags": 0.0, "mode_collapse": 0.0, "loss_stuck": 1e9}
    parts = phase(free | lines | {"data": str(own), "max_seq_length": 64, "max_steps": 8, "learning_rate": 1e-2})
    warnings = [e["message"] for e in events(parts[0].folder) if e["kind"] == "warning"]
    (long,) = [message for message in warnings if "answer_tokens" in message]
    assert long.endswith(" of the expected answers cannot be given: they need more than answer_tokens 6")
    done, claims = trained(*parts)
    assert done.steps == 8 and claims["exact_match"]["value"] == 0 and claims["no_red_line"]["verdict"] == "PASS"
    assert claims["held_out_loss"]["verdict"] == "PASS"


def test_a_mute_model_keeps_to_no_format(runs, given, tmp_path):
    """A base that only ever closes its turn: nothing that it says is well formed, and the first evaluation says so, which ends nothing before `after_steps`."""
    import torch

    from paleotrain.models.causal import Shape, load_causal, new_causal
    from paleotrain.chat.template import add_chat, closing_token, weigh_tags
    tokenizer = load_causal(given["base_model"]).tokenizer
    model = new_causal("char_lstm", tokenizer, Shape(16, 1, 0), 64)
    add_chat(tokenizer); weigh_tags(model, tokenizer)
    with torch.no_grad(): model.head.bias[closing_token(tokenizer)] = 30
    model.save_pretrained(tmp_path / "mute"); tokenizer.save_pretrained(tmp_path / "mute")
    done, claims = trained(*phase(given | {"base_model": str(tmp_path / "mute"), "learning_rate": 1e-9, "max_steps": 8, "eval_items": 20}))
    folder = only_run(runs)
    assert done.steps == 8
    told = {e["name"]: (e["step"], e["message"]) for e in events(folder) if e["kind"] == "warning" and "name" in e}
    assert told["mute"] == (4, "100% of the answers say nothing (100% before training) at step 4; from step 1,000 on this is a red line")
    assert told["mode_collapse"][0] == 4 and told["mute"][1] in claims["no_red_line"]["note"]
    assert [claims[name]["verdict"] for name in ("tag_validity", "stop_rate")] == ["FAIL", "FAIL"]
    assert {row["ended"] for row in table(folder, "answers")} == {"nothing"} and table(folder, "scores")[0]["valid"] == "0.0"


@pytest.mark.parametrize(("changes", "said"), [
    ({"base_model": ""}, "base_model: not named"),
    ({"data": "nowhere.jsonl"}, "no file at nowhere.jsonl"),
    ({"replay": "nowhere.jsonl", "replay_share": 0.2}, "no file at nowhere.jsonl"),
    ({"replay_share": 0.2}, "replay and replay_share go together"),
    ({"replay": "{data}", "replay_share": 0.2}, "its tokenizer has no chat template"),
    ({"data": "LONG"}, "long.jsonl:2: "),
    ({"data": "ROLE"}, "role.jsonl:1, turn 1: unknown role 'robot'"),
    ({"data": "ONE"}, "fell to validation"),
    ({"evaluation": "{data}"}, "say.jsonl"),
    ({"evaluation": "OTHER"}, "other.json"),
    ({"max_seq_length": 128}, "max_seq_length: 128 for a model of 64 positions"),
    ({"tag_prefix": "my PT"}, "tag_prefix: "),
])
def test_bad_input_ends_in_one_line_before_a_weight_is_read(runs, given, tmp_path, monkeypatch, changes, said):
    from paleotrain.core.settings import UserError
    lesson(tmp_path / "long.jsonl", "Say", ["hello", "the river is wide " * 9], "long")
    lesson(tmp_path / "one.jsonl", "Say", ["hello"], "one")
    (tmp_path / "role.jsonl").write_text(json.dumps({"messages": [{"role": "robot", "content": "hello"}, {"role": "assistant", "content": "red"}]}) + "\n")
    (tmp_path / "other.json").write_text(json.dumps({"questions": ["Say hello"]}))
    files = {word.upper(): str(tmp_path / f"{word}.jsonl") for word in ("long", "one", "role")}
    files |= {"OTHER": str(tmp_path / "other.json"), "{data}": given["data"]}
    monkeypatch.setattr("paleotrain.phases.sft.load_causal", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError) as error: phase(given | {name: files.get(value, value) for name, value in changes.items()})
    assert said in str(error.value) and "\n" not in str(error.value)
