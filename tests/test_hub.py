"""A checkpoint as the hub has it goes all the way: loaded with its head, extended by 400 terms, trained, saved, loaded by plain transformers."""
import json
import shutil
from pathlib import Path

import torch
from conftest import ROOT, SMALL, beginnings, events, here, only_run, options, useless_model

TINY = ROOT / "artifacts/tiny-base"


def sentencepiece_model(tokenizer) -> bytes:
    """The tokenizer's vocabulary as a SentencePiece model: what the hub ships instead of a tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2 as pb
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    proto = pb.ModelProto()
    kinds = {"[PAD]": pb.ModelProto.SentencePiece.CONTROL, "[CLS]": pb.ModelProto.SentencePiece.CONTROL, "[SEP]": pb.ModelProto.SentencePiece.CONTROL,
             "[UNK]": pb.ModelProto.SentencePiece.UNKNOWN}
    for piece, score in state["model"]["vocab"]:
        if piece == "[MASK]": continue
        proto.pieces.add(piece=piece, score=score, type=kinds.get(piece, pb.ModelProto.SentencePiece.NORMAL))
    proto.trainer_spec.model_type = pb.TrainerSpec.UNIGRAM
    proto.trainer_spec.pad_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id, proto.trainer_spec.unk_id = 0, 1, 2, 3
    proto.trainer_spec.unk_piece, proto.trainer_spec.pad_piece = "[UNK]", "[PAD]"
    proto.trainer_spec.bos_piece, proto.trainer_spec.eos_piece = "[CLS]", "[SEP]"
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = proto.normalizer_spec.escape_whitespaces = True
    return proto.SerializeToString()


def hub_checkpoint(folder: Path, model=None) -> dict[str, torch.Tensor]:
    """A model, or tiny-base, with the hub's names: half precision in pytorch_model.bin, deberta.*, lm_predictions.lm_head.*, mask_predictions.*, spm.model."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    model, tokenizer = model or AutoModelForMaskedLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)
    folder.mkdir(parents=True)
    state = {k: v.half() for k, v in model.state_dict().items()}
    assert all(k.startswith(("deberta.", "lm_predictions.lm_head.")) for k in state)
    state |= {f"mask_predictions.{name}": torch.zeros(8) for name in ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias", "classifier.weight")}
    torch.save(state, folder / "pytorch_model.bin")
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("legacy", "dtype", "architectures", "transformers_version")}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spm.model").write_bytes(sentencepiece_model(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm", "tokenizer_class": "DebertaV2Tokenizer"}))
    again = AutoTokenizer.from_pretrained(folder)
    text = "The museum opened in 1923, and its first visitors came by train."
    assert again.is_fast and again(text)["input_ids"] == tokenizer(text)["input_ids"]
    return state


def in_the_cache(name: str, commit: str, cache: Path, monkeypatch) -> Path:
    """Where the hub's cache, which is here from now on and cannot be filled from elsewhere, keeps a model of this name."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place / "snapshots" / commit


def made_up_terms(count: int) -> list[str]:
    heads, middles, tails = "Bre Cal Dro Fen Gor Hul Mar Nes Tor Vil".split(), "ma ri no lu te si ko pa".split(), "spis caris nella donta cyon".split()
    return [h + m + t for h in heads for m in middles for t in tails][:count]


def test_a_hub_checkpoint_all_the_way(runs, tmp_path):
    state = hub_checkpoint(tmp_path / "hub")
    from paleotrain.models.masked import load_mlm
    loaded = load_mlm(tmp_path / "hub")
    assert loaded.head == "present" and {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.lm_predictions.lm_head.bias, state["lm_predictions.lm_head.bias"].float())

    terms = made_up_terms(400)
    assert len(set(terms)) == 400
    sentence = "The animal {} was found near {} in the old town number {}, and it was small."
    text = [json.dumps({"doc_id": f"d{i}", "text": sentence.format(terms[i % 400], terms[(i * 7 + 3) % 400], i)}) for i in range(800)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(text))
    (tmp_path / "terms.csv").write_text("term,category,source\n" + "".join(f"{t},made up,test\n" for t in terms))
    parameters = {"general": None, "base_model": tmp_path / "hub", "corpus": tmp_path / "corpus.jsonl", "terms": tmp_path / "terms.csv", "learning_rate": 1e-3}
    done = here("run", "dapt", *options(SMALL | {"test_words": 40, "max_seq_length": 64, "test_fraction": 0.05} | parameters))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)

    plain = tmp_path / "plain"
    shutil.copytree(folder / "model", plain)
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    model, info = AutoModelForMaskedLM.from_pretrained(plain, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all(len(tokenizer(f"a {t} b")["input_ids"]) == 2 + 2 + 1 for t in terms if len(tokenizer("a b")["input_ids"]) == 4)
    old = state["deberta.embeddings.word_embeddings.weight"].float()
    new = model.deberta.embeddings.word_embeddings.weight
    assert new.shape[0] == model.lm_predictions.lm_head.bias.shape[0] == model.config.vocab_size == len(tokenizer) > len(old)
    assert not torch.equal(new[:len(old)], old) # it was trained
    batch = tokenizer([f"The animal {terms[0]} was small."], return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()


def test_the_reference_configuration_runs_to_its_end_on_a_base_whose_head_is_useless(runs, tmp_path, monkeypatch):
    """dapt_11gb as it is, but for text, length and a CPU's precision: the head is recovered, and what is claimed is held against that."""
    monkeypatch.setenv("PALEOTRAIN_ARTIFACTS", str(tmp_path / "artifacts"))
    name, commit = "microsoft/deberta-v3-base", "8ccc9b6f36199bec6961081d44eb72fb3f7353f3"
    hub_checkpoint(in_the_cache(name, commit, tmp_path / "cache", monkeypatch), useless_model())
    given = {"base_model": name, "corpus": beginnings("cambrian", tmp_path), "general": beginnings("general", tmp_path), "precision": "fp32",
             "terms": "tests/terms.csv", "max_steps": 1, "eval_words": 20, "test_words": 20, "term_occurrences": 1, "recover_tokens": 1, "tracker": "none"}
    done = here("run", "dapt", "--preset", "dapt_11gb", *options(given))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["terminal"]["status"] == "finished" and (folder / "model/model.safetensors").is_file()
    assert manifest["parent"]["head"].startswith("present but useless: perplexity ")
    assert (manifest["parent"]["model"], manifest["parent"]["sha256"]) == (name, commit)
    record = manifest["recovery"]
    recovered = f"its head recovered on {record['tokens']:,} tokens of general text, validation loss not flat"
    assert manifest["baseline"].startswith(f"B: deberta-v3-base, {recovered}; head ")
    (inner,) = (folder / "recovery").iterdir()
    assert [e["step"] for e in events(inner) if e["kind"] == "eval"][-1] == record["steps"] == 1 and record["curve"][-1]["nats"] > 1
    assert (tmp_path / "artifacts/recovered" / record["key"] / "model/model.safetensors").is_file()
