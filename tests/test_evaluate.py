"""run_evaluate.ipynb and its report end to end: a tiny model made here, judged by the command and against itself, and what is refused."""
import json
import math
import re

import pytest
from conftest import events, here, options, table

PAGES = [f"The trilobite Olenus lived in bed {i} of the black shale.\n\nIts moults lie there, {i % 5} of them, and shells of the sea.\n" * 2 for i in range(40)]


def saved(place, seed):
    """A Llama of a few thousand parameters with a character tokenizer, as a plain folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from paleotrain.tokenizers.train import train_tokenizer
    tokenizer = train_tokenizer("character", PAGES, 80)
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(place); tokenizer.save_pretrained(place)
    return model, tokenizer


def pages(tmp_path, extra=""):
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps({"doc_id": f"page{i}", "text": page + extra}) + "\n" for i, page in enumerate(PAGES)))
    return path


def test_a_causal_run_is_judged_by_the_command_and_the_report_shows_it(runs, tmp_path):
    import torch
    corpus, run = pages(tmp_path, "☃"), runs / "pretrain-20260101-000000-abcd"
    model, tokenizer = saved(run / "model", 0)
    from paleotrain.core.files import sha256_file, write_json
    write_json(run / "request.json", {})
    write_json(run / "manifest.json", {"report": "causal", "inputs": [{"path": "pages.jsonl", "sha256": sha256_file(corpus), "splits": ["train", "test"]}]})
    done = here("evaluate", run.name, "--data", str(corpus))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Reads the text better than a compressor" in done.stdout
    (folder,) = runs.glob("evaluate-*")
    # the figure, by a loop of its own: one forward a token, the window chosen as the rule says
    units = {row["unit"]: row for row in table(folder, "units")}
    for number in (0, 39):
        ids, nats = [tokenizer.bos_token_id, *tokenizer(PAGES[number] + "☃")["input_ids"]], 0.0
        for t in range(1, len(ids)):
            begin = 16 * next(k for k in range(len(ids)) if t <= 16 * k + 32)
            with torch.inference_mode(): nats -= model(torch.tensor([ids[begin:t]])).logits[0, -1].log_softmax(-1)[ids[t]].item()
        assert float(units[f"page{number}"]["nats"]) == pytest.approx(nats, rel=1e-5)
    bits = next(row for row in table(folder, "scores") if row["measure"] == "bits a byte")
    size, nats = sum(len((page + "☃").encode()) for page in PAGES), sum(float(row["nats"]) for row in units.values())
    assert float(bits["value"]) == pytest.approx(nats / math.log(2) / size, rel=1e-5) and int(bits["n"]) == size
    assert len(units) == 40 and {row["character"]: row["count"] for row in table(folder, "coverage")} == {"☃": "40"}
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert claims["bits_per_byte"]["verdict"] == "FAIL" and "40 documents" in claims["bits_per_byte"]["note"] # random weights
    assert claims["unknown_characters"]["verdict"] == "FAIL" and claims["unknown_characters"]["value"] == pytest.approx(40 / sum(len(p) + 1 for p in PAGES))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert re.fullmatch("the model was trained on .*pages.jsonl", manifest["data"]["overlap"])
    assert any("flattered" in e.get("message", "") for e in events(folder))
    assert manifest["parent"]["parameters"] == sum(p.numel() for p in model.parameters()) and manifest["inputs"][0]["sha256"] == sha256_file(corpus)
    page = (folder / "report.html").read_text()
    assert all(text in page for text in ("A byte cost it", "Surprisal of a token in nats", "U+2603", "The hardest tokens", "paleotrain run evaluate -p model"))
    assert not re.search(r'(?:src|href)="https?:', page) and len(page) < 5e6
    # the picture holds the text of the first document, line breaks and all
    picture = page.split("overflow-wrap:anywhere", 1)[1].split("</p>")[0].split(">", 1)[1]
    assert re.sub("<[^>]*>", "", picture) == (PAGES[0] + "☃").replace("\n", "↵\n")


def test_the_command_sends_a_masked_model_to_its_own(runs):
    done = here("run", "evaluate", *options({"model": "artifacts/tiny-base", "text": "x"}))
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1] == (
        "error: artifacts/tiny-base: a masked language model, which predicts no next token; judge its run with: "
        "paleotrain evaluate artifacts/tiny-base --data FILES"), done.stderr[-2000:]


def test_a_model_against_another_in_process(runs, tmp_path):
    """The same weights are not worse; a model that was spoilt is, with an interval; bad input is one line."""
    import time

    import torch

    from paleotrain.core.settings import UserError, load_settings
    from paleotrain.phases.evaluate import EvaluateConfig, judge, measure, prepare, promise_claims
    from paleotrain.runs.session import open_run
    settings, corpus = load_settings(), pages(tmp_path)
    model, tokenizer = saved(tmp_path / "first", 0)
    with torch.no_grad(): model.lm_head.weight.mul_(40)
    model.save_pretrained(tmp_path / "spoilt"); tokenizer.save_pretrained(tmp_path / "spoilt")

    def regression(model, against):
        given = {"model": str(tmp_path / model), "against": str(tmp_path / against), "corpus": str(corpus), "max_new_tokens": 1}
        run, config = open_run("evaluate", EvaluateConfig, given, settings)
        data = prepare(run, config, settings)
        promise_claims(run, config, data)
        return next(c for c in judge(run, config, data, measure(run, config, data, settings), time.monotonic()) if c["id"] == "regression")
    same, worse = regression("first", "first"), regression("spoilt", "first")
    assert same["verdict"] == "PASS" and (same["change"], same["change_low"], same["change_high"]) == (0, 0, 0)
    assert worse["verdict"] == "FAIL" and 0.01 < worse["change_low"] < worse["change"] < worse["change_high"]
    assert regression("first", "spoilt")["verdict"] == "PASS"

    def refused(**given):
        run, config = open_run("evaluate", EvaluateConfig, {"model": str(tmp_path / "first")} | given, settings)
        with pytest.raises(UserError) as told: measure(run, config, prepare(run, config, settings), settings)
        return str(told.value)
    (tmp_path / "utf16.txt").write_text("Olenus", encoding="utf-16")
    found = "UTF-16, by its first bytes; declare encoding: utf-16 in a source file, or save it as UTF-8, as in: iconv -f UTF-16"
    assert found in refused(corpus=str(tmp_path / "utf16.txt"))
    assert refused(model="", text="Olenus").startswith("model: not named; name a run")
    assert refused(text="Olenus", stride=33) == "stride: 33 for a context of 32 tokens; use 1 to the context"
    if not torch.cuda.is_available(): assert refused(text="Olenus", device="cuda").startswith("device: 'cuda' asked and no CUDA device here")
