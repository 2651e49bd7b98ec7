"""What ships as data: enough documents, and a term list whose every term occurs in them."""
from conftest import ROOT

from paleotrain.data.terms import find_terms, read_terms, term_pattern
from paleotrain.data.splits import load_splits
from paleotrain.core.settings import load_settings


def test_sample_documents_and_terms():
    settings = load_settings()
    terms = read_terms(ROOT / "artifacts/vocab/cambrian_terms.csv")
    assert len(terms) >= 100
    splits = load_splits(["data/sample/cambrian.jsonl"], settings, test_fraction=0.25, validation_fraction=0.1)
    assert sum(c["documents"] for c in splits.counts.values()) >= 40 and splits.counts["test"]["documents"] >= 20
    texts = [d.text for split in splits.counts for d in splits.documents(split)]
    found = {term for text in texts for _, _, term in find_terms(text, term_pattern(terms))}
    assert {t.term for t in terms} == found


def test_general_sample_has_twenty_documents_to_judge_forgetting_by():
    splits = load_splits(["data/sample/general.jsonl"], load_settings(), test_fraction=0.4, validation_fraction=0.2)
    assert splits.counts["test"]["documents"] >= 20 and splits.counts["train"]["documents"] >= 20
