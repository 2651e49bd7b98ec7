"""run_generate.ipynb, its report and widget_generate.ipynb end to end on a small model, and what is refused."""
import json
import re

import pytest
from conftest import ROOT, events, here, only_run, options

LINES = ["the sea was calm, and the shells lay in the sand.\n", "a shell is a house of lime.\n\n", "the end is near; the sand is old."]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """A model of a few thousand parameters is slower with more: the threads wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Llama of a few thousand parameters with random weights, context 32, in a plain folder with its character tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from paleotrain.tokenizers.train import train_tokenizer
    folder, letters = tmp_path_factory.mktemp("models") / "tiny", train_tokenizer("character", LINES, 60, 1)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(letters), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=32, initializer_range=.3, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    letters.save_pretrained(folder)
    return folder


def test_a_file_of_prompts_through_the_command(runs, tiny, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the sea"}\n{"prompt": "a shell"}\n')
    given = {"model": tiny, "prompt_file": prompts, "max_new_tokens": 60, "temperature": 1.2, "num_sequences": 3, "stop": r"\n\n;e;n", "seed": 5,
             "device": "cpu"}
    done = here("run", "generate", *options(given))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the sea"] * 3 + ["a shell"] * 3 and len({row["text"] for row in rows}) > 3
    # as model.generate writes when called by hand: the first token of a row that spells a stop sequence ends it
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    model.generation_config.eos_token_id = None
    for prompt, mine in (("the sea", rows[:3]), ("a shell", rows[3:])):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        torch.manual_seed(5)
        theirs = model.generate(ids, do_sample=True, temperature=1.2, top_k=0, max_new_tokens=32 - ids.shape[1], num_return_sequences=3)
        for row, text in zip(mine, (tokenizer.decode(one[ids.shape[1]:]) for one in theirs), strict=True):
            cut = re.split("\n\n|e|n|" + re.escape("<|endoftext|>"), text)[0]
            assert row["text"][:len(cut)] == cut and ("e" not in row["text"]) and ("n" not in row["text"])
            if cut != text: assert row["text"] == cut and row["ended"] in ("stop", "eos")
            assert row["ended_by_eos"] == (row["ended"] == "eos")
            assert row["tokens"] - len(tokenizer(row["text"])["input_ids"]) in {"eos": [1], "stop": [1, 2], "length": [0]}[row["ended"]]
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert {name: (c["value"], c["n"], c["verdict"]) for name, c in claims.items()} == {
        "deterministic": (0, 6, "PASS"), "loops": (None, None, "NOT RUN")} # letters that happen to make no five words cannot loop
    statuses = [e["status"] for e in events(folder) if e["kind"] == "status"]
    assert statuses == ["started", "claims", "written", "written", "finished"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parent"]["context"] == 32 and len(manifest["parent"]["sha256"]) == 64 and manifest["hardware"]["device"] == "cpu"
    assert [(i["role"], i["documents"]) for i in manifest["inputs"]] == [("prompts", 2)] and str(tmp_path) not in json.dumps(manifest["inputs"])
    lines = (folder / "tables/statistics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["prompt", "all", "1", "2"] and lines[1].split(",")[1] == str(sum(row["tokens"] for row in rows))
    page = (folder / "report.html").read_text()
    assert page.count("<pre style") == 6 and "All 6 samples" in page and "Damaged file" not in page
    assert "written to 2 prompts by a llama of" in page and not re.search(r'(?:src|href)="https?:', page)


def test_no_model_is_an_error_that_says_which_to_name(runs):
    done = here("run", "generate", "-p", "prompt", "the sea")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: model: not named; name a run (see: paleotrain runs), the folder of a saved model, or a hub name"


def refused(given: dict, message: str) -> None:
    from paleotrain.core.settings import UserError, load_settings
    from paleotrain.runs.session import leave_run, open_run
    from paleotrain.phases.generate import GenerateConfig, load, prepare
    with pytest.raises(UserError) as error:
        run, config = open_run("generate", GenerateConfig, given, load_settings())
        load(run, config, *prepare(run, config, load_settings()), load_settings())
    leave_run()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "message"), [
    ({"prompt": ""}, "prompt: it is empty; write something"),
    ({}, "prompt: none given; write something"),
    ({"prompt": "the sea was calm, and the shells lay"}, "prompt: 36 tokens, where the model looks back on 32 and needs room to write; shorten it below 32"),
    ({"prompt": "the sea was calm, and the shells"}, "prompt: 32 tokens, where the model looks back on 32"),
    ({"prompt": "the Séa"}, "prompt: 2 unknown to the model's tokenizer ('S' at character 5, 'é' at character 6); leave that out"),
    ({"prompt": "a", "temperature": -0.1}, "temperature: Input should be greater than or equal to 0, found -0.1; temperature is: 0: always the likeliest"),
    ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1, found 0"),
    ({"prompt": "a", "max_new_tokens": 513}, "max_new_tokens: Input should be less than or equal to 512, found 513"),
    ({"prompt": "a", "num_sequences": 11}, "num_sequences: Input should be less than or equal to 10, found 11"),
    ({"prompt": "a", "prompt_file": "b.txt"}, "prompt_file: given beside a prompt; give one of them"),
    ({"prompt_file": "nowhere.txt"}, "nowhere.txt: no such file; check the path"),
    ({"prompt": "a", "model": "nowhere"}, "nowhere: no such run in"),
    ({"prompt": "a", "precision": "fp16", "device": "cpu"}, "precision: fp16 on a CPU; use bf16, fp32 or auto"),
])
def test_what_cannot_be_written_is_one_line(runs, tiny, given, message):
    refused({"model": str(tiny)} | given, message)


def test_prompt_files_that_hold_no_prompt(runs, tiny, tmp_path):
    for name, data, message in (("latin.txt", "Séa".encode("latin-1"), "latin.txt: not UTF-8 (byte 2); save it as UTF-8"),
                                ("empty.txt", b"", "empty.txt: nothing in it"),
                                ("broken.jsonl", b'{"prompt": "a"}\nprompt\n', "broken.jsonl:2: not JSON"), ("long.txt", b"the sea " * 9, "prompt: 72 tokens"),
                                ("second.jsonl", b'{"prompt": "the"}\n{"prompt": "Zoo"}\n', "prompt: 1 unknown to the model's tokenizer ('Z' at character 1)")):
        (tmp_path / name).write_bytes(data)
        refused({"model": str(tiny), "prompt_file": str(tmp_path / name)}, message)


def test_cuda_without_a_device_is_refused(runs, tiny):
    import torch
    if torch.cuda.is_available(): pytest.skip("a CUDA device is here")
    refused({"model": str(tiny), "prompt": "a", "device": "cuda"}, "device: 'cuda' asked and no CUDA device here")


def test_the_widget_notebook_runs_and_its_button_writes(runs, tiny, tmp_path):
    """widget_generate.ipynb through papermill, with a last cell that sets the widgets and presses the button."""
    import nbformat
    import papermill
    notebook = nbformat.read(ROOT / "nbs/widget_generate.ipynb", 4)
    press = (f"panel.model.value, panel.prompt.value, panel.knobs.max_new_tokens.value = {str(tiny)!r}, 'the sea', 12\n"
             "panel.write.click()\nprint(panel.output.outputs[0]['text'])\n"
             "panel.prompt.value = 'Z'\npanel.write.click()\nprint(panel.output.outputs[0]['text'])")
    notebook.cells.append(nbformat.v4.new_code_cell(press))
    nbformat.write(notebook, tmp_path / "widget_generate.ipynb")
    done = papermill.execute_notebook(str(tmp_path / "widget_generate.ipynb"), None, progress_bar=False, cwd=str(ROOT), kernel_name="python3")
    assert "application/vnd.jupyter.widget-view+json" in done.cells[-2].outputs[-1]["data"]
    told = "".join(out["text"] for out in done.cells[-1].outputs if out["output_type"] == "stream")
    assert re.match(r"the sea[\s\S]*\n\[\d+ tokens, ended by (eos|length)\]\n", told)
    assert "error: prompt: 1 unknown to the model's tokenizer ('Z' at character 1); leave that out" in told
