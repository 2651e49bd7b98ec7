"""What people have: pages in old encodings, figures that stand higher, fonts with odd characters, wikis of other languages, lines that end in a hyphen."""
from pathlib import Path

import pytest

from paleotrain.core.settings import UserError, load_settings
from paleotrain.data.readers import ReadReport
from paleotrain.data.markup import no_words, plain_markup, wiki_text
from paleotrain.data.normalise import normalise
from paleotrain.data.sources import Record, plain_source, read_records, read_source, source_files

SENTENCE = "Opabinia has five eyes and a long proboscis that the animal used for feeding in the mud"


def read(path: Path, data: str | bytes, declared: str = "") -> tuple[list[Record], dict[str, int]]:
    """What `prepare` reads from one file, and what its report says was left out."""
    settings, report = load_settings(), ReadReport()
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    source = plain_source(path, "own", settings)
    if declared:
        mapping = path.with_name("own.yaml")
        mapping.write_text(f'name: own\ndomain: own\nfiles: ["{path}"]\n{declared}\n', encoding="utf-8")
        source = read_source(mapping, settings)
    return list(read_records(source, source_files(source, settings), report)), report.files[0]["left_out"]


def page(text: str, head: str = "") -> str:
    return f"<html><head>{head}</head><body><article><p>{text}. {SENTENCE}. {SENTENCE}.</p></article></body></html>"


META = '<meta http-equiv="Content-Type" content="text/html; charset={}">'
PAGES = [ # what the page declares, how it is written, its text
    (META.format("iso-8859-1"), "cp1252", "The animal’s eyes don’t move – they are “fixed”, cœur, €"),
    ("<META CHARSET='US-ASCII'>", "cp1252", "It’s"),
    (META.format("gb2312"), "gbk", "朱镕基"), (META.format("gb2312"), "gb18030", "𠮷"),
    ("<meta charset=shift_jis>", "cp932", "①三葉虫～"), (META.format("euc-kr"), "cp949", "똠방각하"),
    (META.format("big5"), "big5hkscs", "三葉蟲"), (META.format("ISO-8859-9"), "cp1254", "‘ığş’"),
    (META.format("windows-1251"), "cp1251", "трилобит"), (META.format("koi8-r"), "koi8-r", "трилобит"),
    (META.format("utf-16"), "utf-8", "é"), (META.format("gbk"), "utf-8-sig", "é"),
    (META.format("gbk"), "utf-16", "é"), ("", "utf-8", "é"), ('<meta charset="nonsense">', "utf-8", "é"),
    ("<!-- <meta charset=gbk> --><meta charset=cp1252>", "cp1252", "é"),
    ('<meta name="a" content="charset=gbk"><meta charset="latin1">', "cp1252", "é’")]


@pytest.mark.parametrize(("head", "encoding", "text"), PAGES)
def test_a_page_is_read_in_the_encoding_in_which_browsers_read_it(head, encoding, text, tmp_path):
    found, left = read(tmp_path / "a.html", page(text, head).encode(encoding))
    assert found[0].raw_text.startswith(f"{text}. ") and not left


def test_an_xml_declaration_counts_and_a_byte_without_a_character_goes(tmp_path):
    old = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE html>\n' + page("don\x92t \x81go")
    assert read(tmp_path / "a.html", old.encode("latin-1"))[0][0].raw_text.startswith("don’t go. ")


@pytest.mark.parametrize(("head", "said"), [("", "the page declares no encoding"),
                                            (META.format("utf-8"), "which the page declares"),
                                            (META.format("klingon"), "'klingon', which there is not")])
def test_a_page_that_is_not_in_its_encoding_is_refused_without_a_guess(head, said, tmp_path):
    with pytest.raises(UserError) as caught: read(tmp_path / "a.html", page("é, ü", head).encode("latin-1"))
    assert said in str(caught.value) and "is not UTF-8" in str(caught.value) and "LATIN1" not in str(caught.value)


def test_a_stray_byte_in_a_long_page_is_counted(tmp_path):
    found, left = read(tmp_path / "a.html", page("三叶虫" * 200, META.format("utf-8")).encode().replace(b"mud.", b"mud\xff.", 1))
    assert "mud\ufffd" in found[0].raw_text and left == {"a character that is not UTF-8": 1}


RAISED = [("10<sup>6</sup> years", "10^6 years"), ("10<sup>−3</sup> m<sup>2</sup>", "10^−3 m^2"),
          ("<sup>13</sup>C and δ<sup>18</sup>O", "^13C and δ^18O"), ("2<sup>n+1</sup>", "2^(n+1)"),
          ("the 19<sup>th</sup> century", "the 19th century"), ("a note<sup>12</sup> here", "a note^12 here"),
          ("a note<sup>[12]</sup>", "a note[12]"), ("H<sub>2</sub>O", "H2O"),
          ("x<sub>10</sub>", "x_10"), ("SO<sub>4</sub><sup>2−</sup>", "SO4^2−"), ("1010<sub>2</sub>", "1010_2")]


@pytest.mark.parametrize(("markup", "text"), RAISED)
def test_what_stands_higher_or_lower_is_never_glued_to_a_figure_or_word(markup, text, tmp_path):
    assert read(tmp_path / "a.html", page(markup))[0][0].raw_text.startswith(f"{text}. ")
    assert read(tmp_path / "a.xml", f"<d><row><p>{markup}; {SENTENCE}</p></row></d>", 'rows: row\ntext: "{p}"')[0][0].raw_text.startswith(f"{text}; ")
    assert plain_markup(markup) == text


def test_links_to_notes_stand_in_brackets(tmp_path):
    marks = 'shale<sup><a href="#n1">1</a></sup> and mud<a href="#n2"><sup>2</sup></a>'
    assert read(tmp_path / "a.html", page(marks))[0][0].raw_text.startswith("shale[1] and mud[2]. ")


def pdf(text: str, glyphs: dict[str, str], title: str = "") -> bytes:
    """A page of one line whose font names other characters: `glyphs` are hexadecimal codes of UTF-16 by letter."""
    names = "".join(f"<{ord(letter):02X}> <{code}>\n" for letter, code in glyphs.items())
    to_unicode = f"1 begincodespacerange\n<00> <FF>\nendcodespacerange\n{len(glyphs)} beginbfchar\n{names}endbfchar\n"
    line = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[4 0 R]/Count 1>>",
               "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>",
               "<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>/Contents 5 0 R>>",
               f"<</Length {len(line)}>>stream\n{line}\nendstream",
               f"<</Length {len(to_unicode)}>>stream\n{to_unicode}\nendstream", f"<</Title ({title})>>"]
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj{body}endobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    return f"{out}xref\n0 8\n0000000000 65535 f \n{table}trailer<</Size 8/Root 1 0 R/Info 7 0 R>>\nstartxref\n{len(out)}\n%%EOF".encode("latin-1")


@pytest.mark.parametrize(("glyphs", "text", "lost"), [({"Z": "D83D"}, "mud.", 1), ({"Z": "DE00"}, "mud.", 1),
                                                      ({"Z": "0000"}, "mud.", 1), ({"Z": "0007"}, "mud.", 1),
                                                      ({"Y": "D83D", "Z": "DE00"}, "mud\U0001f600.", 0),
                                                      ({"Z": "D83DDE00"}, "mud\U0001f600.", 0)])
def test_a_pdf_loses_the_characters_that_no_file_can_take_and_is_read(glyphs, text, lost, tmp_path):
    found, left = read(tmp_path / "a.pdf", pdf(f"{SENTENCE}{''.join(glyphs)}.", glyphs, "A\0title"))
    assert found[0].raw_text.endswith(text) and found[0].title == "Atitle"
    assert left == ({"a character of a PDF that no file can take": lost} if lost else {})


@pytest.mark.parametrize("link", ["[[Datei:O.jpg|mini|A [[roof]]]]", "[[Bild:O.jpg]]", "[[Fichier:O.jpg|x]]",
                                  "[[Archivo:O.jpg|x]]", "[[Bestand:O.jpg|x]]", "[[Файл:O.jpg|x]]", "[[文件:O.jpg|x]]",
                                  "[[ملف:O.jpg|x]]",
                                  "[[Kategorie:Gliederfüßer]]", "[[Catégorie:X]]", "[[Categoría:X]]", "[[カテゴリ:X]]",
                                  "[[Category:X]]", "[[Tập tin:O.jpg]]"])
def test_files_and_categories_are_no_words_in_any_wikipedia(link):
    assert plain_markup(f"It lived. {link}") == "It lived."
    assert plain_markup(f"It {link} lived, {link}, there.") == "It lived, there."


def test_of_spellings_for_several_scripts_one_stays():
    assert plain_markup("A -{zh-hans:计算机;zh-hant:電腦}-, -{b}-{{-}}-{c}-") == "A 计算机, bc"


@pytest.mark.parametrize(("markup", "text"), [
    ("It was {{convert|5|cm|in}} long, {{formatnum:1500}} of them", "It was 5 cm long, 1500 of them"),
    ("{{cvt|2|-|3|km2|sqmi}} wide", "2–3 km^2 wide"),
    ("{{val|4.54|0.05|e=9|u=years}} old", "(4.54 ± 0.05) × 10^9 years old"),
    ("found {{circa|1909}} by {{nowrap|C. D. {{small|Walcott}}}}", "found c. 1909 by C. D. Walcott"),
    ("{{lang|de|Schiefer}}, {{lang-fr|schiste}}, {{transl|ru|slanets}}", "Schiefer, schiste, slanets"),
    ("{{mya|505}} or {{ma|505}}", "505 million years ago or 505 Ma"),
    ("{{frac|1|2}} of 10{{sup|6}}, {{gaps|1|234|567}}", "1/2 of 10^6, 1234567"),
    ("A <math>10^{6}</math> formula", "A 10^6 formula"), ("A <math>\\begin{x}a\\end{x}</math> formula", "A formula"),
    ("A {{unknown|{{convert|5|cm}}}} word {{x}}, ({{y}}) here {{z}}.", "A word, here."),
    ("O. ({{IPAc-en|x}}; {{lang-la|O}})", "O. (O)")])
def test_templates_show_what_they_are_given_and_leave_no_gap(markup, text):
    assert plain_markup(markup) == text


def test_templates_and_formulas_that_are_not_shown_are_counted_by_name():
    met = wiki_text("A {{Cn}} b {{cn|date=x}} {{infobox|{{cite|x}}}}<ref>{{cite|y}}</ref> <math>\\begin{x}</math>", no_words())[1]
    assert met == {"template cn": 2, "template infobox": 1, "formula": 1}


@pytest.mark.parametrize("word", ["می\u200cخواهم", "کتاب\u200cها", "ക\u0d4d\u200d", "ක\u0dca\u200dර",
                                  "क\u094d\u200dष", "\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308"])
def test_joiners_that_spell_a_word_or_an_emoji_stay(word):
    assert normalise(f"A {word}, b").text == f"A {word}, b" and normalise(word).text == word


@pytest.mark.parametrize(("raw", "text"), [("tri\u200clo\u200dbite\u200c", "trilobite"),
                                           ("\u200cمی\u200c \u200d", "می"), ("a\u200b\u200e\u2060b", "ab"),
                                           ("می\u200c\u00ad\u200cخ", "می\u200cخ")])
def test_joiners_without_use_go(raw, text):
    assert normalise(raw).text == text == normalise(text).text


@pytest.mark.parametrize(("raw", "text"), [("&#55357;&#56832;", "\U0001f600"), ("&#xD83D;&#xDE00;!", "\U0001f600!"),
                                           ("&amp;#55357;&amp;#56832;", "\U0001f600"),
                                           ("&#0055357;&#x0DE00;", "\U0001f600"), ("&#55357;", "\ufffd"),
                                           ("don&#146;t", "don't"), ("&#128;", "€")])
def test_numeric_entities_mean_what_they_mean_in_browsers_and_a_pair_is_one_character(raw, text):
    assert normalise(raw).text == text


@pytest.mark.parametrize(("raw", "text"), [
    ("the state-of-the-\nart", "the state-of-the-art"), ("a well-docu-\nmented find", "a well-documented find"),
    ("the interferon-\ndependent cells", "the interferon-dependent cells"),
    ("an inter-\ndependent and in-\ndependent", "an interdependent and independent"), ("trilo-\nbites", "trilobites"),
    ("a mother-in-\nlaw and five-year-\nold", "a mother-in-law and five-year-old"),
    ("the up-to-\ndate state-\nof-the-art, end-\nto-end", "the up-to-date state-of-the-art, end-to-end"),
    ("a well-in-\nformed protein-\nrich, prote-\nin-poor", "a well-informed protein-rich, protein-poor"),
    ("the age-\nrelated low-\ntemperature first-\norder x-\nray, so-\ncalled",
     "the age-related low-temperature first-order x-ray, so-called"),
    ("the pack-\naged dis-\norder and cor-\nrelated re-\nmaking", "the packaged disorder and correlated remaking"),
    ("c'est-à-\ndire que peut-\nêtre là-\nbas, donnez-\nmoi dix-\nsept de la mer",
     "c'est-à-dire que peut-être là-bas, donnez-moi dix-sept de la mer"),
    ("tuonti-\nja vienti on että se", "tuonti- ja vienti on että se"), ("be-\nés kivitel hogy az egy", "be- és kivitel hogy az egy"),
    ("die Berg-\nbzw. Talbahn ist der", "die Berg- bzw. Talbahn ist der"),
    ("die Vor-\nund Nachteile", "die Vor- und Nachteile"),
    ("het vracht-\nen personenvervoer is", "het vracht- en personenvervoer is"),
    ("för-\noch nackdelar", "för- och nackdelar"), ("the wood-\nen and tak-\nen", "the wooden and taken"),
    ("les sous-\net surcharges de la mer", "les sous- et surcharges de la mer"),
    ("que peut-\nil faire de celui-\nci dans la mer", "que peut-il faire de celui-ci dans la mer"),
    ("el pun-\nto de las rocas", "el punto de las rocas"),
    ("der Kalk-\nstein ist Stein aus Kalk", "der Kalkstein ist Stein aus Kalk")])
def test_a_hyphen_at_a_line_end_stays_where_it_is_the_words_own(raw, text):
    assert normalise(raw).text == text == normalise(text).text


@pytest.mark.parametrize(("markup", "text"), [
    ("10<em style='vertical-align: super'>6</em> years", "10^6 years"), ("10<span class='superscript'>6</span> years", "10^6 years"),
    ("x<i class='small sub'>max</i> here", "x_max here"), ("a <span class='sub-title'>5</span> here", "a 5 here"),
    ("<math><msqrt><mn>2</mn></msqrt></math> here", "√2 here"), ("<math><msqrt><mi>a</mi><mo>+</mo><mn>1</mn></msqrt></math> here", "√(a+1) here"),
    ("<math><mfrac><mrow><mi>a</mi><mo>+</mo><mn>1</mn></mrow><mn>2</mn></mfrac></math> here", "(a+1)/2 here")])
def test_what_a_style_or_a_formula_raises_is_not_glued_either(markup, text, tmp_path):
    assert read(tmp_path / "a.html", page(f"It is {markup}"))[0][0].raw_text.startswith(f"It is {text}. ")


@pytest.mark.parametrize("declared", ["iso-8859-1", "windows-1252", "windows-1251"])
def test_a_page_in_utf8_that_declares_an_encoding_of_single_bytes_is_read_as_utf8(declared, tmp_path):
    assert read(tmp_path / "a.html", page("“Café” – don’t", META.format(declared)).encode())[0][0].raw_text.startswith("“Café” – don’t. ")


@pytest.mark.parametrize(("declared", "written", "text"), [("gb2312", "gbk", "镕"), ("shift_jis", "cp932", "①髙"),
                                                           ("euc-kr", "cp949", "똠"), ("big5", "cp950", "裏")])
def test_xml_is_read_in_the_encoding_it_declares_or_the_source_file_does(declared, written, text, tmp_path):
    rows, row = 'rows: row\ntext: "{p}"', f"<d><row><p>{text}</p></row></d>"
    for data, mapping in ((f'<?xml version="1.0" encoding="{declared}"?>{row}', rows), (row, f"{rows}\nencoding: {declared}")):
        assert read(tmp_path / "a.xml", data.encode(written), mapping)[0][0].raw_text == text
    with pytest.raises(UserError, match="declare encoding: in a source file"): read(tmp_path / "a.xml", row.encode(written), rows)


@pytest.mark.parametrize(("markup", "text"), [
    ("{{val|1.23|+0.05|-0.03|u=Ma}}", "1.23 +0.05 −0.03 Ma"), ("{{val|5|(2)|u=m}}", "5(2) m"), ("{{convert|5|e6acre|km2}}", "5 million acre"),
    ("10{{su|p=6}} {{lang|de|text=Schiefer}}", "10^6 Schiefer"),
    ("__NOTOC__It lived.__KEIN_INHALTSVERZEICHNIS__", "It lived."), ("def __init__", "def __init__"), ("A __ПРИСИЛЬНИЙ_ЗМІСТ__ B", "A B"),
    ("[[Imaxe:O.jpg|x]] [[Kategooria:X]] [[სურათი:O.jpg]]A", "A")])
def test_figures_of_templates_stay_whole_and_switches_of_a_page_go(markup, text):
    assert plain_markup(markup) == text


@pytest.mark.parametrize("word", ["می\u200cخواهم", "ක\u0dca\u200dර", "\U0001f469\u200d\U0001f467", "ᠠ\u180eᠠ", "می&zwnj;خواهم", "می&#8204;خواهم",
                                  "می&#x200C;خواهم", "\U0001f469&zwj;\U0001f467", "&#55357;&#56425;&#8205;&#55357;&#56423;"])
def test_joiners_of_a_page_of_html_stay(word, tmp_path):
    found = read(tmp_path / "a.html", page(word, f"<title>{word}</title>"))[0][0]
    plain = normalise(word).text
    assert len(plain) > 2 and found.title == plain and found.raw_text.startswith(f"{plain}. ")
