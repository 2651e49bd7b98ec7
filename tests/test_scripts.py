"""Text in scripts without blanks is counted, split, adapted to and judged by one rule, and text with blanks as it always was."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, events, here, only_run, options
from transformers import AutoTokenizer

from paleotrain.data import cleaning as filters
from paleotrain.evaluation import pseudo_likelihood as metrics
from paleotrain.training import masking as batches
from paleotrain.core.settings import load_settings
from paleotrain.data.words import count_words, split_words, weighed
from paleotrain.data.splits import load_splits
from paleotrain.data.terms import term_pattern
from paleotrain.data.readers import Document
from paleotrain.data.duplicates import _BASE, jaccard, shingles, word_hashes
from paleotrain.data.cleaning import EvaluationIndex, why_dropped
from paleotrain.evaluation.generation import sample_statistics
from paleotrain.evaluation.pseudo_likelihood import target_words, whole_tokens, word_windows
from paleotrain.models.masked import new_mlm
from paleotrain.phases.pretrain_causal import beginning
from paleotrain.tokenizers.train import measure, train_tokenizer, train_unigram, unknown_characters

ANIMALS = ["三叶虫", "奇虾", "怪诞虫", "海口鱼", "抚仙湖虫", "云南虫", "昆明鱼", "微网虫", "马尔虫", "欧巴宾海蝎"]
PARTS = ["眼睛", "附肢", "尾巴", "触角", "壳", "鳃"]


def chinese(i: int) -> str:
    """A text on a find, unlike that of any other number."""
    animal, part, place = ANIMALS[i % 10], PARTS[i // 3 % 6], ["云南的山坡上", "贵州的页岩中", "湖北的石灰岩里", "格陵兰的海岸边", "加拿大的高山上"][i % 5]
    return (f"第{i}号标本是一只{animal}，人们在{place}找到了它。这块石头厚{i + 3}厘米，化石长{2 * i + 1}毫米。"
            f"{animal}的{part}保存得很好，可以数出{i % 17 + 2}个节。研究者认为{animal}生活在浅海的泥里，靠{PARTS[i % 6]}寻找食物。"
            f"旁边还有{i % 7 + 1}只{ANIMALS[(3 * i + 1) % 10]}，它们比这只小得多。标本现在放在{'北南昆贵'[i % 4]}{'京京明阳'[i % 4]}的博物馆里，"
            f"编号是{37 * i % 1000}，每年有{11 * i + 5}人来看。")


# sentences of the project's own, each with its words by the rule counted by hand
COUNTED = {"zh": ("三叶虫生活在古代的浅海里。", 6), "ja": ("三葉虫は、2億年前の海にいた。", 7), "th": ("ปลาหมึก 5 ตัว", 5),
           "km": ("ត្រី", 1), "my": ("ငါး", 1), "lo": ("ປາ", 1), "bo": ("ཉ་", 1), "jv": ("ꦱꦼꦒꦫ", 2), "ban": ("ᬦᬶᬢᬶ", 1),
           "mixed": ("The 三叶虫 (trilobite) of 2019", 6)}
SPACED = ["It's a low-lying bed – 5 m thick (see p. 3), isn't it?", "Trầm tích này dày 5 m, có nhiều hoá thạch.",
          "삼엽충은 고생대의 바다에 살았던 절지동물이다.", "Трилобиты жили в море.", "त्रिलोबाइट समुद्र में रहते थे।",
          "حيوانات بحرية منقرضة", "Das Tier – groß & schön – aß Müsli…", "snake_case_word  two\n\nlines\u00a0here", "", " – ", "10 000 €, 5 %"]


def sample() -> list[str]:
    return [json.loads(line)["raw_text"] for name in ("cambrian", "general") for line in (ROOT / f"data/sample/{name}.jsonl").open(encoding="utf-8")]


def test_text_with_blanks_has_the_words_it_always_had():
    """Every place that knows words, against what it was before there was a rule for other scripts."""
    was = {filters._WORD: r"[^\W_]+", metrics.EVALUATED: r"\w*[^\W\d_]\w*", batches.WORD: r"[\w\u0300-\u036f]+(?:['’][\w\u0300-\u036f]+)?|[^\w\s]"}
    for text in [*SPACED, *sample()]:
        assert split_words(text) == text.split() and weighed(text) == len(text)
        for now, before in was.items(): assert [m.span() for m in now.finditer(text)] == [m.span() for m in re.finditer(before, text)]
    for text in [*SPACED, *sample()[::20]]:
        slow = [sum(ord(c) * pow(_BASE, k, 2**64) for k, c in enumerate(word)) % 2**64 for word in re.findall(r"\w+", text.lower())]
        assert word_hashes(text).tolist() == slow


@pytest.mark.parametrize("language", COUNTED)
def test_two_letters_of_a_script_without_blanks_are_a_word_everywhere(language):
    text, words = COUNTED[language]
    assert count_words(text) == words
    assert measure(tokenizer("bpe"), [text])["words"] == sample_statistics([text])["words"] == words
    assert beginning(text, words) == text and count_words(beginning(text * 5, 2)) == 2
    assert why_dropped(text, None, 50) == "short"


def tokenizer(kind: str, size: int = 400): return train_tokenizer(kind, [chinese(i) for i in range(20)], size)


def test_a_limit_on_words_holds_for_text_without_blanks(tmp_path):
    bare = re.sub("[，。]", "", chinese(7))
    assert why_dropped(bare, ["zh"], 50) == "" and why_dropped("三叶虫生活在浅海里", ["zh"], 6) == "short"
    rows = [bare.replace("7", str(i)) for i in range(60)] + ["三叶虫。", "化石在海里"]
    (tmp_path / "zh.jsonl").write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in rows), encoding="utf-8")
    splits = load_splits(tmp_path / "zh.jsonl", load_settings())
    assert splits.skipped["short"] == 2 and splits.counts["train"]["documents"] > 40
    assert splits.split_by.endswith("of the words are of scripts without blanks; there two letters count as one.")


def test_copies_and_overlaps_are_found_where_a_letter_was_put_in_and_nothing_stops_the_shift():
    bare = re.sub(r"[，。\d]", "", chinese(1) + chinese(2))
    changed = "在" + bare[:90] + bare[91:]
    assert jaccard(shingles(bare), shingles(changed)) >= 0.8 > 0.3 > jaccard(shingles(bare), shingles(re.sub(r"[，。\d]", "", chinese(3) + chinese(4))))
    index = EvaluationIndex([("quoted", bare[20:100]), ("other", re.sub(r"[，。\d]", "", chinese(8)))])
    assert index.hits("他写道" + bare) > 0
    assert index.rows()[0]["share"] > 0.85 and index.rows()[1]["share"] < 0.5 # its first and last words are cut where the quotation is


def test_a_paragraph_of_thirty_letters_is_looked_for_in_training(tmp_path):
    quoted = "人们在云南的山坡上找到了许多保存得很好的三叶虫化石"
    train = [{"doc_id": f"a{i}", "text": f"{chinese(i)}\n\n{quoted}"} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, train)))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": f"{chinese(i)}\n\n{quoted}"}) for i in range(90, 95)))
    splits = load_splits(tmp_path / "a.jsonl", load_settings(), test_files=tmp_path / "b.jsonl", validation_fraction=0)
    assert splits.overlap.startswith("5 of 5 test documents")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_what_is_hidden_from_a_model_is_a_word_and_never_a_whole_sentence(kind):
    made, documents = tokenizer(kind), [Document(f"d{i}", chinese(i), f"d{i}") for i in range(30, 60)]
    for document in documents[:5]:
        offsets = np.array(made(document.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
        units, is_term = batches.token_units(document.text, offsets, term_pattern(ANIMALS))
        longest = (offsets[:, 1] - offsets[:, 0]).max()
        hidden = [offsets[units == unit][-1][1] - offsets[units == unit][0][0] for unit in np.unique(units)]
        assert max(hidden) <= 5 + 2 * (longest - 1) and is_term.any() # five letters are the longest term, and a token goes over each end
    windows = word_windows(documents, None, 100, 120, seed=1)
    assert max(len(w.text) for w in windows) <= 70 # of 120 characters of English
    widened = whole_tokens(windows, [(None, made), (None, tokenizer("bpe"))])
    assert np.mean(target_words(widened)) < 4 and target_words(windows).max() == 1


def guesser(folder: Path) -> Path:
    """A model that knows how often each piece of the texts occurs, and nothing else."""
    texts = [chinese(i) for i in range(60)]
    made = train_unigram(texts, 400)
    model, counts = new_mlm(made, 16, 1, 2, 128), torch.ones(len(made))
    for number in made(" ".join(texts), add_special_tokens=False)["input_ids"]: counts[number] += 1
    with torch.no_grad(): model.lm_predictions.lm_head.bias.copy_((counts / counts.sum()).log())
    made.save_pretrained(folder); model.save_pretrained(folder)
    return folder


def test_chinese_is_prepared_adapted_to_and_judged(tmp_path, runs, monkeypatch):
    """From documents to a verdict, with a term that is nowhere and a list parted by semicolons."""
    monkeypatch.setenv("PALEOTRAIN_DATA", str(tmp_path / "data"))
    (tmp_path / "zh.jsonl").write_text("\n".join(json.dumps({"text": chinese(i)}, ensure_ascii=False) for i in range(60)), encoding="utf-8")
    (tmp_path / "terms.csv").write_text("term;category\n三叶虫;taxon\n奇虾;taxon\n霸王龙;taxon\n", encoding="utf-8")
    done = here("run", "prepare", "-p", "sources", tmp_path / "zh.jsonl", "-p", "name", "zh", "-p", "languages", "zh")
    assert done.returncode == 0, done.stderr[-2000:]
    corpus = tmp_path / "data/corpus/zh"
    made = json.loads((corpus / "manifest.json").read_text())
    assert sum(file["documents"] for file in made["files"]) == 60 and sum(file["words"] for file in made["files"]) > 60 * 60
    (prepared,) = runs.iterdir()
    assert "in a script without blanks" in (prepared / "report.html").read_text(encoding="utf-8")
    training = {"corpus": corpus, "max_seq_length": 64, "max_steps": 2, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "eval_words": 20,
                "test_words": 40, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "device": "cpu"}
    base = guesser(tmp_path / "base")
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(tmp_path / "adapted"))
    done = here("run", "dapt", *options(training | {"base_model": base, "terms": tmp_path / "terms.csv", "general": None}))
    assert done.returncode == 0, done.stderr[-2000:]
    folder = only_run(tmp_path / "adapted")
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert claims["fragmentation"]["verdict"] == "PASS" and claims["domain"]["n"] >= 20 and 1 < claims["domain"]["value"] < 1e4
    assert "1 of 3 terms occur nowhere in the training text: 霸王龙" in [e.get("message") for e in events(folder)]
    assert "there two letters count as one" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_base_that_does_not_know_the_script_is_told():
    base = AutoTokenizer.from_pretrained(ROOT / "artifacts/tiny-base")
    told = unknown_characters(base, [chinese(i) for i in range(9)])
    assert re.search(r"does not know [67]\d\.\d% of the characters of this text", told) and "take a base that was trained on text in this language" in told
    assert unknown_characters(base, sample()[:20]) == ""
