"""run_chatdata.ipynb and its report end to end, mixtures whose sides stay apart, and what is refused."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, events, here, only_run, options

SMALL = {"max_examples": 150, "evaluation": 25}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def questions(rows: list[dict]) -> set[tuple[str, ...]]:
    return {tuple(turn["content"] for turn in row["messages"] if turn["role"] == "user") for row in rows}


def bytes_of_answers(rows: list[dict]) -> int:
    return sum(len(turn["content"].encode()) + 1 for row in rows for turn in row["messages"] if turn["role"] == "assistant")


def made(folder: Path, **given) -> Path:
    from paleotrain.phases.chat_data import ChatdataConfig, make_data
    from paleotrain.core.settings import load_settings
    make_data(ChatdataConfig(**given), folder, load_settings())
    return folder


@pytest.fixture(scope="module")
def lessons(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("lessons")
    return made(place / "echo", **SMALL), made(place / "lock", generator="format_lock", **SMALL)


def test_a_lesson_through_the_command(runs, tmp_path):
    given = {"generator": "echo", "gibberish": "only", "output": tmp_path / "words", **SMALL}
    done = here("run", "chatdata", *options(given))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    claims = {c["id"]: (c["value"], c["verdict"]) for c in json.loads((folder / "claims.json").read_text())}
    assert claims == dict.fromkeys(("deterministic", "distinct", "no_evaluation", "reserved"), (0, "PASS"))
    assert [e["status"] for e in events(folder) if e["kind"] == "status"] == ["started", "claims", "written", "finished"]
    rows, items = lines(tmp_path / "words/examples.jsonl"), json.loads((tmp_path / "words/evaluation.json").read_text())
    assert (len(rows), len(items)) == (150, 25) and all(item["messages"][-1]["role"] == "user" for item in items)
    held = re.compile(r"\b(hello|hallo|testing|blurpix|zanthor|quexling)\b", re.I)
    assert not held.search((tmp_path / "words/examples.jsonl").read_text())
    said = {word.lower() for row in rows for turn in row["messages"] if turn["role"] != "system" for word in re.findall(r"\w+", turn["content"])}
    assert not {word.lower() for item in items for word in re.findall(r"\w+", item["answer"])} & said
    manifest = json.loads((tmp_path / "words/manifest.json").read_text())
    assert sum(manifest["kinds"]["examples"].values()) == 150 and set(manifest["files"]) == {"examples.jsonl", "evaluation.json"}
    page = (folder / "report.html").read_text()
    assert "150 conversations of" in page and "nowhere in training" in page and "Damaged file" not in page and not re.search(r'(?:src|href)="https?:', page)
    assert str(tmp_path) not in json.dumps(json.loads((folder / "manifest.json").read_text())["data"])
    again = here("run", "chatdata", *options(given | {"seed": 7})) # other content for the same folder
    assert again.returncode == 2 and "words: holds a data set with seed 42, where 7 is asked; name another folder" in again.stderr.strip().splitlines()[-1]
    assert lines(tmp_path / "words/examples.jsonl") == rows


def test_the_same_bytes_in_another_process(tmp_path):
    """Sets and dictionaries of another hash seed must not show."""
    sets = [{"generator": name, "max_examples": 80, "evaluation": 15} for name in ("echo", "format_lock", "knowledge")]
    code = ("import sys; from pathlib import Path; from paleotrain.phases.chat_data import ChatdataConfig, make_data\n"
            "from paleotrain.core.settings import load_settings\n"
            f"for given in {sets!r}: make_data(ChatdataConfig(**given), Path(sys.argv[1]) / given['generator'], load_settings())")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=ROOT, timeout=200)
    for given in sets:
        here = made(tmp_path / "here" / given["generator"], **given)
        for path in here.iterdir(): assert path.read_bytes() == (tmp_path / "there" / given["generator"] / path.name).read_bytes(), path.name
        assert lines(made(tmp_path / "other" / given["generator"], **given, seed=8) / "examples.jsonl") != lines(here / "examples.jsonl")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.3])
def test_the_share_of_a_mixture_and_its_sides(tmp_path, lessons, share):
    """Counted afresh in the file: the share, and that each training side is all there is."""
    own, replay = lessons
    mixed = made(tmp_path / "mix", generator="mix", inputs=[str(own), str(replay)], replay_share=share)
    rows, held = lines(mixed / "examples.jsonl"), lines(mixed / "held_out.jsonl")
    mine = [row for row in rows if row["source"] == "echo"]
    achieved = 1 - bytes_of_answers(mine) / bytes_of_answers(rows)
    assert abs(achieved - share) < 0.005 and abs(json.loads((mixed / "manifest.json").read_text())["replay"]["achieved"] - achieved) < 1e-5
    assert questions(mine) | questions(held) == questions(lines(own / "examples.jsonl")) and not questions(rows) & questions(held) and held
    assert len(rows) == len({json.dumps(row["messages"]) for row in rows})
    assert (mixed / "evaluation.json").read_bytes() == (own / "evaluation.json").read_bytes()


def test_what_one_set_validates_on_no_other_teaches(tmp_path, lessons):
    """The second lesson's validation conversations, also given as part of a third one, in another order and under another system prompt."""
    own, replay = lessons
    first = made(tmp_path / "first", generator="mix", inputs=[str(replay), str(own)], replay_share=0)
    held = lines(first / "held_out.jsonl")
    other = [{"messages": [{"role": "system", "content": "Be brief."}] + [t for t in row["messages"] if t["role"] != "system"][:-1]
              + [{"role": "assistant", "content": "As a model would say it."}]} for row in reversed(held)]
    (tmp_path / "third.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*other, *lines(replay / "examples.jsonl")]))
    second = made(tmp_path / "second", generator="mix", inputs=[str(own), str(tmp_path / "third.jsonl")], replay_share=0.3)
    assert questions(held) and not questions(lines(second / "examples.jsonl")) & questions(held)


def test_a_split_by_place_would_leak(tmp_path, lessons, monkeypatch):
    """The same test seen red: sides drawn by where a conversation stands."""
    from paleotrain.chat import mixture
    calls = iter(range(10**6))
    monkeypatch.setattr(mixture, "split_of", lambda messages, fraction, seed: "train" if next(calls) % 3 else "validation")
    with pytest.raises(AssertionError): test_what_one_set_validates_on_no_other_teaches(tmp_path, lessons)


def test_a_folder_of_a_mixture_is_read_with_both_its_sides(tmp_path, lessons):
    from paleotrain.chat.conversations import read_conversations
    from paleotrain.core.settings import load_settings
    from paleotrain.data.readers import ReadReport
    from paleotrain.chat.mixture import split_of
    own, replay = lessons
    mixed = made(tmp_path / "mix", generator="mix", inputs=[str(own), str(replay)])
    rows = list(read_conversations([str(mixed)], load_settings(), ReadReport()))
    sides = {side: [row for row in rows if split_of(row.messages, 0.1, 42) == side] for side in ("train", "validation")}
    assert [len(sides["train"]), len(sides["validation"])] == [len(lines(mixed / name)) for name in ("examples.jsonl", "held_out.jsonl")]


def test_shares_by_a_tokenizer_are_those_of_the_renderer(tmp_path, lessons):
    from transformers import PreTrainedTokenizerFast

    from paleotrain.chat.template import add_chat, render
    from paleotrain.tokenizers.train import train_tokenizer
    own, replay = lessons
    texts = [turn["content"] for folder in lessons for row in lines(folder / "examples.jsonl") for turn in row["messages"]]
    letters = train_tokenizer("character", texts, 400, 1)
    letters.save_pretrained(tmp_path / "letters")
    mixed = made(tmp_path / "mix", generator="mix", inputs=[str(own), str(replay)], replay_share=0.3, tokenizer=str(tmp_path / "letters"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "letters")
    add_chat(tokenizer)
    sizes = {source: sum(sum(render(tokenizer, row["messages"]).supervised) for row in lines(mixed / "examples.jsonl") if (row["source"] == "echo") == mine)
             for source, mine in (("own", True), ("replay", False))}
    assert abs(sizes["replay"] / sum(sizes.values()) - 0.3) < 0.005
    by_hand = sum(len(turn["content"]) + 1 for row in lines(mixed / "examples.jsonl") for turn in row["messages"] if turn["role"] == "assistant")
    assert sum(sizes.values()) == by_hand # characters, and a closing tag a turn
    assert json.loads((mixed / "manifest.json").read_text())["supervised"] == "tokens"


def test_a_mixture_with_found_conversations_through_the_command(runs, lessons, tmp_path):
    own, _ = lessons
    found = [{"prompt": f"What is {n} and {n}?", "completion": f"{2 * n}, as far as I can tell from the numbers."} for n in range(60)]
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    given = {"generator": "mix", "inputs": f"{own};{tmp_path / 'found.jsonl'}", "output": tmp_path / "mix"}
    done = here("run", "chatdata", *options(given))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = only_run(runs)
    claims = {c["id"]: c["verdict"] for c in json.loads((folder / "claims.json").read_text())}
    assert claims == dict.fromkeys(("deterministic", "distinct", "no_evaluation", "replay_share", "held_out"), "PASS")
    page = (folder / "report.html").read_text()
    assert "is replayed from 1 earlier set, where" in page and "the new lesson" in page and "found.jsonl" in page


@pytest.mark.parametrize(("given", "message"), [
    ({"generator": "ehco"}, "generator: Input should be 'format_lock', 'echo', 'knowledge' or 'mix', found 'ehco'; generator is: what makes the"),
    ({"generator": "format_lock", "mode": "half"}, "mode: Input should be 'full' or 'minimal', found 'half'; mode is: format_lock: full"),
    ({"generator": "echo", "mode": "minimal"}, "mode: 'minimal' given for the generator echo, which has no use for it; leave it out; it is for format_lock"),
    ({"generator": "mix"}, "inputs: none named; name the new lesson and what is replayed"),
    ({"generator": "mix", "inputs": "{own};{place}/nowhere.jsonl"}, "nowhere.jsonl"),
    ({"generator": "mix", "inputs": "{own};{place}/text.jsonl"}, "text.jsonl"),
    ({"generator": "mix", "inputs": "{own};{replay}", "replay_share": 0.9}, "replay: a share of 90.0% asked, and the sources fill"),
    ({"generator": "mix", "inputs": "{own}", "replay_share": 0.1}, "fill 0.0% (nothing is left of them but copies"),
    ({"generator": "mix", "inputs": "{own};{replay}", "replay_share": 1}, "replay_share: Input should be less than or equal to 0.9, found 1"),
    ({"generator": "mix", "inputs": "{own};{replay}", "tokenizer": "{own}"}, "tokenizer: no tokenizer.json in"),
    ({"output": "{place}/mine"}, "mine: holds notes.txt, which is no part of a chat data set; name another folder with output"),
])
def test_what_is_refused_in_one_line(runs, lessons, tmp_path, given, message):
    from paleotrain.phases.chat_data import ChatdataConfig
    from paleotrain.phases.chat_data import prepare, write
    from paleotrain.core.settings import UserError, load_settings
    from paleotrain.runs.session import leave_run, open_run
    (tmp_path / "text.jsonl").write_text('{"text": "a page, and nobody asks"}\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    names = {"own": lessons[0], "replay": lessons[1], "place": tmp_path}
    given = {"output": str(tmp_path / "new")} | {k: v.format(**names) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(UserError) as error:
        run, config = open_run("chatdata", ChatdataConfig, given, load_settings())
        write(run, config, prepare(run, config, load_settings()), load_settings())
    leave_run()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists() and (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_the_presets_are_of_this_phase():
    from paleotrain.phases.chat_data import ChatdataConfig, parameters
    from paleotrain.core.settings import load_settings
    from paleotrain.core.config import presets, resolve
    names = presets(load_settings(), "chatdata")
    assert {"chatdata_format_lock", "chatdata_echo", "chatdata_gibberish", "chatdata_knowledge"} <= set(names)
    for name in names: parameters(resolve(ChatdataConfig, {}, name, load_settings())[0])
