"""run_pretrain.ipynb end to end, from scratch and as the recovery of a base without a head."""
import json

from conftest import ROOT, events, here, only_run, options

TINY = {"family": "deberta", "corpus": "data/sample", "test_fraction": 0.2, "validation_fraction": 0.1, "vocab_size": 1200, "hidden_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128, "max_seq_length": 64, "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1, "max_steps": 8, "learning_rate": 3e-3, "logging_steps": 2, "eval_steps": 4, "save_steps": 4, "eval_words": 60,
        "test_words": 120}


def test_pretraining_from_scratch_then_recovery_of_its_encoder(runs, tmp_path):
    done = here("run", "pretrain", *options(TINY))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    losses = [e["loss"] for e in events(folder) if e["kind"] == "train"]
    assert losses[-1] < losses[0] and "Knows more than word frequencies" in done.stdout
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    encoder = tmp_path / "encoder"
    AutoModelForMaskedLM.from_pretrained(folder / "model").deberta.save_pretrained(encoder)
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(encoder)
    again = here("run", "pretrain", *options(TINY | {"family": "auto", "base_model": encoder, "max_steps": 2}))
    assert again.returncode == 0, again.stderr[-3000:]
    (recovered,) = set(runs.glob("pretrain-*")) - {folder}
    assert json.loads((recovered / "manifest.json").read_text())["parent"]["head"] == "absent"


def test_tiny_base_is_what_its_card_says():
    """The shipped base: at most 4M parameters and 16 MB in float32, its own tokenizer, a manifest, and half a unigram model's perplexity."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    folder = ROOT / "artifacts/tiny-base"
    assert (folder / "model.safetensors").stat().st_size <= 16e6
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and model.config.model_type == "deberta-v2" and {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["terminal"]["status"] == "finished" and manifest["terminal"]["seconds"] <= 2400
    assert not any(word in json.dumps(manifest["inputs"]) for word in ("/home", "/root", "http"))


def test_tiny_base_beats_half_of_a_unigram_model_on_real_text():
    import pytest

    from paleotrain.core.settings import load_settings
    from paleotrain.phases.dapt import evaluation_windows
    from paleotrain.data.splits import load_splits
    from paleotrain.evaluation.pseudo_likelihood import score, unigram_scores
    from paleotrain.models.masked import load_mlm
    from paleotrain.evaluation.intervals import compare
    from paleotrain.training.plan import TrainConfig
    settings = load_settings()
    text = settings.corpora / "general/wikitext2_test.txt"
    if not text.exists(): pytest.skip("no real text: general/wikitext2_test.txt")
    training = settings.corpora / "general/wikitext2_valid.txt"

    class Words(TrainConfig):
        eval_words: int = 100
        test_words: int = 1500
    splits = load_splits([str(training)], settings, test_files=[str(text)])
    windows = evaluation_windows(splits, "domain", Words(max_seq_length=128), None)["domain/test"]
    tiny = load_mlm(settings.root / "artifacts/tiny-base")
    before = unigram_scores(tiny.tokenizer, (d.text for d in splits.documents("train")), windows)
    result = compare(before, score(tiny.model, tiny.tokenizer, windows))
    assert result.change_high < -0.5, result


def test_a_text_file_and_nothing_else_becomes_a_small_causal_model(runs, tmp_path):
    """No family is named: what suits the text and the machine is chosen, said, frozen in the run, and trained."""
    (tmp_path / "novel.txt").write_text("".join(f"It was a dark night, and {n} ships lay in the bay of {n % 7} winds.\n" for n in range(900)))
    done = here("run", "pretrain", *options({"corpus": tmp_path / "novel.txt", "max_steps": 3, "eval_words": 40, "test_words": 40, "sample_tokens": 4}))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no family was named: a llama of about 0.1M parameters with a character tokenizer, which suits 0.06 MB of text" in done.stdout
    manifest = json.loads((only_run(runs) / "manifest.json").read_text())
    assert manifest["report"] == "causal" and manifest["parent"]["family"] == "llama" and 80_000 < manifest["parent"]["parameters"] < 120_000
    config = manifest["config"]
    assert (config["family"]["value"], config["family"]["origin"], config["max_steps"]["origin"]) == ("llama", "suits text and machine", "you")
    assert config["per_device_train_batch_size"]["value"] * config["gradient_accumulation_steps"]["value"] == 32 # not the 128 rows of a GPU
