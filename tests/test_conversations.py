"""Conversations: every layout gives the same; every kind of bad input one line; the real sets in full, counted here a second time."""
import json
from pathlib import Path

import pytest
from test_prepare import Prepared, prose

from paleotrain.chat.conversations import NOTHING, UNANSWERED, UNLEARNED, read_conversations, write_conversations
from paleotrain.chat.template import Conversation
from paleotrain.core.settings import UserError, load_settings
from paleotrain.data.readers import ReadReport

CHAT = load_settings().corpora / "chat"
TURNS = [("system", "Be brief."), ("user", "Say »a«."), ("assistant", "a"), ("user", "Again."), ("assistant", "a\n b")]


def chat(turns=TURNS) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def shared(turns=TURNS, names=(("system", "system"), ("user", "human"), ("assistant", "gpt"))) -> dict:
    return {"conversations": [{"from": dict(names)[role], "value": content} for role, content in turns]}


def written(path: Path, *rows) -> str:
    """A file of lines, or of bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return str(path)


def read(*names: str) -> tuple[list[Conversation], ReadReport]:
    report = ReadReport()
    return list(read_conversations(names, load_settings(), report)), report


def said(conversation: Conversation) -> list[tuple[str, str]]:
    assert all(turn.keys() - {"weight"} == {"role", "content"} for turn in conversation.messages)
    return [(turn["role"], turn["content"]) for turn in conversation.messages]


def refusal(*names: str) -> str:
    with pytest.raises(UserError) as caught: read(*names)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


PAIR = [("system", "Be brief."), ("user", "Add.\n\n1 2"), ("assistant", "3")]
LAYOUTS = {
    "messages": (chat(), TURNS), "sharegpt": (shared(), TURNS), "sharegpt_with_roles": ({"conversations": chat()["messages"]}, TURNS),
    "messages_win": (chat() | {"prompt": "Say", "completion": "b", "instruction": "c", "output": "d"}, TURNS),
    "prompt": ({"prompt": "Add.\n\n1 2", "completion": "3"}, PAIR[1:]),
    "prompt_lists": ({"prompt": chat(TURNS[:4])["messages"], "completion": chat(TURNS[4:])["messages"]}, TURNS),
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}, PAIR),
    "alpaca_bare": ({"instruction": "Say a.", "output": "a"}, [("user", "Say a."), ("assistant", "a")]),
    "sharegpt_system_column": (shared(TURNS[1:]) | {"system": "Be brief."}, TURNS)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_layouts(tmp_path, layout, suffix):
    row, expected = LAYOUTS[layout]
    path = tmp_path / f"a{suffix}"
    name = written(path, row, row | {"doc_id": "own", "source": "mine", "kind": "echo"}) if suffix == ".jsonl" else written(
        path, json.dumps([row, row | {"doc_id": "own", "source": "mine", "kind": "echo"}], indent=1).encode())
    found, report = read(name)
    assert [said(c) for c in found] == [expected] * 2
    assert [(c.id, c.source, c.kind, c.place) for c in found] == [("a#1", "a", "", f"{name}:1"), ("own", "mine", "echo", f"{name}:2")]
    others = ("prompt", "completion", "instruction", "output") if layout == "messages_win" else ()
    assert (report.bad, report.lines, report.files[0]["documents"]) == (0, 2, 2)
    assert report.files[0]["left_out"] == {f"the column {name}, not read": 2 for name in others}


def test_rows_of_several_layouts_and_several_files_keep_their_order(tmp_path):
    rows = [row for row, _ in LAYOUTS.values()]
    write = [written(tmp_path / f"many/{name}.jsonl", *rows[::step]) for name, step in (("a", 1), ("b", -1))]
    found, report = read(f"{tmp_path}/many/*.jsonl", write[0])
    expected = [turns for _, turns in LAYOUTS.values()]
    assert [said(c) for c in found] == expected + expected[::-1] + expected # twice named is read twice: nothing is removed here
    assert [entry["documents"] for entry in report.files] == [len(rows)] * 3


def test_a_table_of_columns_is_alpaca_too(tmp_path):
    found, _ = read(written(tmp_path / "a.csv", b'instruction,input,output\nAdd.,"1 2",3\nSay a.,,a\n'))
    assert [said(c) for c in found] == [PAIR[1:], [("user", "Say a."), ("assistant", "a")]]


def test_a_folder_is_its_lines_and_a_prepared_set_is_never_read_whole(tmp_path):
    written(tmp_path / "echo/examples.jsonl", chat())
    written(tmp_path / "echo/manifest.json", {"generator": "echo"})
    written(tmp_path / "echo/evaluation.json", b'[{"id": "e", "prompt": "Say b."}]')
    assert len(read(str(tmp_path / "echo"))[0]) == 1
    written(tmp_path / "lists/a.json", json.dumps([chat()]).encode())
    assert len(read(str(tmp_path / "lists"))[0]) == 1
    for split in ("train", "validation", "test"):
        written(tmp_path / f"sft/rocks/{split}.jsonl", {"doc_id": f"quiz:{split}", "source": "quiz"} | chat())
    written(tmp_path / "sft/rocks/manifest.json", {"name": "rocks"})
    (found,) = read(str(tmp_path / "sft/rocks/train.jsonl"))[0]
    assert (found.id, found.source, found.kind, said(found)) == ("quiz:train", "quiz", "", TURNS)
    for folder in ("sft/rocks", "sft"): assert f"{tmp_path}/sft/rocks: a prepared set with its splits; name the split" in refusal(str(tmp_path / folder))


def test_what_is_no_conversation_names_line_and_turn_and_how_many_more(tmp_path):
    good, turn = chat(), {"role": "user", "content": "a"}
    cases = {"unknown role 'tool'": chat([*TURNS, ("tool", "x")]), "two assistant's turns in a row": chat([*TURNS, ("assistant", "x")]),
             "two user's turns in a row": chat([("user", "a"), *TURNS[1:]]), "an empty turn": chat([("user", " \n"), ("assistant", "x")]),
             "a system's turn in the middle": chat([*TURNS[1:3], ("system", "x")]), "no assistant's turn": chat(TURNS[:2]), "no messages": {"messages": []},
             "not a role and a content": {"messages": [turn, "b"]}, "unknown role ['gpt']": {"conversations": [{"from": ["gpt"], "value": "a"}]},
             "content is no text": {"prompt": "a", "completion": 3}, "unknown role 'bing'": {"conversations": [{"from": "bing", "value": "a"}]},
             "an assistant's turn that no user's turn precedes": shared([("assistant", "a")])}
    for number, (found, row) in enumerate(cases.items()):
        assert found in (message := refusal(written(tmp_path / f"{number}.jsonl", good, good, row, good))) and f"{number}.jsonl:3" in message, message
        assert "more of this set" not in message
    several = written(tmp_path / "several.jsonl", *cases.values())
    assert "several.jsonl:1, turn 6: unknown role 'tool'" in refusal(several) and f"({len(cases) - 1} more of this set are no conversation)" in refusal(several)
    iterator = read_conversations([written(tmp_path / "later.jsonl", good, cases["no messages"], good)], load_settings(), ReadReport())
    assert said(next(iterator)) == TURNS
    with pytest.raises(UserError, match="later.jsonl:2: no messages"): next(iterator)


def test_bad_content_ends_the_reading_among_any_number_of_good_files(tmp_path):
    """Where 200 files are read, two that are broken may be left out; one with a wrong turn may not."""
    for number in range(200): written(tmp_path / f"many/{number:03}.jsonl", chat())
    written(tmp_path / "many/100.jsonl", chat(TURNS[:2]))
    assert "100.jsonl:1: no assistant's turn" in refusal(str(tmp_path / "many"))
    written(tmp_path / "many/100.jsonl", {"text": "a"})
    assert "100.jsonl:1: no chat layout has the keys text" in refusal(str(tmp_path / "many"))


def test_a_last_turn_without_an_answer_is_cut_off_and_counted_by_file(tmp_path):
    names = [written(tmp_path / f"{name}.jsonl", *[chat(TURNS[:4])] * n, chat()) for name, n in (("a", 2), ("b", 0), ("c", 1))]
    found, report = read(*names)
    assert [said(c) for c in found] == [TURNS[:3], TURNS[:3], TURNS, TURNS, TURNS[:3], TURNS]
    assert [entry["left_out"] for entry in report.files] == [{UNANSWERED: 2}, {}, {UNANSWERED: 1}]


def test_fields_and_columns_that_are_not_read_are_counted(tmp_path):
    row = {"messages": [turn | {"name": "x", "tool_calls": None} for turn in chat()["messages"]], "score": .5, "id": 7, "note": None}
    found, report = read(written(tmp_path / "a.jsonl", row, row))
    assert [said(one) for one in found] == [TURNS] * 2
    assert report.files[0]["left_out"] == {"the field name of a turn, not read": 10, "the column score, not read": 2, "the column id, not read": 2}


@pytest.mark.parametrize("field", ["weight", "train", "training", "train_on_turn", "loss"])
def test_an_answer_that_is_not_to_be_learned_is_read_only(tmp_path, field):
    """Its tokens stand in the example, unsupervised; at the end it is cut off; where there is no other, the conversation is left out."""
    from paleotrain.chat.template import add_chat, render
    from paleotrain.tokenizers.train import train_tokenizer
    turns = chat(TURNS[1:])["messages"]
    first, last = [turns[0], turns[1] | {field: 0}, *turns[2:]], [*turns[:3], turns[3] | {field: False}]
    sets = (first, last, [*first[:2], *last[2:]], [turn | {field: 1} for turn in turns])
    found, report = read(written(tmp_path / "a.jsonl", *({"messages": rows} for rows in sets)))
    assert [said(one) for one in found] == [TURNS[1:], TURNS[1:3], TURNS[1:]]
    assert report.files[0]["left_out"] == {UNLEARNED: 1, NOTHING: 1, f"the field {field} of a turn, not read": 2} # of a user's turn
    tokenizer = train_tokenizer("bpe_words", [text for _, text in TURNS] * 9, 300)
    add_chat(tokenizer)
    learned = [tokenizer.decode([t for t, flag in zip(r.ids, r.supervised, strict=True) if flag]) for r in (render(tokenizer, one.messages) for one in found)]
    assert learned == ["a\n b</myPT_assistant>", "a</myPT_assistant>", "a</myPT_assistant>a\n b</myPT_assistant>"]
    written_again = tmp_path / "b.jsonl"
    write_conversations(written_again, found)
    assert [one.messages for one in read(str(written_again))[0]] == [one.messages for one in found]
    for odd in (.5, 2, "0", [0]):
        row = {"messages": [turns[0], turns[1] | {field: odd}]}
        assert f"turn 2: a weight of {odd!r}; write 1, or 0" in refusal(written(tmp_path / "odd.jsonl", row))


@pytest.mark.parametrize("column", ["label", "weight", "train"])
def test_a_row_whose_answers_are_not_to_be_learned_is_left_out_and_counted(tmp_path, column):
    """As sets of good and bad answers say it, in the layouts of messages and of a prompt; a class that is called label is only counted."""
    bad, good = {"prompt": "a", "completion": "b", column: False}, {"prompt": "a", "completion": "c", column: True}
    found, report = read(written(tmp_path / "a.jsonl", bad, good, chat() | {column: False}, good | {column: None}))
    assert [one.messages[-1]["content"] for one in found] == ["c", "c"]
    assert report.files[0]["left_out"] == {f"not to be learned, by the column {column}": 2, f"the column {column}, not read": 1}
    assert f"no conversation in it: 1 x not to be learned, by the column {column}" in refusal(written(tmp_path / "b.jsonl", bad))
    found, report = read(written(tmp_path / "c.jsonl", chat() | {"label": 0}))
    assert len(found) == 1 and report.files[0]["left_out"] == {"the column label, not read": 1}


def test_a_system_text_beside_a_systems_turn_is_refused_by_its_column(tmp_path):
    row = {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "Be kind."}
    assert "a.jsonl:1, system: a text beside a system's turn; keep one of them" in refusal(written(tmp_path / "a.jsonl", row))
    assert len(read(written(tmp_path / "b.jsonl", row | {"system": ""}))[0][0].messages) == 3


def test_the_report_of_a_training_tells_what_was_not_read():
    from types import SimpleNamespace

    from paleotrain.report.blocks import inputs_table
    entry = {"role": "training", "path": "a.jsonl", "documents": 2, "bytes": 9, "sha256": "0" * 64,
             "left_out": {"the column label, not read": 2}, "bad_lines": ["9: <no> JSON"]}
    bare = {name: entry[name] for name in ("role", "path", "documents", "bytes", "sha256")}
    table = inputs_table(SimpleNamespace(status="finished", manifest={"inputs": [entry, bare]}))
    assert "2 × the column label, not read" in table and "9: &lt;no&gt; JSON" in table


def test_alpaca_keeps_its_history_in_every_spelling(tmp_path):
    row = {"instruction": "Third?", "input": "", "output": "c", "system": "Be brief."}
    pairs = [["First?", "a"], ["Second?", "b"]]
    turns = [("system", "Be brief."), ("user", "First?"), ("assistant", "a"), ("user", "Second?"), ("assistant", "b"), ("user", "Third?"), ("assistant", "c")]
    dicts = chat(turns[1:5])["messages"]
    for number, history in enumerate((pairs, dicts)):
        for one in (row, {"prompt": "Third?", "completion": "c", "system": "Be brief."}):
            assert said(read(written(tmp_path / f"{number}.jsonl", one | {"history": history}))[0][0]) == turns
    for empty in ([], None, ""): assert said(read(written(tmp_path / "e.jsonl", row | {"history": empty}))[0][0]) == [turns[0], *turns[5:]]
    for wrong in ("First? a", [["First?"]], ["First?", "a"], {"First?": "a"}, [["a", "b", "c"]]):
        assert ":1, history: not a list of pairs; write" in refusal(written(tmp_path / "w.jsonl", row | {"history": wrong}))
    assert "turn 3: content is no text but null" in refusal(written(tmp_path / "w.jsonl", row | {"history": [["First?", None]]}))
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow
    parquet.write_table(pyarrow.table({name: [value, value] for name, value in row.items()} | {"history": [pairs, None]}), tmp_path / "h.parquet")
    assert [len(one.messages) for one in read(str(tmp_path / "h.parquet"))[0]] == [7, 3]


def test_joined_sets_are_read_by_the_columns_that_hold_something(tmp_path):
    """Every row has the columns of all sets; null, NaN and an empty list stand in those of the others. In Parquet and in a turn's fields as well."""
    names = sorted({name for row, _ in LAYOUTS.values() for name in row})
    for nothing in (None, float("nan"), []):
        rows = [{name: nothing for name in names} | row for row, _ in LAYOUTS.values()]
        found, _ = read(written(tmp_path / "joined.jsonl", *rows))
        assert [said(one) for one in found] == [turns for _, turns in LAYOUTS.values()]
    both = {"messages": [{"role": None, "content": None, "from": "human", "value": "a"},
                         {"role": "assistant", "content": "b", "from": None, "value": None}]}
    assert said(read(written(tmp_path / "turns.jsonl", both))[0][0]) == [("user", "a"), ("assistant", "b")]
    found, report = read(written(tmp_path / "half.jsonl", {"prompt": "a", "completion": None}, {"messages": None}, chat()))
    assert [said(one) for one in found] == [TURNS] and report.files[0]["left_out"] == {"an empty column": 2}
    import pyarrow
    import pyarrow.parquet
    rows = [{"messages": chat()["messages"], "prompt": None, "completion": None}, {"messages": None, "prompt": "a", "completion": "b"}]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "joined.parquet")
    assert [said(one) for one in read(str(tmp_path / "joined.parquet"))[0]] == [TURNS, [("user", "a"), ("assistant", "b")]]


def test_content_in_parts_of_text_is_joined_and_other_parts_are_refused(tmp_path):
    def row(*parts) -> dict: return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}
    text = {"type": "text", "text": "Say "}
    for parts in ((text, {"type": "text", "text": "b."}), ("Say b.",), ("Say ", text | {"text": "b."}), (text | {"image_url": None}, {"text": "b."})):
        assert said(read(written(tmp_path / "a.jsonl", row(*parts)))[0][0]) == [("user", "Say b."), ("assistant", "b")]
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for part, found in ((image, "a list with a part of type image_url"), ({"type": "text", "text": None}, "list"), (7, "list")):
        assert f"turn 1: content is no text but {found}; write a text" in refusal(written(tmp_path / "a.jsonl", row(text, part)))
    for role in ("developer", "tool", "function"):
        assert f"turn 1: unknown role '{role}'" in refusal(written(tmp_path / "a.jsonl", chat([(role, "x"), *TURNS[1:]])))
    call = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}
    assert "turn 2: content is no text but null" in refusal(written(tmp_path / "a.jsonl", call))


def test_blanks_at_the_ends_of_turns_are_taken_off_and_counted(tmp_path):
    ends = [("", "\n"), (" ", ""), ("\n\n", " "), ("", ""), ("\u3000", "\r\n")]
    turns = [(role, f"{before}{content}{after}") for (role, content), (before, after) in zip(TURNS, ends, strict=True)]
    for row in (chat(turns), shared(turns)):
        found, report = read(written(tmp_path / "a.jsonl", row))
        assert said(found[0]) == TURNS and report.files[0]["left_out"] == {"blanks at the ends of a turn, taken off": 4}


def test_bom_crlf_blank_lines_and_a_long_conversation(tmp_path):
    line = json.dumps(chat(), ensure_ascii=False).encode()
    found, report = read(written(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n" + line))
    assert [c.place.rpartition(":")[2] for c in found] == ["1", "3", "4"] and all(said(c) == TURNS for c in found) and report.bad == 0
    long = [(role, "wörter " * 400 + str(i)) for i in range(900) for role in ("user", "assistant")]
    (found,), _ = read(written(tmp_path / "long.jsonl", chat(long)))
    assert (tmp_path / "long.jsonl").stat().st_size > 5e6 and said(found) == long


@pytest.mark.parametrize("broken,why", [(b'{"messages": [', "not JSON ("), (b'{"prompt": "a\0", "completion": "b"}', "a NUL byte"),
                                        (b'{"prompt": "a\\u0000", "completion": "b"}', "a NUL character"), (b'["a"]', "not an object but str"),
                                        (b'{"prompt": "caf\xe9", "completion": "b"}', "not UTF-8 (byte 15 of the line)")])
def test_one_broken_line_among_many_is_counted_and_many_refuse(tmp_path, broken, why):
    line = json.dumps(chat()).encode() + b"\n"
    name = written(tmp_path / "a.jsonl", line * 7000, broken + b"\n", line * 2999)
    found, report = read(name)
    assert len(found) == 9999 and (report.bad, report.lines) == (1, 10_000) and found[7000].place == f"{name}:7002"
    assert len(report.files[0]["bad_lines"]) == 1 and report.files[0]["bad_lines"][0].startswith(f"{name}:7001: {why}")
    message = refusal(written(tmp_path / "b.jsonl", line * 97, (broken + b"\n") * 3))
    assert f"b.jsonl:98: {why}" in message and "3 of 100 rows are broken, more than 1 %" in message


def test_files_that_are_none(tmp_path):
    assert "a.jsonl: no conversation in it" in refusal(written(tmp_path / "a.jsonl"))
    assert f"no file at {tmp_path}/none.jsonl; check the path" in refusal(f"{tmp_path}/none.jsonl")
    (tmp_path / "empty").mkdir()
    assert f"no file at {tmp_path}/empty" in refusal(f"{tmp_path}/empty")
    (tmp_path / "named.jsonl").mkdir()
    assert f"no file at {tmp_path}/named.jsonl" in refusal(f"{tmp_path}/named.jsonl")
    assert "'ecko' is no path here and no name in nbs/sources" in refusal("ecko")
    assert "o.json: an object with the fields train, test; say where the rows lie" in refusal(written(tmp_path / "o.json", {"train": [chat()], "test": []}))
    assert "x.json: neither a list nor an object of JSON" in refusal(written(tmp_path / "x.json", b"hello"))
    assert "cut.json: not JSON after 1 rows" in refusal(written(tmp_path / "cut.json", b"[" + json.dumps(chat()).encode() + b', {"mess'))
    assert "t.txt:1: no chat layout has the keys title, text" in refusal(written(tmp_path / "t.txt", b"A text."))
    unknown = refusal(written(tmp_path / "u.jsonl", chat(), {"id": 1, "question": "Why?", "answer": "So."}))
    assert "u.jsonl:2: no chat layout has the keys id, question, answer; rename them to messages," in unknown and "declare a mapping in a YAML" in unknown
    assert refusal(written(tmp_path / "k.jsonl", {f"k{i}" * 9: i for i in range(99)})).count("k") < 100


def mapping(tmp_path: Path, rows: list, fields: str, about: str = "text: '{talk.says}'\nid: '{nr}'") -> str:
    data = written(tmp_path / "talk.json", json.dumps(rows).encode())
    return written(tmp_path / "talk.yaml", f"domain: chat\nfiles: [{data}]\n{about}\n{fields}\n".encode())


def test_a_declared_dialogue(tmp_path):
    talk = [{"by": "GUEST", "says": "A room? "}, {"by": "DESK", "says": "Number <b>7."}, {"by": "GUEST", "says": "Thanks."}]
    declared = "turns: {list: talk, role: '{by}', text: '{says}', roles: {GUEST: user, DESK: assistant}}\nreplace: {<b>: ''}"
    found, report = read(mapping(tmp_path, [{"nr": "t1", "talk": talk}, {"nr": "t2", "talk": None}], declared))
    assert [(c.id, c.source, said(c), c.place) for c in found] == [
        ("talk:t1", "talk", [("user", "A room?"), ("assistant", "Number 7.")], f"{tmp_path}/talk.json:1")]
    assert report.files[0]["left_out"] == {UNANSWERED: 1, "an empty column": 1}
    cases = {"talk.json:1: the speaker 'COOK' is not among GUEST, DESK; add it to turns: roles, as in COOK: user": {"by": "COOK", "says": "Hot!"},
             "talk.json:1, turn 4: two user's turns in a row": {"by": "GUEST", "says": "Bye."},
             "talk.json:1, turn 4: an empty turn of the assistant": {"by": "DESK", "says": None},
             "talk.json: no column talk.says; columns found: nr, talk": {"by": "DESK"}}
    for message, turn in cases.items(): assert message in refusal(mapping(tmp_path, [{"nr": "t1", "talk": [*talk, turn]}], declared)), message
    rows = [{"nr": "t1", "talk": talk}]
    assert "talk.yaml: turns.roles: Field required" in refusal(mapping(tmp_path, rows, "turns: {list: talk, role: '{by}', text: '{says}'}"))
    assert "no column tlk" in refusal(mapping(tmp_path, rows, declared.replace("list: talk", "list: tlk")))


def test_several_instances_of_a_row_and_several_templates(tmp_path):
    rows = [{"nr": 1, "ask": "Sort.", "cases": [{"in": "b a", "out": "a b"}, {"in": "", "out": "Sort what?"}, {"in": "c", "out": ""}]}]
    fields = "rows: cases\nsft: [{user: \"{ask}\\n\\n{in?}\", assistant: '{out}'}%s]"
    found, report = read(mapping(tmp_path, rows, fields % "", "text: '{ask}'"))
    assert [(c.id, said(c)) for c in found] == [("talk:talk#1", [("user", "Sort.\n\nb a"), ("assistant", "a b")]),
                                                ("talk:talk#1.1", [("user", "Sort."), ("assistant", "Sort what?")])]
    assert report.files[0]["left_out"] == {"an empty column": 1}
    found, _ = read(mapping(tmp_path, rows, fields % ", {user: 'Back: {out}', assistant: '{in}'}", "text: '{ask}'\nid: '{nr}-{out?}'"))
    assert [c.id for c in found] == ["talk:1-a b.1", "talk:1-a b.2", "talk:1-Sort what?.1"] and said(found[1])[1] == ("assistant", "b a")


def test_written_whole_or_not_at_all_and_read_as_it_was(tmp_path):
    odd = [("user", "Say <myPT_user>\u2028\u0085\ufeff\r\n\t”“ 🪨"), ("assistant", " \u00a0x ")]
    read_once, _ = read(written(tmp_path / "a.jsonl", chat(), chat(odd) | {"doc_id": "b", "kind": "k", "source": "s"}))
    write_conversations(tmp_path / "new/copy.jsonl", iter(read_once))
    again, _ = read(str(tmp_path / "new/copy.jsonl"))
    assert [(c.id, c.messages, c.source, c.kind) for c in again] == [(c.id, c.messages, c.source, c.kind) for c in read_once]
    first = (tmp_path / "new/copy.jsonl").read_bytes()
    wrong = read_conversations([written(tmp_path / "b.jsonl", chat(), chat(TURNS[:2]))], load_settings(), ReadReport())
    with pytest.raises(UserError, match="b.jsonl:2"): write_conversations(tmp_path / "new/copy.jsonl", wrong)
    assert (tmp_path / "new/copy.jsonl").read_bytes() == first and [p.name for p in (tmp_path / "new").iterdir()] == ["copy.jsonl"]


def need(name: str) -> Path:
    if not (CHAT / name).is_file(): pytest.skip(f"{name} is not in {CHAT}")
    return CHAT / name


@pytest.mark.parametrize("source,file", [("self_instruct_seeds", "seed_tasks.jsonl"), ("self_instruct_user_oriented", "user_oriented_instructions.jsonl")])
def test_real_instructions(source, file):
    expected = []
    for line in need(file).read_text(encoding="utf-8").split("\n"):
        row = json.loads(line) if line else {"instances": []}
        for instance in row["instances"]:
            asked = row["instruction"].strip() + ("\n\n" + instance["input"].strip() if instance["input"].strip() else "")
            expected.append([("user", asked), ("assistant", instance["output"].strip())])
    found, report = read(source)
    assert [said(c) for c in found] == expected and len(expected) == {"seed_tasks.jsonl": 175, "user_oriented_instructions.jsonl": 252}[file]
    assert report.bad == 0 and report.files[0]["licence"] == "Apache-2.0" and {c.source for c in found} == {source}


def test_real_dialogues():
    rows = json.loads(need("sgd_dialogues_sample.json").read_text(encoding="utf-8"))
    roles = {"USER": "user", "SYSTEM": "assistant"}
    found, report = read("sgd_dialogues")
    assert [said(c) for c in found] == [[(roles[turn["speaker"]], turn["utterance"].strip()) for turn in row["turns"]] for row in rows]
    assert [c.id for c in found] == [f"sgd_dialogues:{row['dialogue_id']}" for row in rows]
    assert (len(found), sum(len(c.messages) for c in found), report.bad, report.files[0]["left_out"]) == (40, 768, 0, {})


def test_real_dialogues_through_a_preparation(tmp_path, monkeypatch):
    """What the preparation writes from dialogues is read here as the same conversations; no two splits share one."""
    rows = json.loads(need("sgd_dialogues_sample.json").read_text(encoding="utf-8"))
    made = Prepared(tmp_path, monkeypatch, sources=["sgd_dialogues"], name="chat")
    made.store.remove()
    splits = {split: read(str(tmp_path / f"data/sft/chat/{split}.jsonl"))[0] for split in ("train", "test") if made.lines("chat", split, "sft")}
    found = [c for split in splits.values() for c in split]
    assert len(found) > 10 and len({str(c.messages) for c in found}) == len(found)
    texts = {tuple(turn["utterance"] for turn in row["turns"]) for row in rows}
    assert {tuple(turn["content"] for turn in c.messages) for c in found} <= texts
    manifest = json.loads((tmp_path / "data/sft/chat/manifest.json").read_text())
    assert manifest["templates"]["sgd_dialogues"][0]["roles"] == {"USER": "user", "SYSTEM": "assistant"}


def test_dialogues_with_one_last_question_are_different_examples(tmp_path, monkeypatch):
    """Test keeps its questions to itself; of a dialogue that is all that leads to the last answer, not its last turn alone."""
    rows = [{"nr": i, "talk": [{"by": by, "says": "That would be all." if turn == 2 else prose(f"{i} {turn}", 3)} for turn, by in enumerate("GDGD")]}
            for i in range(60)]
    name = mapping(tmp_path, rows, "turns: {list: talk, role: '{by}', text: '{says}', roles: {G: user, D: assistant}}")
    made = Prepared(tmp_path / "made", monkeypatch, sources=[name])
    made.store.remove()
    counts = {split: (len(made.lines("chat", split)), len(made.lines("chat", split, "sft"))) for split in ("train", "validation", "test")}
    assert all(documents == examples > 0 for documents, examples in counts.values()), counts
