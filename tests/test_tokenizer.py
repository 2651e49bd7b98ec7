"""run_tokenizer.ipynb and its report end to end: the demo through the command, and what is refused."""
import json
import re

import pytest
from conftest import events, here, only_run, options


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    """A folder of its own for what the runs save."""
    monkeypatch.setenv("PALEOTRAIN_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def test_demo_trains_four_kinds_extends_and_judges_them(runs, artifacts):
    done = here("run", "tokenizer", "--preset", "tokenizer_demo")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {"report.html", "report.ipynb", "run.ipynb", "claims.json", "tables/comparison.csv", "tables/words.csv", "tables/fragmentation.csv"} <= left
    # promised before the first was trained
    kinds = [e["status"] for e in events(folder) if e["kind"] == "status"]
    assert kinds.index("claims") < kinds.index("trained") and kinds.count("trained") == 4
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    covered = [claims[f"coverage {kind}"] for kind in ("bpe", "unigram", "wordpiece", "character")]
    assert all(c["verdict"] == "PASS" and c["n"] > 10_000 for c in covered)
    assert claims["whole wordpiece"]["verdict"] == "PASS" and claims["whole wordpiece"]["baseline"] > 0.3
    assert claims["unchanged unigram"]["verdict"] == claims["unchanged wordpiece"]["verdict"] == "PASS"
    # plain Hugging Face folders, in the run and in artifacts, the same
    from transformers import AutoTokenizer
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("bpe", "unigram", "unigram-terms", "wordpiece", "wordpiece-terms", "character"):
        place, about = artifacts / "tokenizers/demo" / name, json.loads((folder / "model" / name / "manifest.json").read_text())
        assert (place / "tokenizer.json").read_bytes() == (folder / "model" / name / "tokenizer.json").read_bytes() and (place / "README.md").exists()
        assert about["trained_on"] == manifest["data"]["splits"]["train"] and {i["role"] for i in about["inputs"]} == {"corpus", "terms"}
        tokenizer = AutoTokenizer.from_pretrained(place)
        assert len(tokenizer) == about["vocabulary"] and (len(tokenizer) <= 3000 or name.endswith("-terms"))
        text = "The trilobite Olenoides, and the sea."
        decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        assert decoded == (text if not name.startswith("wordpiece") else "The trilobite Olenoides , and the sea ."), name
    assert len(AutoTokenizer.from_pretrained(artifacts / "tokenizers/demo/wordpiece-terms").tokenize("the Olenoides")) == 2
    page = (folder / "report.html").read_text()
    told = ("The same sentence, cut by each", "How words are cut", "several words", "paleotrain run tokenizer --preset tokenizer_demo")
    assert all(text in page for text in told)
    assert not re.search(r'(?:src|href)="https?:', page) and len(page) < 5e6


def test_without_terms_and_beside_a_given_one_of_the_same_name(runs, artifacts):
    """The default has no terms; a folder `bpe` to compare does not take the place of the one trained."""
    given = {"corpus": "data/sample", "kind": "bpe"}
    for more in ({"vocab_size": 400, "name": "old"}, {"vocab_size": 1000, "name": "new", "extend": str(artifacts / "tokenizers/old/bpe")}):
        done = here("run", "tokenizer", *options(given | more))
        assert done.returncode == 0, done.stderr[-3000:]
    made = {p.parent.name: json.loads(p.read_text())["vocabulary"] for p in (artifacts / "tokenizers/new").glob("*/manifest.json")}
    assert made == {"bpe": 1000, "given-bpe": 400}
    for folder in runs.glob("tokenizer*"):
        claims = json.loads((folder / "claims.json").read_text())
        assert {c["id"] for c in claims} <= {"coverage bpe", "coverage given-bpe"} and {c["verdict"] for c in claims} == {"PASS"}
        assert not (folder / "tables/fragmentation.csv").exists() and (folder / "report.html").exists()


def test_the_order_of_the_files_changes_nothing():
    """Beside the same text in other processes, which 04_tokenizers/02_train tests."""
    from paleotrain.core.settings import load_settings
    from paleotrain.data.splits import load_splits
    from paleotrain.phases.tokenizer import TrainingText
    from paleotrain.tokenizers.train import KINDS, train_tokenizer
    files = ["data/sample/cambrian.jsonl", "data/sample/general.jsonl"]
    one, other = (TrainingText(load_splits(order, load_settings()), "order") for order in (files, files[::-1]))
    assert list(one) != list(other) and sorted(one) == sorted(other)
    for kind in KINDS:
        assert train_tokenizer(kind, one, 3000).backend_tokenizer.to_str() == train_tokenizer(kind, other, 3000).backend_tokenizer.to_str(), kind


@pytest.mark.parametrize("given, message", [
    ({"kind": "bpe;words"}, "error: kind.1: Input should be 'bpe', 'unigram', 'wordpiece' or 'character', found 'words'; kind is: kinds to train"),
    ({"name": ".."}, "error: name: String should match pattern"),
    ({"vocab_size": 40, "kind": "unigram"}, "error: vocab_size: 40 cannot be trained (Vocabulary size is smaller than required_chars); give more text"),
])
def test_what_cannot_be_trained_is_one_line(runs, artifacts, given, message):
    done = here("run", "tokenizer", *options(given))
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(message), done.stderr[-2000:]
    assert "Traceback" not in done.stderr and not artifacts.exists()


def test_empty_files_are_refused_before_anything_is_trained(runs, tmp_path):
    from paleotrain.core.settings import UserError, load_settings
    from paleotrain.runs.session import leave_run, open_run
    from paleotrain.phases.tokenizer import TokenizerConfig, prepare
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "no_terms.csv").write_text("term,category\n")
    for given, message in (({"corpus": [str(tmp_path / "empty.txt")]}, r"corpus: no document for training: 0 read in 1 files \(empty.txt first\)"),
                           ({"terms": str(tmp_path / "no_terms.csv")}, "no_terms.csv:2: no term below the header; write one term a line"),
                           ({"terms": str(tmp_path / "none.csv")}, "none.csv: no such file")):
        run, config = open_run("tokenizer", TokenizerConfig, given, load_settings())
        with pytest.raises(UserError, match=message): prepare(run, config, load_settings())
    leave_run()
