"""Bases of every kind: what is read of a text, what a saved model keeps, what four bits hold, and what is refused before weights are read."""
import json
import logging

import pytest
import torch
from conftest import here
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from paleotrain.tokenizers.encode import encode_plain
from paleotrain.core.settings import UserError, load_settings
from paleotrain.core.files import write_json
from paleotrain.tokenizers.train import train_unigram
from paleotrain.tokenizers.extend import extend_tokenizer

logging.getLogger("transformers").setLevel(logging.ERROR)
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
MASKED = {"bert": {}, "roberta": {}, "electra": {"embedding_size": 16}, "esm": {},
          "modernbert": {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}, "deberta-v2": {"type_vocab_size": 0, "legacy": True},
          "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}}
CAUSAL = {"llama": {}, "gpt2": {}, "gpt_neox": {}, "qwen2": {"num_key_value_heads": 2}, "falcon": {},
          "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64}, "bert": {"is_decoder": True}, "roberta": {"is_decoder": True}}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture(scope="module")
def words():
    """A tokenizer, and the same with two terms."""
    tokenizer = train_unigram(iter(["The trilobite lived on the dark sea floor.", "A shell was buried in the mud."] * 20), 80)
    return tokenizer, *extend_tokenizer(tokenizer, ["Olenus", "Opabinia"])


def random_model(auto, kind, vocabulary, **given):
    """A model whose weights are all random, biases too."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **{**SMALL, "vocab_size": vocabulary, "pad_token_id": 0, **given})).eval()
    with torch.no_grad():
        for weight in model.parameters(): weight.normal_(0, .2)
    return model


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_model_is_what_it_was_after_new_words_and_a_saved_folder(kind, tied, words, tmp_path):
    from paleotrain.models.masked import extend_model, load_mlm
    old, new, added = words
    model = random_model(AutoModelForMaskedLM, kind, len(old), tie_word_embeddings=tied, **MASKED[kind])
    ids = torch.tensor([old("the dark [MASK] floor")["input_ids"]])
    logits = model(ids).logits
    pieces = {number: old(term, add_special_tokens=False)["input_ids"] for term, numbers in added.items() for number in numbers}
    extend_model(model, old, new, added)
    grown = model(ids).logits
    assert torch.allclose(grown[..., :len(old)], logits, atol=1e-5)
    for number, parts in pieces.items(): assert torch.allclose(grown[..., number], logits[..., parts].mean(-1), atol=1e-4)
    model.save_pretrained(tmp_path); new.save_pretrained(tmp_path)
    again = load_mlm(tmp_path)
    assert again.head == "present" and torch.equal(again.model.eval()(ids).logits, grown)


def test_a_head_that_takes_no_words_is_told_in_one_line(words):
    from paleotrain.models.masked import extend_model
    old, new, added = words
    model = random_model(AutoModelForMaskedLM, "mobilebert", len(old), embedding_size=16, true_hidden_size=32, intra_bottleneck_size=32)
    with pytest.raises(UserError, match="no words can be added to the head of a mobilebert; set add_terms to false"): extend_model(model, old, new, added)


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("tied", [True, False])
def test_a_causal_model_is_what_it_was_after_new_tags_and_a_saved_folder(kind, tied, words, tmp_path):
    from paleotrain.models.causal import load_causal
    from paleotrain.chat.template import add_chat, weigh_tags
    model, tokenizer = random_model(AutoModelForCausalLM, kind, len(words[0]), tie_word_embeddings=tied, **CAUSAL[kind]), words[0]
    tokenizer.save_pretrained(tmp_path); model.save_pretrained(tmp_path)
    loaded = load_causal(tmp_path)
    add_chat(loaded.tokenizer, "chat")
    weigh_tags(loaded.model, loaded.tokenizer, "chat")
    loaded.model.save_pretrained(tmp_path / "again"); loaded.tokenizer.save_pretrained(tmp_path / "again")
    ids = torch.tensor([[4, 5, 6, 7]])
    assert torch.allclose(loaded.model(ids).logits[..., :len(words[0])], model(ids).logits, atol=1e-5)
    assert torch.equal(load_causal(tmp_path / "again").model(ids).logits, loaded.model(ids).logits)


@pytest.mark.parametrize("spelled", ["[MASK]", "[SEP]", "[CLS]", "[PAD]", "the [MASK][SEP] of", "［MASK］"])
def test_a_special_token_spelled_in_a_text_is_text(spelled, words):
    for tokenizer in words[:2]:
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        assert not special & set(encode_plain(tokenizer, f"the {spelled} mud", add_special_tokens=False)["input_ids"])
    assert len(encode_plain(words[1], "an Olenus", add_special_tokens=False)["input_ids"]) == len(words[0].tokenize("an")) + 1 # a term stays whole


@pytest.mark.parametrize("spelled", ["</s>", "<s>", "<pad>", "<unk>", "the </s><s>of", "</s"])
def test_a_special_token_spelled_in_a_text_is_text_to_a_causal_model_too(spelled, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    from paleotrain.evaluation.generation import prompt_ids
    from paleotrain.evaluation.surprisal import encode
    from paleotrain.training.stream import write_stream
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")] + [(letter, -5.0) for letter in "▁</>abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3)) # its special tokens are pieces like any other, as in XGLM
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    text = f"in {spelled} mud"
    right = tokenizer.convert_tokens_to_ids(list("▁" + text.replace(" ", "▁")))
    assert prompt_ids(tokenizer, text, None) == right
    assert encode(tokenizer, text, "text")[1].ids.tolist() == right
    assert write_stream([text], spelled, tokenizer, tmp_path).tolist() == [0, *right, 2]


def test_text_without_special_tokens_is_read_as_it_was():
    from paleotrain.data.readers import ReadReport, expand, read_documents
    tokenizer = AutoTokenizer.from_pretrained(load_settings().root / "artifacts/tiny-base")
    for document in list(read_documents(expand("data/sample", load_settings()), ReadReport()))[:60]:
        assert encode_plain(tokenizer, document.text)["input_ids"] == tokenizer(document.text, verbose=False)["input_ids"]


@pytest.mark.parametrize(("kind", "more", "given", "said"), [
    ("falcon", {}, {}, "of a falcon 0% of its weights would be held in four bits"),
    ("mixtral", EXPERTS, {}, "of its weights would be held in four bits, embeddings and head not counted; choose a base of plain linear layers"),
    ("qwen3_moe", EXPERTS, {}, "of a qwen3_moe "),
    ("olmoe", EXPERTS, {"quantization": "none"}, "lora_dropout: 0.05 for a olmoe, whose experts can have none; use 0"),
    ("gpt_oss", EXPERTS, {}, "of a gpt_oss ")])
def test_a_base_that_four_bits_or_lora_do_not_fit_is_refused_by_its_shapes(kind, more, given, said):
    from paleotrain.models.lora import check_fit
    from paleotrain.core.configurations import QloraConfig
    config = AutoConfig.for_model(kind, **{**SMALL, "vocab_size": 99, "pad_token_id": 0, **more})
    with pytest.raises(UserError) as refused: check_fit("base", config, QloraConfig(**given))
    assert said in str(refused.value) and "PEFT" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_with_code_of_its_own_is_refused_before_anything_runs(runs, tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}})
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('it was run')")
    for phase, parameter in (("dapt", "base_model"), ("evaluate", "model"), ("generate", "model"), ("pretrain", "base_model")):
        done = here("run", phase, "-p", parameter, tmp_path, *(("-p", "text", "a") if phase == "evaluate" else ()))
        assert done.returncode == 2 and "its config.json names code of its own (auto_map: modeling_own.Own)" in done.stderr, done.stderr


@pytest.mark.parametrize("report", ["sft", "curriculum", "causal"])
def test_a_run_is_evaluated_by_the_kind_of_its_model(report, runs, monkeypatch):
    from paleotrain.app import cli
    folder = runs / f"{report}-20260101-000000-abcd"
    write_json(folder / "request.json", {})
    write_json(folder / "manifest.json", {"report": report, "config": {}})
    write_json(folder / "model/config.json", {"architectures": ["LlamaForCausalLM"]})
    (folder / "model/model.safetensors").touch()
    asked = []
    monkeypatch.setattr(cli, "run_phase", lambda given, settings: asked.append(given) or 0)
    assert here("evaluate", folder.name, "--data", "a.txt").returncode == 0
    assert (asked[0].phase, dict(asked[0].p)) == ("evaluate", {"model": folder.name, "corpus": "a.txt"})
    (folder / "model/adapter_config.json").touch()
    refused = here("evaluate", folder.name, "--data", "a.txt")
    assert refused.returncode == 2 and "its model is an adapter, which is no model by itself; paleotrain merge" in refused.stderr


def test_the_answers_before_a_training_are_only_ever_the_bases(runs, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from paleotrain.phases import sft
    from paleotrain.core.configurations import SftConfig
    from paleotrain.runs.directory import Run
    folder = tmp_path / "run"
    folder.mkdir()
    run, said = Run(folder), []
    run.update(before={"exact": 0.0})
    base = SimpleNamespace(model="the base", tokenizer=None)
    def answered(config, loaded, items): said.append(loaded.model); return []
    monkeypatch.setattr(sft, "base_model", lambda config, data: base)
    monkeypatch.setattr(sft, "answers_of", answered)
    for name in ("nats_per_token", "unigram_nats"): monkeypatch.setattr(sft, name, lambda *_: 0.0)
    monkeypatch.setattr(sft, "text_costs", lambda *_: [])
    monkeypatch.setattr(sft, "score_answers", lambda _: {"exact": 0.0})
    data = SimpleNamespace(sets={"own": []}, reference=[], prepared=SimpleNamespace(train=[], validation=[]))
    sft.before_training(run, SftConfig(), data)
    assert said == ["the base"] * 2 and (folder / "before.jsonl").exists()
    assert "the base was asked once more" in json.loads(run.events.read_text().splitlines()[-1])["message"]
    assert sft.before_training(run, SftConfig(), data) == {"own": [], "reference": []} # no prompt left room, and there is nothing to say
    assert len(said) == 2 # written once
    run.lock.release()
