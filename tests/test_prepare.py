"""From raw documents to corpora: the whole phase, through the command and step by step; splits that share nothing; input of every bad kind."""
import bz2
import io
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import BIN, ROOT, events, here, only_run

import paleotrain.data.corpus_writer as corpora
from paleotrain.core.settings import UserError, load_settings
from paleotrain.core.files import read_json, sha256_file
from paleotrain.core.config import resolve
from paleotrain.data.splits import SPLITS
from paleotrain.data.readers import ReadReport
from paleotrain.data.duplicates import THRESHOLD, jaccard, shingles
from paleotrain.report.record import read_run
from paleotrain.data.corpus_writer import write_corpora, write_sft
from paleotrain.phases.prepare import PrepareConfig, gather, judge, promise_claims, read_all, sort_out
from paleotrain.runs.directory import Run, derive_status
from paleotrain.data.sources import plain_source, read_records, source_files

REAL = load_settings().corpora
WORDS = ("bed shale trilobite mud river shell old stone fossil sea floor thin grey layer found below quarry lower upper cliff sand coral reef animal "
         "track burrow spine eye shield tail plate slope grit chalk lime clay storm tide").split()


def prose(seed: object, sentences: int = 12) -> str:
    """English enough for the filters, and no two alike."""
    draw = random.Random(str(seed))
    return " ".join("The " + " ".join(draw.choices(WORDS, k=9)) + f" of the {draw.choice(WORDS)} and it is in a bed." for _ in range(sentences))


def rows(n: int, prefix: str = "d", **more) -> list[dict]:
    return [{"doc_id": f"{prefix}{i}", "text": prose(f"{prefix}{i}")} | more for i in range(n)]


def write_jsonl(path: Path, lines: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def json_lines(path: Path) -> list[dict]:
    """Not splitlines, which cuts at U+2028 too."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


class Prepared:
    """One preparation in this process, and what it left."""
    def __init__(self, place: Path, monkeypatch, /, **parameters):
        monkeypatch.setenv("PALEOTRAIN_DATA", str(place / "data"))
        self.settings = load_settings()
        self.config, _ = resolve(PrepareConfig, parameters, None, self.settings)
        self.folder = place / "run"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = Run(self.folder)
        self.run.update(attempts=[{"attempt": 1}], config={}, terminal=None, phase="prepare")
        promise_claims(self.run)
        try:
            gathered = gather(self.run, self.config, self.settings)
            sources = [one.source for one in gathered]
            self.store, self.ledger = read_all(self.run, self.config, gathered, self.settings)
            self.made, self.apart = sort_out(self.config, self.store, self.ledger)
            write_corpora(self.run, self.store, self.made, self.ledger, sources, self.config.seed, self.settings)
            write_sft(self.run, self.store, self.made, sources, self.config.max_sft_per_domain, self.settings)
            self.claims = {claim["id"]: claim for claim in judge(self.run, self.store, self.made, self.apart, self.ledger, 1.0)}
        finally:
            if self.run.lock.is_locked: self.run.lock.release()
        self.data = self.settings.data

    def lines(self, domain: str, split: str, kind: str = "corpus") -> list[dict]:
        return json_lines(self.data / kind / domain / f"{split}.jsonl")

    def all(self, domain: str) -> list[dict]: return [line for split in SPLITS for line in self.lines(domain, split)]

    def dropped(self) -> dict[str, int]: return {row["reason"]: row["documents"] for row in self.ledger.dropped()}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    made = []
    def make(place: str = "one", /, **parameters) -> Prepared:
        made.append(Prepared(tmp_path / place, monkeypatch, **parameters))
        return made[-1]
    yield make
    for one in made: one.store.remove()


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_command_leaves_corpora_manifests_and_a_report(runs, tmp_path, monkeypatch):
    """run_prepare.ipynb through the command, then its report; the shipped sample."""
    monkeypatch.setenv("PALEOTRAIN_DATA", str(tmp_path / "data"))
    done = here("run", "prepare", "--preset", "prepare_demo")
    assert done.returncode == 0, done.stderr[-2000:]
    folder = only_run(runs)
    manifest = read_json(folder / "manifest.json")
    assert manifest["terminal"]["status"] == "finished" and (folder / "report.html").stat().st_size < 5e6
    for domain, corpus in manifest["corpora"].items():
        about = read_json(tmp_path / "data/corpus" / domain / "manifest.json")
        for entry in about["files"]:
            path = tmp_path / "data/corpus" / domain / entry["path"]
            lines = json_lines(path)
            assert entry["sha256"] == sha256_file(path) and entry["documents"] == len(lines) == corpus[path.stem]["documents"]
            assert all(line.keys() == set(corpora.FIELDS) for line in lines)
        assert {"read", "filter", "deduplicate", "split"} <= {stage["stage"] for stage in about["stages"]}
        for split in SPLITS:
            for example in json_lines(tmp_path / "data/sft" / domain / f"{split}.jsonl"):
                assert [message["role"] for message in example["messages"]] == ["user", "assistant"] and example["doc_id"]
    verdicts = {claim["id"]: claim["verdict"] for claim in read_json(folder / "claims.json")}
    assert verdicts["groups"] == verdicts["near_copies"] == verdicts["alignment"] == "PASS"
    page = (folder / "report.html").read_text()
    for title in ("Verdicts", "What became of the documents", "Corpora", "Left out", "Copies", "A look at the text", "Sources", "Repeat"): assert title in page
    assert events(folder)[0]["status"] == "started" and not (tmp_path / "data/work").exists() or not list((tmp_path / "data/work").iterdir())


def test_twice_and_in_another_order_the_same_bytes(prepared, tmp_path, monkeypatch):
    """Three folders; then the same, named in another order; then with a folder split into other files."""
    for part in "abc": write_jsonl(tmp_path / "in" / part / "text.jsonl", rows(60, part) + rows(5, "shared"))
    folders = [str(tmp_path / "in" / part) for part in "abc"]
    first = prepared("one", sources=folders, name="own")
    second = prepared("two", sources=folders[::-1], name="own")
    monkeypatch.setattr("paleotrain.phases.prepare.source_files", lambda *a, real=source_files: real(*a)[::-1])
    whole = [str(tmp_path / "in")]
    third = prepared("three", sources=whole, name="own")
    monkeypatch.undo()
    fourth = prepared("four", sources=whole, name="own")
    assert tree(third.data / "corpus") == tree(fourth.data / "corpus") and tree(third.data / "sft") == tree(fourth.data / "sft")
    assert len(third.all("own")) == len(first.all("own")) == 185
    assert tree(first.data / "corpus") == tree(second.data / "corpus")
    assert tree(first.data / "sft") == tree(second.data / "sft")


def test_a_document_of_many_is_on_one_side_with_all_its_examples(prepared, tmp_path):
    lines = [{"doc_id": f"p{i}-{k}", "pub_id": f"p{i}", "title": f"Part {k}", "text": prose(f"{i} {k}", 40)} for i in range(60) for k in range(3)]
    done = prepared(sources=[str(write_jsonl(tmp_path / "books.jsonl", lines))], name="own", test_fraction=.2, validation_fraction=.2)
    side = {line["pub_id"]: split for split in SPLITS for line in done.lines("own", split)}
    for split in SPLITS:
        assert done.lines("own", split) and all(side[line["pub_id"]] == split for line in done.lines("own", split))
        documents = {line["doc_id"] for line in done.lines("own", split)}
        assert {example["doc_id"] for example in done.lines("own", split, "sft")} <= documents
    examples = sum(len(done.lines("own", split, "sft")) for split in SPLITS)
    assert 1.5 * 180 <= examples <= 2 * 180


def planted(count: int) -> list[tuple[str, str]]:
    """Originals and copies: some words edited, letters misread, sentences in another order."""
    pairs = []
    for n in range(count):
        draw, original = random.Random(n), prose(n, 30)
        kind = ("edited", "misread", "reordered")[n % 3]
        if kind == "reordered":
            sentences = original.split(". ")
            for _ in range(draw.randint(1, 8)):
                i, k = draw.sample(range(len(sentences)), 2)
                sentences[i], sentences[k] = sentences[k], sentences[i]
            copy = ". ".join(sentences)
        else:
            words = original.split()
            for place in draw.sample(range(len(words)), draw.randint(1, 16)):
                words[place] = words[place].replace("e", "c").replace("l", "1") if kind == "misread" else draw.choice(WORDS)
            copy = " ".join(words)
        pairs.append((original, copy))
    return pairs


def true_jaccard(a: str, b: str) -> float:
    """By Python's sets, with none of our code."""
    import re
    def grams(text: str) -> set: words = re.findall(r"\w+", text.lower()); return {tuple(words[i:i + 5]) for i in range(len(words) - 4)}
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def test_two_hundred_planted_copies_are_clustered_as_their_jaccard_says(prepared, tmp_path):
    pairs = planted(200)
    lines = [{"doc_id": f"{'ab'[k]}{n}", "text": text} for n, pair in enumerate(pairs) for k, text in enumerate(pair)]
    random.Random(1).shuffle(lines)
    done = prepared(sources=[str(write_jsonl(tmp_path / "planted.jsonl", lines))], name="own")
    names = [done.store[i]["doc_id"].split(":")[-1] for i in range(len(done.store))]
    found = {tuple(sorted((names[a], names[b]))) for a, b, _ in done.made.pairs}
    alike = {(f"a{n}", f"b{n}") for n, (a, b) in enumerate(pairs) if a != b and true_jaccard(a, b) >= THRESHOLD}
    assert found == alike and 40 < len(alike) < 180
    copies = sum(a == b for a, b in pairs)
    assert done.made.fate.count("near copy") == len(alike) and done.made.fate.count("copy") == copies
    side = {name: done.made.fate[i] for i, name in enumerate(names)}
    for a, b in alike: assert {"near copy"} < {side[a], side[b]}


def brute_force(texts: dict[str, list[str]]) -> tuple[int, int]:
    """(pairs at the threshold, pairs compared) of training with evaluation, through Python's own dictionaries."""
    training = [shingles(text) for text in texts["train"]]
    where: dict[int, list[int]] = {}
    for number, grams in enumerate(training):
        for gram in grams.tolist(): where.setdefault(gram, []).append(number)
    found = compared = 0
    for text in texts["validation"] + texts["test"]:
        mine, shared = shingles(text), np.zeros(len(training), int)
        for gram in mine.tolist():
            for number in where.get(gram, ()): shared[number] += 1
        compared += len(training)
        found += sum(jaccard(mine, training[k]) >= THRESHOLD for k in np.flatnonzero(shared * 2 > len(mine)))
    return found, compared


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real text in {REAL}")
def test_real_sources_prepared_and_compared_by_brute_force(prepared):
    """Geology, the four domains and the Wikipedia dump: no group, no near copy on two sides, by a comparison that uses none of the phase's code."""
    import yaml
    preset = yaml.safe_load((ROOT / "nbs/presets/prepare/prepare_all.yaml").read_text())
    done = prepared(**{name: value for name, value in preset.items() if name != "phase"})
    domains = set(done.run.manifest["domains"])
    assert domains >= {"geology", "debate", "medicine", "ecology", "education", "general"}
    lines = {split: [line for domain in sorted(domains) for line in done.lines(domain, split)] for split in SPLITS}
    groups = [{line["pub_id"] for line in lines[split]} for split in SPLITS]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    found, compared = brute_force({split: [line["norm_text"] for line in lines[split]] for split in SPLITS})
    assert found == 0 and compared > 100_000
    assert done.claims["groups"]["verdict"] == done.claims["near_copies"]["verdict"] == done.claims["alignment"]["verdict"] == "PASS"


def test_a_near_copy_on_the_other_side_fails_the_claim(prepared, tmp_path, monkeypatch):
    """The claim can fail: without the search for copies the comparison of the sides finds them."""
    lines = [{"doc_id": f"{k}{n}", "text": text} for n, pair in enumerate(planted(60)) for k, text in zip("ab", pair, strict=True)]
    monkeypatch.setattr("paleotrain.data.corpus_writer.near_duplicates", lambda *_: [])
    monkeypatch.setattr("paleotrain.data.corpus_writer.equal_runs", lambda *_: iter(()))
    monkeypatch.setattr("paleotrain.data.corpus_writer.OVERLAP", 2.0)
    done = prepared(sources=[str(write_jsonl(tmp_path / "planted.jsonl", lines))], name="own", test_fraction=.3)
    assert done.claims["near_copies"]["verdict"] == "FAIL" and done.claims["near_copies"]["value"] > 3 and done.claims["overlap"]["verdict"] == "FAIL"


def test_a_corpus_without_a_document_to_train_on_is_refused_before_anything_is_written(prepared, tmp_path):
    """One publication is one group. By one seed it falls to training, and no claim about sides passes; by another to evaluation, and nothing is written."""
    sources = [str(write_jsonl(tmp_path / "one.jsonl", rows(8, pub_id="p")))]
    said = {}
    for seed in range(6):
        try: said[seed] = prepared(f"seed{seed}", sources=sources, name="one", test_fraction=.4, validation_fraction=.2, seed=seed)
        except UserError as error: said[seed] = str(error)
    refused = [seed for seed, found in said.items() if isinstance(found, str)]
    line = "one: none of its 8 documents fell to training (1 group, never on two sides); name more text"
    assert refused and all(said[seed].startswith(line) for seed in refused)
    trained = next(found for found in said.values() if not isinstance(found, str))
    assert {name: claim["verdict"] for name, claim in trained.claims.items() if claim["verdict"] == "PASS"} == {"alignment": "PASS"}
    assert "one has no test document" in trained.claims["groups"]["note"]
    assert not (tmp_path / f"seed{refused[0]}/data/corpus").exists()


def test_nothing_passes_where_there_is_nothing_to_compare(prepared, tmp_path):
    """Four documents that all fell to training: two sides are claimed apart, and there is one."""
    done = prepared(sources=[str(write_jsonl(tmp_path / "four.jsonl", rows(4)))], name="own", seed=1)
    counts = {split: found["documents"] for split, found in done.run.manifest["corpora"]["own"].items()}
    assert counts == {"train": 4, "validation": 0, "test": 0}
    verdicts = {name: claim["verdict"] for name, claim in done.claims.items()}
    assert verdicts == {"splits": "FAIL", "groups": "NOT RUN", "near_copies": "NOT RUN", "overlap": "NOT RUN", "alignment": "PASS"}
    assert done.claims["splits"]["value"] == 2 and done.claims["splits"]["note"] == "own has no validation document; own has no test document"
    assert done.claims["near_copies"]["note"].startswith("all documents are in one split, train; own has no validation document")
    assert {claim["about"] for claim in done.claims.values()} == {"property"}


def test_what_held_is_doubted_where_one_domain_has_no_test_text(prepared, tmp_path):
    """The other domain's sides were compared and are apart: that points to a PASS and is none."""
    write_jsonl(tmp_path / "many.jsonl", rows(60))
    write_jsonl(tmp_path / "few.jsonl", rows(1, "f"))
    (tmp_path / "few.yaml").write_text(f'name: few\ndomain: small\nfiles: ["{tmp_path}/few.jsonl"]\n')
    done = prepared(sources=[str(tmp_path / "many.jsonl"), str(tmp_path / "few.yaml")], name="own", test_fraction=.2, validation_fraction=.1, seed=3)
    assert done.run.manifest["corpora"]["small"]["test"]["documents"] == 0 < done.run.manifest["corpora"]["own"]["test"]["documents"]
    assert [(done.claims[name]["verdict"], done.claims[name]["points_to"]) for name in ("groups", "near_copies")] == [("INCONCLUSIVE", "PASS")] * 2
    assert "small has no test document" in done.claims["groups"]["note"]


def test_one_domain_without_training_is_enough_to_refuse(prepared, tmp_path):
    """Every domain is a corpus of its own; the other's documents do not make up for it."""
    write_jsonl(tmp_path / "many.jsonl", rows(30))
    write_jsonl(tmp_path / "few.jsonl", rows(4, "f", pub_id="p"))
    (tmp_path / "few.yaml").write_text(f'name: few\ndomain: small\nfiles: ["{tmp_path}/few.jsonl"]\n')
    def said(seed: int) -> str:
        try: prepared(f"both{seed}", sources=[str(tmp_path / "many.jsonl"), str(tmp_path / "few.yaml")], name="own", test_fraction=.5, seed=seed)
        except UserError as error: return str(error)
        return ""
    assert any(said(seed).startswith("small: none of its 4 documents fell to training") for seed in range(4))


# Controls

def test_controls_from_the_environment(prepared, tmp_path, monkeypatch):
    from paleotrain.data.download import from_environment
    path = write_jsonl(tmp_path / "text.jsonl", [{"doc_id": f"d{i}", "title": f"Bed {i}", "text": prose(i, 40)} for i in range(80)])
    monkeypatch.setenv("MAX_DOCS_PER_SOURCE", "30")
    monkeypatch.setenv("MAX_SFT_PER_DOMAIN", "12")
    done = prepared(sources=[str(path)], name="own", **from_environment())
    assert len(done.all("own")) == 30 and sum(len(done.lines("own", split, "sft")) for split in SPLITS) == 12


def source_file(place: Path, name: str, **fields) -> str:
    import yaml
    about = {"title": name, "domain": "own", "licence": "CC0", "homepage": "https://example.org", "checked": "made for a test", "text": "{text}"} | fields
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **about}))
    return str(path)


def test_a_missing_source_is_an_error_or_by_choice_a_warning(prepared, tmp_path, capsys):
    gone = source_file(tmp_path, "gone", domain="bare", files=[str(tmp_path / "nothing.jsonl")])
    good = str(write_jsonl(tmp_path / "text.jsonl", rows(40)))
    with pytest.raises(UserError, match="gone"): prepared(sources=[good, gone], name="own")
    done = prepared("two", sources=[good, gone], name="own", allow_missing_data=True)
    assert "gone is missing and was left out" in capsys.readouterr().err
    assert done.all("bare") == [] and read_json(done.data / "corpus/bare/manifest.json")["files"][0]["documents"] == 0
    assert (done.data / "sft/bare/train.jsonl").read_text() == ""
    done.run.update(run_id="x", hardware={}, config={})
    from paleotrain.report.prepare import corpora_table
    assert "bare" in corpora_table(read_run(done.folder))


def test_a_missing_source_leaves_the_corpus_it_made_before(prepared, tmp_path, capsys):
    path = write_jsonl(tmp_path / "bare.jsonl", rows(40))
    bare, good = source_file(tmp_path, "bare", domain="bare", files=[str(path)]), str(write_jsonl(tmp_path / "text.jsonl", rows(30, "g")))
    first = prepared("one", sources=[bare, good], name="own")
    before = tree(first.data / "corpus/bare") | tree(first.data / "sft/bare")
    path.unlink(); shutil.rmtree(first.folder)
    again = prepared("one", sources=[bare, good], name="own", allow_missing_data=True)
    assert tree(again.data / "corpus/bare") | tree(again.data / "sft/bare") == before and "corpus/bare stays as it was" in capsys.readouterr().err


def test_a_publication_named_in_two_files_is_on_one_side(prepared, tmp_path):
    files = [str(write_jsonl(tmp_path / f"{part}.jsonl", [{"pub_id": f"p{i}", "text": prose(f"{part} {i}")} for i in range(60)])) for part in "ab"]
    done = prepared(sources=files, name="own", test_fraction=.3)
    sides = {}
    for split in SPLITS:
        for line in done.lines("own", split): sides.setdefault(line["pub_id"].split("/")[-1], set()).add(split)
    assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())


def test_questions_and_evaluation_text_in_chat_examples(prepared, tmp_path):
    """A question stands on one side, in all domains; an example that holds a prompt goes with its document; every example's document is there."""
    asked = [f"What lies above bed {i % 40} of the quarry?" for i in range(160)]
    lines = [{"id": "same" if i < 9 else f"d{i}", "text": prose(i), "question": asked[i], "answer": f"Bed {i}."} for i in range(160)]
    template = [{"user": "{question}", "assistant": "{answer}"}]
    paths = [str(write_jsonl(tmp_path / f"{name}.jsonl", part)) for name, part in (("one", lines[:80]), ("two", lines[80:]))]
    sources = [source_file(tmp_path, f"s{k}", domain=f"d{k}", files=[path], id="{id}", sft=template) for k, path in enumerate(paths)]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"text": asked[7]}])
    done = prepared(sources=sources, evaluation=[str(prompts)], test_fraction=.3, validation_fraction=.2)
    said = {split: {e["messages"][0]["content"] for k in (0, 1) for e in done.lines(f"d{k}", split, "sft")} for split in SPLITS}
    assert not said["train"] & said["test"] and not said["train"] & said["validation"] and not said["validation"] & said["test"] and all(said.values())
    assert asked[7] not in said["train"] | said["validation"] | said["test"] and done.dropped()["holds evaluation text"] == 4
    for k in (0, 1):
        documents = {line["doc_id"] for line in done.all(f"d{k}")}
        assert all(e["doc_id"] in documents for split in SPLITS for e in done.lines(f"d{k}", split, "sft"))


def test_work_files_of_a_killed_run_are_swept(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("PALEOTRAIN_RUNS", str(tmp_path / "runs"))
    left = tmp_path / "one/data/work/prepare-20260101-000000-dead"
    left.mkdir(parents=True)
    prepared(sources=[str(write_jsonl(tmp_path / "text.jsonl", rows(30)))], name="own")
    assert not left.exists()


def test_offline_touches_no_network(prepared, tmp_path, monkeypatch):
    import socket
    def refuse(*_): raise AssertionError("the network was touched")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    source = source_file(tmp_path, "far", files=["{data}/downloads/far/*.jsonl"], download=[{"url": "http://127.0.0.1:9/x.jsonl", "path": "x.jsonl"}])
    with pytest.raises(UserError, match="offline"): prepared(sources=[source], offline=True)


def test_evaluation_text_is_taken_out_of_training(prepared, tmp_path):
    lines = rows(60)
    prompt = " ".join(lines[7]["text"].split()[20:40])
    evaluation = write_jsonl(tmp_path / "prompts.jsonl", [{"text": prompt}, {"text": prose("unseen")}])
    done = prepared(sources=[str(write_jsonl(tmp_path / "text.jsonl", lines))], name="own", evaluation=[str(evaluation)])
    assert done.dropped() == {"holds evaluation text": 1} and "d7" not in {line["doc_id"].split(":")[-1] for line in done.all("own")}
    assert [bool(row["found"]) for row in read_run(done.folder).tables["contamination"]] == [True, False]


# Bad input

def test_equal_ids_in_two_sources_and_within_one(prepared, tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", rows(30))
    two = write_jsonl(tmp_path / "two.jsonl", [row | {"text": prose("x" + row["doc_id"])} for row in rows(30)])
    twice = write_jsonl(tmp_path / "three.jsonl", [{"doc_id": "same", "text": prose(f"same {i}")} for i in range(30)])
    done = prepared(sources=[str(one), str(two), str(twice)], name="own")
    ids = [line["doc_id"] for line in done.all("own")]
    assert len(ids) == len(set(ids)) == 90


def test_a_broken_line_among_many_is_counted_and_named(prepared, tmp_path, capsys):
    lines = [*rows(150), '{"text": "half', *rows(150, "e")]
    done = prepared(sources=[str(write_jsonl(tmp_path / "text.jsonl", lines))], name="own")
    assert len(done.all("own")) == 300 and "1 broken" in capsys.readouterr().err
    assert "text.jsonl:151" in done.run.manifest["inputs"][0]["bad_lines"][0]


def test_one_broken_line_among_a_million(tmp_path):
    """Reading alone: counted, named, and nothing else lost."""
    path = tmp_path / "million.jsonl"
    with path.open("wb") as file:
        for block in range(1000): file.write(b'{"text": "A bed of shale."}\n' * 999 + (b'{"text": \n' if block == 777 else b'{"text": "Mud."}\n'))
    report, source = ReadReport(), plain_source(str(path), "own", load_settings())
    assert sum(1 for _ in read_records(source, [path], report)) == 999_999
    assert report.bad == 1 and report.files[0]["bad_lines"][0].startswith(f"{path}:778000: ")


def test_bom_crlf_and_nul(prepared, tmp_path):
    lines = [json.dumps(row) for row in rows(200)]
    lines[5] = lines[5].replace("bed", "be\0d", 1)
    path = tmp_path / "text.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    done = prepared(sources=[str(path)], name="own")
    assert len(done.all("own")) == 199 and "NUL" in done.run.manifest["inputs"][0]["bad_lines"][0]


def blank_pdf(password: str = "") -> bytes:
    """A page without a text layer, as a scan has."""
    from pypdf import PdfWriter
    writer, out = PdfWriter(), io.BytesIO()
    writer.add_blank_page(200, 200)
    if password: writer.encrypt(password)
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize("name, content, said", [
    ("latin.txt", "Caf\xe9 au lait. ".encode("latin-1") * 50, "not UTF-8"),
    ("dump.xml.bz2", bz2.compress(b"<mediawiki><page><title>A</title>" * 5000)[:-300], "dump.xml.bz2"),
    ("table.parquet", b"PAR1 this is no table", "table.parquet"),
    ("scan.pdf", b"%PDF-1.4 and nothing more", "scan.pdf"),
    ("empty.jsonl", b"", "empty.jsonl"),
    ("locked.pdf", blank_pdf("secret"), "encrypted"),
    ("scanned.pdf", blank_pdf(), "no text"),
    ("semicolons.csv", b"id;text\n1;The bed holds many shells of one kind.\n" * 9, "delimiter"),
    ("ragged.csv", b"id,text\n1,The bed holds many shells.\n2\n3,a,b,c\n", "ragged.csv"),
    ("bare.html", b"<html><body><img src='a.png'></body></html>", "no text"),
    ("utf16.txt", "The bed holds many shells.".encode("utf-16"), "UTF-16"),
])
def test_a_file_that_cannot_be_read_ends_in_one_line(prepared, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught: prepared(sources=[str(tmp_path / name)], name="own")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_line_of_fifty_megabytes_is_survived(prepared, tmp_path):
    path = write_jsonl(tmp_path / "text.jsonl", rows(300))
    with path.open("a") as file: file.write(json.dumps({"text": "a word " * 7_500_000}) + "\n")
    done = prepared(sources=[str(path)], name="own")
    assert len(done.all("own")) == 300


def test_a_link_out_of_the_folder_is_not_followed(prepared, tmp_path):
    write_jsonl(tmp_path / "in/text.jsonl", rows(30))
    secret = write_jsonl(tmp_path / "elsewhere/secret.jsonl", rows(5, "s"))
    (tmp_path / "in/link.jsonl").symlink_to(secret)
    with pytest.raises(UserError, match="link.jsonl"): prepared(sources=[str(tmp_path / "in")], name="own")


def test_a_full_disk_leaves_what_was_there(prepared, tmp_path, monkeypatch):
    """/dev/full answers every write with the kernel's own `no space left on device`."""
    first = prepared("one", sources=[str(write_jsonl(tmp_path / "text.jsonl", rows(40)))], name="own")
    before, real = tree(first.data), corpora.write_lines
    shutil.rmtree(first.folder)
    monkeypatch.setattr(corpora, "write_lines", lambda path, lines: real(Path("/dev/full") if path.name == "test.jsonl" else path, lines))
    with pytest.raises(UserError, match="the disk is full"):
        prepared("one", sources=[str(write_jsonl(tmp_path / "other.jsonl", rows(200, "o")))], name="own", test_fraction=.5)
    after = {name: digest for name, digest in tree(first.data).items() if not name.startswith("work/")}
    assert after == {name: digest for name, digest in before.items() if not name.startswith("work/")}


def test_a_source_without_documents_fit_to_keep(prepared, tmp_path):
    with pytest.raises(UserError, match="no document"): prepared(sources=[str(write_jsonl(tmp_path / "text.jsonl", [{"text": "Too short."}] * 5))], name="own")


def test_killed_and_resumed_it_ends_in_the_same_bytes(runs, tmp_path, monkeypatch):
    """kill -9 while it reads; what was there before stays; the resumed run, in another environment, ends as one that was never killed."""
    monkeypatch.setenv("PALEOTRAIN_DATA", str(tmp_path / "data"))
    old = write_jsonl(tmp_path / "data/corpus/own/train.jsonl", [{"text": "from before"}])
    path = write_jsonl(tmp_path / "text.jsonl", rows(3000))
    words = [str(BIN / "paleotrain"), "run", "prepare", "-p", "sources", str(path), "-p", "name", "own"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "data").glob("work/*/documents.jsonl")): assert process.poll() is None and time.monotonic() < deadline
    kernels = psutil.Process(process.pid).children(recursive=True)
    for one in (psutil.Process(process.pid), *kernels): one.kill()
    process.wait(); psutil.wait_procs(kernels)
    assert old.exists() and derive_status(only_run(runs)) == "interrupted"
    monkeypatch.setenv("OFFLINE", "1")
    done = here("run", "prepare", "--resume", only_run(runs).name)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read_json(only_run(runs) / "manifest.json")["attempts"]) == 2 and not list((tmp_path / "data/work").iterdir())
    resumed = tree(tmp_path / "data/corpus")
    shutil.rmtree(only_run(runs))
    assert here(*words[1:]).returncode == 0 and tree(tmp_path / "data/corpus") == resumed


def test_a_failed_preparation_has_a_report(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PALEOTRAIN_DATA", str(tmp_path / "data"))
    path = write_jsonl(tmp_path / "text.jsonl", ['{"words": "half"}'] * 5)
    done = here("run", "prepare", "-p", "sources", str(path), "-p", "name", "own")
    assert done.returncode == 2 and "Traceback" not in done.stderr.splitlines()[-1] and "words" in done.stderr.splitlines()[-1]
    assert "failed" in (only_run(runs) / "report.html").read_text()
