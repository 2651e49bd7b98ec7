"""Lists of terms: found in whatever way they and the text are written, and made tokens where that loses nothing."""
import json
from functools import cache

import pytest
from conftest import ROOT

from paleotrain.core.settings import UserError
from paleotrain.data.terms import Term, count_terms, find_terms, nowhere, read_terms, term_pattern
from paleotrain.data.normalise import normalise
from paleotrain.tokenizers.train import train_lossless_unigram, train_tokenizer
from paleotrain.tokenizers.extend import MARK, extend_tokenizer, fragmented, never_whole, why_not_whole, word_forms

WRITTEN = ["Ma’anshan", "tri\u00adlobite", "Burgess\u2011Shale", "ﬁeldspar", "δ13C &amp; δ18O", "cafe\u0301", "三\u200b叶虫", "small\u00a0 fauna", "‘Olenus’"]
MEANT = ["Ma'anshan", "trilobite", "Burgess-Shale", "fieldspar", "δ13C & δ18O", "café", "三叶虫", "small fauna", "'Olenus'"]


def listed(tmp_path, text: str) -> list[Term]:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    return read_terms(tmp_path / "t.csv")


def found(text: str, terms: list[Term]) -> list[str]: return [term for *_, term in find_terms(text, term_pattern(terms))]


@pytest.mark.parametrize("lines", [WRITTEN, MEANT], ids=["as typed", "as prepared"])
def test_terms_and_text_may_be_written_in_different_ways(tmp_path, lines):
    terms = listed(tmp_path, "\n".join(["term", *lines]))
    assert [t.term for t in terms] == MEANT
    text = "; ".join(WRITTEN)
    assert found(normalise(text).text, terms) == MEANT # what `prepare` wrote
    raw = text.replace("e\u0301", "é").replace("&amp;", "&") # what a training reads of raw text
    assert found(raw, terms) == MEANT
    assert found("tri\u00adlobites, preﬁeldspar, Ma’anshans", terms) == []


def test_other_spellings_of_raw_text_become_tokens_too():
    terms = [Term("Ma'anshan", ""), Term("ore", "")]
    met = count_terms(["Near Ma’anshan and Ma'anshan. Ma’anshan!"], terms)
    assert met.counts["Ma'anshan"] == 3 and met.otherwise == ["Ma’anshan"]
    assert nowhere(terms, met.counts) == "1 of 2 terms occur nowhere in the training text: ore"
    new, added = extend_tokenizer(tokenizer("unigram"), ["Ma'anshan", *met.otherwise])
    for spelling in ("Ma'anshan", "Ma’anshan"):
        assert new(f"the {spelling} is", add_special_tokens=False)["input_ids"][1] in added[spelling]


def test_lines_that_only_differ_in_spelling_are_one_term(tmp_path):
    for other in ("Ma’anshan", "Ma'an\u00adshan", "Ma\u2018anshan"):
        with pytest.raises(UserError, match=r"t.csv:3: duplicate of line 2: 'Ma'anshan', which line 2 writes otherwise; remove one"):
            listed(tmp_path, f"term\nMa'anshan\n{other}\n")


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_the_header_tells_what_parts_the_columns(tmp_path, sign):
    rows = [["category", "term", "source"], ["place", "Ma’anshan", "a, b"], ["taxon", "C. elegans"]]
    text = "\n".join(sign.join(f'"{field}"' if sign in field else field for field in row) for row in rows)
    assert listed(tmp_path, text) == [Term("Ma'anshan", "place", "a, b"), Term("C. elegans", "taxon")]


def test_a_field_too_many_is_no_silent_loss(tmp_path):
    assert listed(tmp_path, "term,category\nOlenus,taxon,,\n") == [Term("Olenus", "taxon")] # as Excel writes empty columns
    with pytest.raises(UserError, match=r"t.csv:2: more fields than the header has \(Burgess Shale"):
        listed(tmp_path, "term,category\nBurgess Shale, Canada,place\n")
    with pytest.raises(UserError, match="no column 'term'"): listed(tmp_path, "Begriff;Art\nOlenus;taxon\n")


SAID = ["the ♀ and a ± 5 ≥ 3 → x, 20°C of H₂O and δ13C; (R)-limonene, 5'-ATP #1 – x² α-helix μm naïve 👍🏽 is \"one\" «of» C-14 T4 y.",
        "Ma’anshan Ma'anshan DNA C. elegans Olenus ก ข 这三叶虫是的", "三叶虫生活在海里。这是三叶虫的化石，长5厘米。", "ปลาหมึกเป็นสัตว์ทะเล ปลา"] * 20
TERMS = ["♀", "±", "≥", "→", "C. elegans", "δ13C", "H₂O", "°C", "👍🏽", "–", "T4", "α-helix", "C-14", "(R)-limonene", "μm", "5'-ATP", "#1", "Ma'anshan",
         "naïve", "x²", "C.", "DNA", "Olenus", "三叶虫", "ปลา"]
PLACES = ["the {} is", "({}) is", "{}", "the {}, is", "{}.", "x{}", "5{}", "{}5", "{}y", "这{}是", "这三叶虫{}是", "{}{}",
          "ก{}ข", "«{}»", '"{}"', " {} ", "the {}\n{} is"]


@cache
def tokenizer(kind: str):
    said = [*SAID, *(row["raw_text"] for row in map(json.loads, (ROOT / "data/sample/general.jsonl").open(encoding="utf-8")))][:120]
    return train_lossless_unigram(said, 900) if kind == "lossless unigram" else train_tokenizer(kind, said, 900)


@pytest.mark.parametrize("kind", ["bpe", "bpe_words", "unigram", "lossless unigram", "wordpiece"])
def test_a_term_of_signs_and_digits_is_whole_or_passed_over_and_text_stays_text(kind):
    base = tokenizer(kind)
    new, added = extend_tokenizer(base, TERMS)
    reasons = {term: why_not_whole(base.backend_tokenizer, term) for term in TERMS}
    whole = [term for term in TERMS if word_forms(base.backend_tokenizer, term)]
    assert reasons["C. elegans"] == "several words" and set(added) <= set(whole) == {term for term in TERMS if not reasons[term]}
    assert not any(fragmented(new, whole).values())
    assert "unigram" not in kind or {"♀", "≥", "H₂O", "三叶虫", "ปลา"} <= set(added)
    assert kind != "bpe" or ("三叶虫" in added and reasons["H₂O"].endswith("H | ₂ | O") and reasons["♀"])
    for text in (place.replace("{}", term) for place in PLACES for term in TERMS):
        coded, before = new(text, add_special_tokens=False)["input_ids"], base(text, add_special_tokens=False)["input_ids"]
        said = new.decode(coded)
        assert MARK not in said and (base.unk_token_id in before or said in (text, base.decode(before))), (text, said)


def test_why_terms_cannot_become_tokens_is_said_by_name():
    said = never_whole(tokenizer("bpe"), ["H₂O", "Olenus", "♀", "small fauna"])
    assert said.startswith("2 of 3 terms of one word cannot become tokens: H₂O (the tokenizer always cuts it: H | ₂ | O), ♀ (")
    assert never_whole(tokenizer("bpe"), ["Olenus"]) == ""


def test_no_letter_ends_a_term_in_a_script_without_blanks():
    terms = [Term(term, "") for term in ("三叶虫", "DNA", "≥", "ปลา", "とら", "trilobite")]
    assert found("这是三叶虫化石，含DNA的≥5个ปลาหมึก、おとらさん", terms) == ["三叶虫", "DNA", "≥", "ปลา", "とら"]
    assert found("cDNA DNA2 trilobites pretrilobite ปลา\u0e49", terms) == []
    for kind in ("bpe", "unigram"):
        new, added = extend_tokenizer(tokenizer(kind), ["三叶虫"])
        ids = new("这是三叶虫的化石", add_special_tokens=False)["input_ids"]
        assert sum(number in added["三叶虫"] for number in ids) == 1
    assert why_not_whole(tokenizer("wordpiece").backend_tokenizer, "三叶虫") == "WordPiece cannot end a word between letters without a blank"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_an_evaluation_takes_both_spellings_of_an_added_term_for_one(kind, tmp_path):
    from paleotrain.evaluation.pseudo_likelihood import spellings
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/fragmentation.csv").write_text("term,added\nWiwaxia,True\nthe,True\nAysheaia,False\n")
    new, added = extend_tokenizer(tokenizer(kind), ["Wiwaxia"])
    found = spellings(tmp_path, new)
    assert {number: found[number] for number in added["Wiwaxia"]} == dict.fromkeys(added["Wiwaxia"], added["Wiwaxia"])
    assert not set(added["Wiwaxia"]) & spellings(tmp_path, tokenizer(kind)).keys() # its parent has pieces alone
