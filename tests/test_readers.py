"""What people have on disk, read by `prepare` and by a training alike: only text reaches a corpus, and what is no text is told in one line."""
import bz2
import gzip
import io
import json
import lzma
import math
import zipfile
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from paleotrain.chat.conversations import read_conversations
from paleotrain.core.settings import UserError, load_settings
from paleotrain.data.readers import ReadReport, expand, read_documents
from paleotrain.data.sources import plain_source, read_records, read_source, source_files

SETTINGS = load_settings()
BIG = 2**128 - 9 # no 64 bits hold it, and no float tells it from its neighbours
CHAT = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "Shale."}]}
SAID = [["What is it?", "Shale."]]


class Reading:
    """Files in a folder, and what is read from them."""
    def __init__(self, folder: Path): self.folder, self.report = folder, ReadReport()

    def write(self, name: str, data) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, pyarrow.Table): pyarrow.parquet.write_table(data, path)
        else: path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    def records(self, name: str, data, yaml: str = "") -> list:
        """As `prepare` reads them, by a source file where one is given."""
        path, self.report = self.write(name, data), ReadReport()
        if yaml: self.write("s.yaml", f"name: s\ndomain: own\nfiles: ['{path}']\n{yaml}\n")
        source = read_source(str(self.folder / "s.yaml"), SETTINGS) if yaml else plain_source(str(path), "own", SETTINGS)
        return list(read_records(source, source_files(source, SETTINGS), self.report))

    def texts(self, *given, **named) -> list[str]: return [record.raw_text for record in self.records(*given, **named)]

    def documents(self, name: str, data) -> list:
        """As a training reads them."""
        return list(read_documents([self.write(name, data)], ReadReport()))

    def chats(self, name: str, data) -> list[list[str]]:
        found = read_conversations([str(self.write(name, data))], SETTINGS, ReadReport())
        return [[message["content"] for message in chat.messages] for chat in found]

    def refusal(self, read, *given) -> str:
        with pytest.raises(UserError) as caught: read(*given)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(f"{self.folder}/", "")


@pytest.fixture
def reading(tmp_path) -> Reading: return Reading(tmp_path)


def table(**columns) -> pyarrow.Table: return pyarrow.table(columns)


def days(*numbers: int) -> pyarrow.Array:
    """Dates by their days since 1970, also those that Python has not."""
    return pyarrow.array(numbers, pyarrow.int32()).cast(pyarrow.date32())


@pytest.mark.parametrize("ids", [
    [str(BIG + i) for i in range(3)], [f"10.1123456789012345{60 + i}" for i in range(3)], ["3.1", "3.10", "3.100"], ["1e400", "2e400", "1e401"],
    ["9" * 5000, "9" * 4999 + "8", "8" * 5000], ["9007199254740993", "9007199254740992", "9007199254740994"]], ids=lambda ids: ids[0][:12])
def test_numbers_of_any_length_stay_different_ids_in_every_reader(reading, ids):
    lines = [f'{{"doc_id": {number}, "pub_id": {number}, "text": "Bed."}}' for number in ids]
    found = reading.records("a.jsonl", "\n".join(lines))
    assert len({r.group for r in found}) == len({r.doc_id for r in found}) == 3
    assert [r.group for r in reading.records("a.json", f"[{', '.join(lines)}]")] == [r.group for r in found]
    assert [f"own/{d.group}" for d in reading.documents("a.jsonl", "\n".join(lines))] == [r.group for r in found]


def test_long_numbers_of_parquet_stay_different_ids(reading):
    big = pyarrow.array([2**64 - 1, 2**64 - 2], pyarrow.uint64())
    fine = pyarrow.array([Decimal("1.00000000000000000001"), Decimal("1.00000000000000000002")], pyarrow.decimal128(38, 20))
    found = reading.records("a.parquet", table(text=["Bed.", "Bed."], doc_id=big, pub_id=fine))
    assert [r.doc_id for r in found] == [f"a:{2**64 - 1}", f"a:{2**64 - 2}"] and len({r.group for r in found}) == 2


@pytest.mark.parametrize("value, found, fix", [
    ({"en": "A", "fr": "B"}, "an object with the fields en, fr", 'write in a YAML with domain, files and text: "{text.en}"'),
    ([{"t": "A"}], "an object with the fields t", 'write in a YAML with domain, files and text: "{text.t}"'),
    (5, "a number, not a text", 'write in a YAML with domain, files and text: "{text}"'), (0.5, "a number, not a text", "write in a YAML"),
    (True, "true, not a text", "write a word"), (["A", False], "false, not a text", "write a word"), (math.inf, "infinite", "mend")])
def test_a_value_that_is_no_text_is_a_bad_row_in_every_reader(reading, value, found, fix):
    line = json.dumps({"text": value, "n": 1})
    for name, data in ("a.jsonl", line), ("a.json", f"[{line}]"), ("a.json", line):
        assert reading.refusal(reading.records, name, data).startswith(f"{name}:1: text is {found}: 1 of 1 rows are broken, more than 1 %; {fix}")
    said = reading.refusal(reading.documents, "a.jsonl", line)
    assert said.startswith(f"a.jsonl:1: text is {found}: 1 of 1 lines are broken") and fix in said


@pytest.mark.parametrize("field", ["doc_id", "pub_id", "title", "licence"])
def test_an_id_or_title_that_is_no_text_is_a_bad_row_too(reading, field):
    for value in ({"en": "A"}, True, [{"a": 1}]):
        line = json.dumps({"text": "Bed.", field: value})
        for read in (reading.records, reading.documents): assert f"a.jsonl:1: {field} is " in reading.refusal(read, "a.jsonl", line)


def test_one_row_with_an_object_among_many_is_counted_and_named(reading):
    lines = [json.dumps({"text": {"en": "A"} if i == 7 else f"Bed {i}."}) for i in range(200)]
    assert len(reading.texts("a.jsonl", "\n".join(lines))) == 199 and reading.report.bad == 1
    assert reading.report.files[0]["bad_lines"][0].endswith("a.jsonl:8: text is an object with the fields en")


def test_bytes_are_text_where_they_are_utf8(reading):
    assert reading.texts("a.parquet", table(text=pyarrow.array(["Café.".encode()], pyarrow.binary()))) == ["Café."]
    for kind in (pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary(4)):
        said = reading.refusal(reading.records, "a.parquet", table(text=pyarrow.array([b"\x89PNG"], kind)))
        assert "text is bytes that are not UTF-8" in said


def test_objects_of_parquet_are_refused_and_their_fields_are_read(reading):
    mapped = pyarrow.array([[("en", "Bed.")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    nested, named = table(text=[{"en": "Bed.", "deep": {"er": "Low."}}]), table(text=mapped)
    for one in (nested, named):
        assert 'and text: "{text.en}"' in reading.refusal(reading.records, "a.parquet", one)
        assert reading.texts("a.parquet", one, yaml="text: '{text.en}'") == ["Bed."]
    assert reading.texts("a.parquet", nested, yaml="text: '{text.deep.er}'") == ["Low."]


def test_templates_take_numbers_and_dates_and_nothing_else(reading):
    row = json.dumps({"n": BIG, "part": 0.5, "en": "Bed.", "ok": True, "o": {"a": 1}})
    assert reading.texts("a.jsonl", row, yaml="text: '{en} {n} {part}'") == [f"Bed. {BIG} 0.5"]
    for hole, found in {"{ok}": "ok is true", "{ok?}": "ok is true", "{o}": "o is an object", "{o?}": "o is an object"}.items():
        assert f"a.jsonl:1: {found}" in reading.refusal(reading.records, "a.jsonl", row, f"text: '{{en}} {hole}'")
    assert "write {o.a} in its place" in reading.refusal(reading.records, "a.jsonl", row, "text: '{en}'\nid: '{o}'")
    dated = table(text=["Bed."], day=[date(1909, 8, 30)], span=pyarrow.array([5], pyarrow.duration("s")))
    assert [r.doc_id for r in reading.records("a.parquet", dated, yaml="text: '{text}'\nid: '{day}'")] == ["s:1909-08-30"]
    assert "span is a timedelta, not a text" in reading.refusal(reading.records, "a.parquet", dated, "text: '{text} {span}'")


def test_an_object_in_a_chat_is_refused(reading):
    row = {"instruction": "Do it.", "input": {"a": 1}, "output": "Done."}
    assert "is an object with the fields a" in reading.refusal(reading.chats, "a.jsonl", json.dumps(row))
    example = "text: '{a}'\nsft: [{user: '{q}', assistant: '{a}'}]"
    said = reading.refusal(reading.records, "b.jsonl", json.dumps({"q": {"en": "A?"}, "a": "B."}), example)
    assert said.startswith("b.jsonl:1: q is an object with the fields en: ") and said.endswith("write {q.en} in its place")


def test_true_and_false_choose_rows_and_whole_decimals_choose_answers(reading):
    rows = "\n".join(json.dumps({"q": f"Q{i}?", "ok": i == 1, "right": float(i), "c": ["mud", "ash"]}) for i in range(2))
    yaml = "text: '{q}'\nsft: [{user: '{q}', assistant: 'Yes.', when: {ok: true}}, {user: '{q}', assistant: '{right|chosen:c}'}]"
    found = reading.records("a.jsonl", rows, yaml=yaml)
    assert [[chat[1]["content"] for chat in r.sft] for r in found] == [["A. mud"], ["Yes.", "B. ash"]]


def test_a_publication_that_is_nan_is_not_given(reading):
    nan = math.nan
    one = table(text=["A.", "B.", "C."], pub_id=[1.0, nan, nan], doc_id=[nan, 7.0, nan], title=[nan, nan, nan])
    found = reading.records("a.parquet", one)
    assert [(r.group, r.doc_id, r.title) for r in found] == [("own/1.0", "a:a#1", ""), ("own/7.0", "a:7.0", ""), ("own/a#3", "a:a#3", "")]
    lines = '{"text": "A.", "pub_id": NaN, "title": NaN}\n{"text": "B.", "pub_id": NaN}'
    assert [r.group for r in reading.records("b.jsonl", lines)] == ["own/b#1", "own/b#2"]
    assert len({d.group for d in reading.documents("b.jsonl", lines)}) == 2
    blanks = '{"text": "A.", "pub_id": " ", "doc_id": "  "}\n{"text": "B.", "pub_id": " ", "doc_id": "\\t"}'
    assert [r.doc_id for r in reading.records("b.jsonl", blanks)] == ["b:b#1", "b:b#2"]
    assert len({d.group for d in reading.documents("b.jsonl", blanks)}) == len({r.group for r in reading.records("b.jsonl", blanks)}) == 2
    assert "no document in it: 1 x no text" in reading.refusal(reading.records, "c.jsonl", '{"text": NaN}')
    assert "no text in fields" in reading.refusal(reading.documents, "c.jsonl", '{"text": NaN}')


@pytest.mark.parametrize("field", ["NaN", "Infinity", "-Infinity", '"\\ud83d"', "1e999", "true", '{"a": 1, "a": 2}', "[[{}]]", "9" * 5000, '"\\u0000"'],
                         ids=lambda field: ascii(field[:9]))
def test_a_field_that_nobody_reads_does_no_harm(reading, field):
    line = f'{{"text": "Bed.", "odd": {field}}}'
    assert reading.texts("a.jsonl", line) == reading.texts("a.json", f"[{line}]") == [d.text for d in reading.documents("a.jsonl", line)] == ["Bed."]
    assert reading.chats("c.jsonl", f'{json.dumps(CHAT)[:-1]}, "odd": {field}}}') == SAID


def test_of_two_fields_with_one_name_none_is_read(reading):
    twice = pyarrow.table([pyarrow.array(["A"])] * 2, names=["text"] * 2)
    for name, data in (("a.jsonl", '{"text": "A", "text": "B"}'), ("a.json", '[{"text": "A", "text": "B"}]'), ("a.json", '{"text": "A",\n"text": "B"}'),
                       ("a.csv", "text,text\nA,B\n"), ("a.parquet", twice)):
        assert "text is the name of two fields" in reading.refusal(reading.records, name, data)
    assert "text is the name of two fields" in reading.refusal(reading.documents, "a.jsonl", '{"text": "A", "text": "B"}')
    assert "m.t is the name of two fields" in reading.refusal(reading.records, "a.jsonl", '{"m": {"t": "A", "t": "B"}}', "text: '{m.t}'")
    assert "m.t is the name of two fields" in reading.refusal(reading.records, "a.jsonl", '{"m": {"t": "A"}, "m": {"t": "B"}}', "text: '{m.t}'")
    assert "doc_id is the name of two fields" in reading.refusal(reading.records, "a.csv", "text,doc_id,doc_id\nA,1,2\n")
    paragraphs = "<a><doc><p>One.</p><p>Two.</p></doc></a>" # of a list of elements each is read
    assert reading.texts("a.xml", paragraphs, yaml="rows: doc\ntext: '{p}'") == ["One.\n\nTwo."]
    assert reading.texts("a.csv", ",text,,Text\n1,A,2,B\n") == ["A"] # two columns without a name, and one with a capital
    assert reading.texts("a.parquet", pyarrow.table([pyarrow.array(["A"])] * 3, names=["text", "x", "x"])) == ["A"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_every_text_format_is_read_in_the_encoding_that_is_declared(reading, encoding):
    rows = ["Bed 1 \u0a0a 😀 café.", "三叶虫, bed 2."] # U+0A0A has the byte of a line feed twice
    files = {"a.tsv": "id\ttext\r\n" + "".join(f"{i}\t{text}\r\n" for i, text in enumerate(rows)),
             "a.csv": "id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(rows)),
             "a.jsonl": "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in rows),
             "a.json": json.dumps([{"text": text} for text in rows]), "a.txt": rows[0]}
    for name, text in files.items():
        wanted, data, yaml = rows if name != "a.txt" else rows[:1], text.encode(encoding), f"encoding: {encoding}"
        assert reading.texts(name, data, yaml=yaml) == reading.texts(f"{name}.gz", gzip.compress(data), yaml=yaml) == wanted, name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_encoding_that_is_not_declared_is_told_in_every_format(reading, encoding):
    texts = {"a.tsv": "id\ttext\n1\tBed.\n", "a.csv": "id,text\n1,三叶虫是一类已经灭绝的海洋节肢动物。\n", "a.jsonl": '{"text": "Bed."}',
             "a.json": '[{"text": "Bed."}]', "a.txt": "Bed by bed."}
    told = f"{encoding[:6].upper()}, by its first bytes; declare encoding: {encoding} in a source file, or save it as UTF-8, as in: iconv -f "
    for name, text in texts.items(): assert reading.refusal(reading.records, name, text.encode(encoding)).startswith(f"{name}: {told}")
    for name in ("a.jsonl", "a.txt"):
        assert reading.refusal(reading.documents, name, texts[name].encode(encoding)).startswith(f"{name}: {told}")


def test_an_encoding_that_cannot_be_right_is_refused(reading):
    plain, wide = "id,text\n1,Bed.\n", "id,text\n1,Bed.\n".encode("utf-16-le")
    assert "UTF-8, by its first bytes, where utf-16 is declared" in reading.refusal(reading.records, "a.csv", plain, "encoding: utf-16")
    assert "UTF-16, by its first bytes, where iso8859-1 is declared" in reading.refusal(reading.records, "a.csv", wide, "encoding: latin-1")
    assert "no encoding of that name" in reading.refusal(reading.records, "a.csv", plain, "encoding: rot13")
    assert "a.csv:3: not UTF-16-LE" in reading.refusal(reading.records, "a.csv", wide + b"2\0,\0\x00\xd8\n\0", "encoding: utf-16-le")
    assert "a.jsonl:2: a NUL byte" in reading.refusal(reading.records, "a.jsonl", b'{"text": "Bed."}\n{"text": "B\0d."}')


def test_json_of_every_shape(reading):
    rows = [{"id": i, "text": f"Bed {i}."} for i in range(2)]
    both, lines = [row["text"] for row in rows], list(map(json.dumps, rows))
    assert reading.texts("a.json", "\n".join(lines)) == reading.texts("a.json", "\r\n\r\n".join(lines)) == both # lines
    assert reading.texts("a.json", lines[0]) == reading.texts("a.json", json.dumps(rows[0], indent=2)) == both[:1] # the row itself
    assert reading.texts("a.json", json.dumps({"doc": {"body": "Bed."}}, indent=1), yaml="text: '{doc.body}'") == ["Bed."]
    kinds = "text: ['{q} {a}', '{term}: {means}']\nsft: [{user: '{q}', assistant: '{a}'}]"
    assert reading.refusal(reading.records, "a.json", '{"term": "ash", "means": "dust"}', kinds).startswith("s.yaml: no row has a, q")
    assert reading.texts("a.json", '{"term": "ash", "means": "dust", "q": "Q?", "a": "A."}', yaml=kinds) == ["Q? A.", "ash: dust"]
    assert reading.texts("a.json", json.dumps(both)) == reading.texts("a.json", json.dumps(dict(enumerate(both))), yaml="rows: '*'") == both # texts
    many = {f"field {i}": i for i in range(1200)} | {"rows": rows}
    assert reading.texts("a.json", json.dumps(many), yaml="rows: rows") == both
    assert len(reading.texts("a.json", "\n".join([*lines * 60, '{"text": "Be']))) == 120 and reading.report.bad == 1 # one broken line of lines
    assert "say where the rows lie" in reading.refusal(reading.records, "a.json", json.dumps({"version": 1, "rows": rows}))
    for by_column in ({"id": [1, 2], "text": both}, {"text": dict(enumerate(both))}):
        assert "columns, each with the values of all rows" in reading.refusal(reading.records, "a.json", json.dumps(by_column))
    assert "more follows the first object" in reading.refusal(reading.records, "a.json", "\n".join(json.dumps(row, indent=1) for row in rows))
    assert "more follows the first list" in reading.refusal(reading.records, "a.json", json.dumps(rows) * 2)
    assert "name it .json, or declare format: json" in reading.refusal(reading.records, "a.jsonl", json.dumps(rows, indent=1))


def test_chats_in_json_of_every_shape(reading):
    for data in (json.dumps(CHAT), json.dumps(CHAT, indent=1), json.dumps([CHAT]), json.dumps({"instruction": SAID[0][0], "output": SAID[0][1]})):
        assert reading.chats("a.json", data) == SAID
    lines = f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}\n"
    assert reading.chats("a.json", lines) == reading.chats("a.jsonl.gz", gzip.compress(lines.encode())) == SAID * 2


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True)}
LINE = '{"text": "Bed."}'


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_is_what_it_is_unpacked(reading, suffix):
    plain = {"a.jsonl": LINE, "a.ndjson": LINE, "a.json": f"[{LINE}]", "a.csv": "text\nBed.\n", "a.tsv": "n\ttext\n1\tBed.\n", "a.txt": "Bed.",
             "a.html": "<html><body><p>Bed.</p></body></html>", "a.parquet": table(text=["Bed."])}
    for name, data in plain.items():
        found = [(r.doc_id, r.raw_text) for r in reading.records(name, data)]
        packed = PACK[suffix]((reading.folder / name).read_bytes())
        assert [(r.doc_id, r.raw_text) for r in reading.records(f"{name}.{suffix}", packed)] == found and found[0][1] == "Bed.", name
        if not name.endswith(("json", "sv", "html", "parquet")) or name == "a.ndjson":
            again = read_documents(expand(f"{reading.folder}/{name}.{suffix}", SETTINGS), ReadReport())
            assert [d.doc_id for d in again] == [d.doc_id for d in reading.documents(name, data)]
    assert reading.texts("b.jsonl", PACK[suffix](LINE.encode())) == ["Bed."] # packed, and not called so


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_that_breaks_off_or_does_not_say_what_it_holds(reading, suffix):
    many = PACK[suffix]("\n".join(json.dumps({"text": f"Bed {i * 7919 % 10007}."}) for i in range(3000)).encode())
    for read in (reading.records, reading.documents): assert "cannot be unpacked to its end" in reading.refusal(read, f"c.jsonl.{suffix}", many[:-20])
    assert "nothing tells what is packed in it" in reading.refusal(reading.records, f"d.{suffix}", PACK[suffix](LINE.encode()))
    assert reading.texts(f"d.{suffix}", PACK[suffix](LINE.encode()), yaml="format: jsonl") == ["Bed."]


def test_a_long_text_is_cut_alike_however_it_is_packed_and_encoded(reading):
    text = "\n\n".join(f"Paragraph {i} tells of the mud." for i in range(1000))
    found = [d.text for d in reading.documents("a.txt", text)]
    assert len(found) > 1 and [d.text for d in reading.documents("b.txt.gz", gzip.compress(text.encode()))] == found
    assert reading.texts("a.txt.xz", lzma.compress(text.encode("utf-16")), yaml="encoding: utf-16") == reading.texts("a.txt", text)


def test_a_packed_dump_of_a_wiki_is_told_by_its_content(reading):
    page = "<page><title>T</title><ns>0</ns><id>1</id><revision><id>1</id><timestamp>2020-01-01T00:00:00Z</timestamp><text>Mud.</text></revision></page>"
    space = 'xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en"'
    dump = f"<mediawiki {space}><siteinfo></siteinfo>{page}</mediawiki>".encode()
    for name in ("a.xml", "a.xml.bz2", "a.bz2", "a.xml.gz", "a.xz"):
        assert reading.texts(name, PACK.get(name.rpartition(".")[2], bytes)(dump)) == ["Mud."]


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names: file.writestr(name, "text")
    return out.getvalue()


@pytest.mark.parametrize("data, said", [
    (archive("xl/workbook.xml"), "a zip archive, as .xlsx and .docx are"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 9, "an old Office file, as .xls and .doc are"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS and not the file itself"), (b"%PDF-1.7\n", "a PDF"),
    (b"\n <!DOCTYPE html>\n<p>404", "a page of HTML"), (b"\xef\xbb\xbf<HTML lang='en'>", "a page of HTML"), (b"<?xml version='1.0'?><Error/>", "XML")],
    ids=["zip", "xls", "lfs", "pdf", "html", "bom", "xml"])
def test_a_file_of_another_kind_is_told_by_its_first_bytes(reading, data, said):
    for suffix in ("csv", "tsv", "jsonl", "json", "parquet", "txt"):
        assert reading.refusal(reading.records, f"a.{suffix}", data).startswith(f"a.{suffix}: {said}, by its first bytes; ")
    for suffix in ("jsonl", "txt"): assert said in reading.refusal(reading.documents, f"a.{suffix}", data)


def test_quotation_marks_of_a_table(reading):
    slash = 'id,text\n1,"He said \\"No\\", and left"\n2,"A \\\\ B"\n'
    assert reading.texts("a.csv", slash, yaml="escape: '\\'") == ['He said "No", and left', "A \\ B"]
    assert "declare escape: '\\' where a backslash" in reading.refusal(reading.records, "a.csv", slash)
    for data in ('id,text\n1,"Never closed\n2,b\n', '"id,text\n1,b\n'):
        assert "declare quote: false" in reading.refusal(reading.records, "a.csv", data)
    assert reading.texts("a.tsv", 'id\ttext\n1\t"Never closed\n2\tb "c"\n', yaml="quote: no") == ['"Never closed', 'b "c"']


def test_a_title_above_a_table_is_told(reading):
    for title, columns in ("Finds of 1909", 1), ("Finds,1909", 2):
        said = reading.refusal(reading.records, "a.csv", f"{title}\nid,name,text\n1,a,Bed.\n")
        named = f"the first line names the columns, and it is '{title.replace(',', ', ')}': take out a title"
        assert said.startswith(f"a.csv:2: 3 columns instead of {columns}: 2 of 2 rows are broken") and named in said
    for bare in ("Finds of 1909\n", "id,text\n", "<div>Page</div>\n\n"):
        assert "no document in it: 1 x no row below the first line, '" in reading.refusal(reading.records, "a.csv", bare)


def test_a_date_that_python_has_not_harms_nobody(reading):
    odd = days(-800_000, 0)
    assert reading.texts("a.parquet", table(text=["A.", "B."], day=odd)) == ["A.", "B."]
    deep = table(doc=pyarrow.StructArray.from_arrays([odd, pyarrow.array(["A.", "B."])], ["day", "body"]))
    assert reading.texts("a.parquet", deep, yaml="text: '{doc.body}'") == ["A.", "B."]
    assert reading.chats("c.parquet", table(messages=[CHAT["messages"]] * 2, day=odd)) == SAID * 2
    roles, texts = pyarrow.array(["user", "assistant"]), pyarrow.array(SAID[0])
    turns = pyarrow.ListArray.from_arrays([0, 2], pyarrow.StructArray.from_arrays([roles, texts, odd], ["role", "content", "day"]))
    assert reading.chats("d.parquet", table(messages=turns)) == SAID
    said = reading.refusal(reading.records, "a.parquet", table(text=["A.", "B."], day=odd), "text: '{text} {day}'")
    assert "a.parquet:1: day is a value of the type date32" in said


def test_only_the_columns_that_are_named_are_read(reading, monkeypatch):
    asked, real = [], pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches",
                        lambda self, columns=None, **rest: asked.append(columns) or real(self, columns=columns, **rest))
    wide = table(text=["A."], image=[b"\xff" * 99], meta=[{"id": 1, "x": 2}], title=["T"], **{"a.b": ["x"]})
    reading.records("a.parquet", wide)
    reading.records("a.parquet", wide, yaml="text: '{text} {a.b} {meta.x?}'\nid: '{meta.id}'")
    assert asked == [["text", "title"], ["text", "meta", "title", "a.b"]]
    said = reading.refusal(reading.records, "b.parquet", table(image=[b"a"], body=["Bed."])) # without a text all are read, to be named
    assert "no column text; columns found: image, body; write in a YAML with domain, files and text: \"{body}\"" in said


def test_names_with_brackets_blanks_and_semicolons_are_files(reading):
    for name in ("papers [2021]/a.txt", "papers [2021]/b; c.jsonl", "papers [2021]/[x].txt", "p{1}/x y.txt"): reading.write(name, LINE)
    wanted = {"papers [2021]/*.txt": ["[x].txt", "a.txt"], "papers [2021]": ["[x].txt", "a.txt", "b; c.jsonl"], "papers [2021]/b; c.jsonl": ["b; c.jsonl"],
              "papers [2021]/[x].txt": ["[x].txt"], "p*/[x].txt": ["[x].txt"], "p{1}": ["x y.txt"], "[p]apers */[a-c].txt": ["a.txt"]}
    for name, files in wanted.items():
        assert [path.name for path in expand(f"{reading.folder}/{name}", SETTINGS)] == files, name
        assert [path.name for path in source_files(plain_source(f"{reading.folder}/{name}", "own", SETTINGS), SETTINGS)] == files, name
    many = [str(reading.write(f"many/{'n' * 200}{i}.txt", "Bed.")) for i in range(100)] # together too long for any name
    assert len(expand(many, SETTINGS)) == len(expand(";".join(many), SETTINGS)) == 100
    with pytest.raises(UserError, match="no such file"): expand([f"{many[0]}.gone", *many], SETTINGS)
    both = f"{reading.folder}/papers [2021]/b; c.jsonl; {reading.folder}/p{{1}}"
    for names in (both, [part.strip() for part in both.split(";")]): assert [path.name for path in expand(names, SETTINGS)] == ["b; c.jsonl", "x y.txt"]


def test_plain_words_of_a_source_file_are_text(reading):
    yaml = "text: '{q}'\nlicence: 1.0\nrow_title: 2001-02-03\ngroup: no\nsft: [{user: '{q}', assistant: '{a}', when: {a: no, year: 1909}}]"
    (found,) = reading.records("a.jsonl", json.dumps({"q": "Old?", "a": "no", "year": 1909}), yaml=yaml)
    assert (found.licence, found.title, found.group, found.sft[0][1]["content"]) == ("1.0", "2001-02-03", "s/no", "no")
    turns = "text: '{t.s}'\nturns: {list: t, role: '{by}', text: '{s}', roles: {yes: user, no: assistant}}"
    (found,) = reading.records("a.jsonl", json.dumps({"t": [{"by": "yes", "s": "A?"}, {"by": "no", "s": "B."}]}), yaml=turns)
    assert [message["role"] for message in found.sft[0]] == ["user", "assistant"]


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "NULL", "None", "<NA>", "NaT", "\\N", " "])
def test_a_programs_word_for_nothing_names_no_publication(reading, word):
    rows = f"pub_id,doc_id,text\n{word},{word},A.\n{word},{word},B.\nNatural,NAN-1,C.\n"
    wanted = [("own/a#2", "a:a#2"), ("own/a#3", "a:a#3"), ("own/Natural", "a:NAN-1")]
    assert [(r.group, r.doc_id) for r in reading.records("a.csv", rows)] == wanted
    lines = "\n".join(json.dumps({"pub_id": word, "doc_id": word, "text": text}) for text in "AB")
    assert [d.doc_id for d in reading.documents("a.jsonl", lines)] == ["a#1", "a#2"] and len({d.group for d in reading.documents("a.jsonl", lines)}) == 2


@pytest.mark.parametrize("empty", ["null", "NaN", '""', '" "', '"nan"', "[]"])
def test_a_template_that_gives_no_id_or_publication_leaves_each_row_its_own(reading, empty):
    lines = "\n".join(f'{{"key": {empty}, "text": "{text}."}}' for text in "AB")
    found = reading.records("a.jsonl", lines, "text: '{text}'\nid: '{key}'\ngroup: '{key}'")
    assert [(r.doc_id, r.group) for r in found] == [("s:a#1", "s/a#1"), ("s:a#2", "s/a#2")]


def test_files_of_one_name_in_several_folders_have_documents_of_their_own(reading):
    for name in ("x/2019/part-0.jsonl", "x/2020/part-0.jsonl", "x/a.jsonl", "x/b.csv", "x/b.json"):
        reading.write(name, {"csv": "text\nBed.\n", "json": f"[{LINE}]"}.get(name.rpartition(".")[2], LINE))
    source = plain_source(f"{reading.folder}/x", "own", SETTINGS)
    found = list(read_records(source, source_files(source, SETTINGS), ReadReport()))
    assert [r.doc_id for r in found] == ["x:2019/part-0.jsonl#1", "x:2020/part-0.jsonl#1", "x:a#1", "x:b.csv#2", "x:b.json#1"]
    assert len({r.group for r in found}) == 5


@pytest.mark.parametrize("declared, written, text", [
    ("gb2312", "gbk", "镕基"), ("gbk", "gb18030", "𠮷"), ("shift_jis", "cp932", "①髙～"), ("euc-kr", "cp949", "똠방각하"), ("big5", "cp950", "裏恒"),
    ("tis-620", "cp874", "…ก")])
def test_a_declared_encoding_is_read_with_the_characters_that_people_write_in_it(reading, declared, written, text):
    for name, data in (("a.csv", f"text\n{text}\n"), ("a.jsonl", json.dumps({"text": text}, ensure_ascii=False)), ("a.txt", text)):
        assert reading.texts(name, data.encode(written), yaml=f"encoding: {declared}") == [text]


def test_what_is_not_in_a_declared_encoding_is_told_without_a_guess(reading):
    for name in ("a.csv", "a.txt"):
        said = reading.refusal(reading.records, name, "text\nBed, café.\n".encode("cp1252"), "encoding: ascii")
        assert "not ASCII" in said and "LATIN1" not in said and "mend" not in said and "declare" in said


def test_an_escape_stands_before_a_quotation_mark_and_before_nothing_else(reading):
    data = 'id,text\n1,"the \\nabla of \\"mud\\", C:\\\\new"\n2,\\N\n'
    assert reading.texts("a.csv", data, yaml="escape: '\\'") == ['the \\nabla of "mud", C:\\new', "\\N"]
    assert reading.texts("a.csv", "id,text\n1,a\\, b\\t\n", yaml="escape: '\\'\nquote: no") == ["a, b\\t"]


def test_rows_that_two_quotation_marks_of_a_tsv_swallow_are_told(reading):
    data = 'id\ttext\n1\t"Mud\n2\tshale"\n3\tash\n'
    assert "a.tsv:2: several rows between two quotation marks: 2 of 3 rows are broken, more than 1 %; declare quote: false" in \
        reading.refusal(reading.records, "a.tsv", data)
    assert reading.texts("a.tsv", data, yaml="quote: no") == ['"Mud', 'shale"', "ash"]
    assert reading.texts("a.tsv", 'id\ttext\n1\t"Mud\nand shale"\n') == ["Mud\nand shale"]


def test_a_first_line_that_names_no_column_of_a_csv_is_told(reading):
    for sign in ",;": assert f'declare delimiter: "{sign}"' in reading.refusal(reading.records, "a.csv", f"sep={sign}\nid{sign}text\n1{sign}Bed.\n")
    assert 'declare delimiter: ";"' in reading.refusal(reading.records, "a.csv", "id;text;found, where\n1;Bed.;b\n")
    assert reading.texts("a.csv", 'id,text,"a;b;c;d"\n1,Bed.,x\n') == ["Bed."]


@pytest.mark.parametrize("data, said", [
    (gzip.compress(b"a"), "an archive, or packed twice"), (b"7z\xbc\xaf\x27\x1c", "an archive"), (b"a" * 257 + b"ustar\0", "an archive"),
    (b"\x89PNG\r\n", "a picture"), (b"SQLite format 3\0", "a database of SQLite")], ids=["gz", "7z", "tar", "png", "sqlite"])
def test_what_lies_in_a_packed_file_is_told_by_its_first_bytes_too(reading, data, said):
    for name in ("a.jsonl.gz", "a.csv.gz", "a.txt.gz"): assert f"{name}: {said}" in reading.refusal(reading.records, name, gzip.compress(data))


def test_json_under_another_name_is_not_read_as_text(reading):
    for name in ("a.txt", "a.csv", "a.tsv", "a.parquet", "a.html"):
        for data in (LINE, f"[\n {LINE}]"): assert reading.refusal(reading.records, name, data).startswith(f"{name}: JSON, by its first bytes; name it .json")
    assert "a.txt: JSON" in reading.refusal(reading.documents, "a.txt", LINE)
    assert reading.texts("a.txt", '{curly} and "quoted": so it goes') and reading.texts("b.txt", '["Mud", he said]')


def test_rows_beside_the_text_of_an_object_are_counted_and_texts_at_the_end_of_a_path_are_read(reading):
    whole = {"text": "About.", "data": [{"text": "A."}, {"text": "B."}], "tags": ["x"], "refs": [{"url": "u"}]}
    assert reading.texts("a.json", json.dumps(whole)) == ["About."]
    assert reading.report.files[0]["left_out"] == {"a row in the field data, not read (rows: data would read it)": 2}
    assert reading.texts("a.json", json.dumps(whole), yaml="rows: data") == ["A.", "B."]
    assert reading.texts("a.json", json.dumps(whole), yaml="text: '{text} {data.text}'") == ["About. A.\n\nB."] and not reading.report.files[0]["left_out"]
    for name in ("a.json", "a.jsonl"): assert reading.texts(name, '{"a": {"b": ["A.", "B."]}}', yaml="rows: a.b\ntext: '{text}'") == ["A.", "B."]


def test_a_zst_of_several_frames_is_read_where_the_first_is_to_be_skipped(reading):
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert reading.texts("a.jsonl.zst", skipped + PACK["zst"](f"{LINE}\n".encode()) + skipped + PACK["zst"](LINE.encode())) == ["Bed.", "Bed."]


def test_a_blank_text_does_not_stand_before_another(reading):
    line = '{"norm_text": " ", "raw_text": "\\n", "text": "Bed."}'
    assert reading.texts("a.jsonl", line) == [d.text for d in reading.documents("a.jsonl", line)] == ["Bed."]


def test_a_field_of_a_source_file_that_is_there_twice_is_refused(reading):
    for yaml in ("text: '{q}'\ntext: '{text}'", "text: '{text}'\nreplace: {a: b, a: c}"):
        assert "not YAML (the field " in reading.refusal(reading.records, "a.csv", "q,text\nA,B\n", yaml)
