"""What is said where text is missing: on a clone, every shipped preset and chain either has its text, or says which it wants and where that is published."""
import dataclasses
import re
from collections.abc import Iterator

import pytest
import yaml
from conftest import ROOT, command

from paleotrain.core.settings import Settings, UserError, load_settings, located
from paleotrain.core.config import presets, read_preset
from paleotrain.data.readers import expand
from paleotrain.data.sources import read_source, source_files, sources


@pytest.fixture
def bare(tmp_path) -> Settings:
    """The project as a clone has it: no corpora, no data of its own."""
    return dataclasses.replace(load_settings(ROOT), corpora=tmp_path / "corpora", data=tmp_path / "data")


def texts(value: object) -> Iterator[str]:
    """All strings in a value."""
    if isinstance(value, str): yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else (): yield from texts(part)


def wanted(name: str) -> list[str]:
    """What a preset, and the chain it names, read below the corpora."""
    values = read_preset(name, load_settings(ROOT))
    if "chain" in values: values |= {"its chain": yaml.safe_load((ROOT / values["chain"]).read_text(encoding="utf-8"))}
    return [text for text in texts(values) if "{corpora}" in text]


def said(call, *arguments) -> str:
    with pytest.raises(UserError) as caught: call(*arguments)
    return str(caught.value)


def names_it(message: str, licence: bool = True) -> bool:
    """One line that says what, under which licence, from where, and what to do; no placeholder is left in it."""
    parts = (r"\(.*(CC BY|public domain|MIT).*\)" if licence else "", r"published as \S+|get it from https://", r"set corpora in settings\.ini$")
    return "{" not in message and "\n" not in message and all(re.search(part, message) for part in parts)


@pytest.mark.parametrize("name", presets(load_settings(ROOT)))
def test_a_preset_whose_text_is_not_there_says_which_it_wants(name, bare):
    for text in wanted(name):
        message = said(expand, located([text], bare), bare)
        assert message.startswith(f"{text.removeprefix('{corpora}/')}: not in {bare.corpora}; ") and names_it(message), message
    assert not (name.endswith("demo") and wanted(name)), "a demo reads what ships"


@pytest.mark.parametrize("name", [n for n in sources(load_settings(ROOT)) if "{corpora}" in "".join(read_source(n, load_settings(ROOT)).files)])
def test_a_source_says_its_title_licence_and_home(name, bare):
    source = read_source(name, bare)
    message = said(source_files, source, bare)
    assert message.startswith(f"{name}: no file at ") and "{" not in message
    assert f"{source.title} ({source.licence}); get it from {source.homepage}" in message
    assert message.endswith("set corpora in settings.ini") or str(bare.data / "downloads") in message # what can be fetched goes there


def test_other_files_that_are_missing(bare, monkeypatch):
    mine = "mine/own.txt"
    assert said(expand, [f"{bare.corpora}/{mine}"], bare) == f"{mine}: not in {bare.corpora}; put it there, or set corpora in settings.ini"
    for folder, phase in {"corpus": "prepare", "sft": "prepare", "chat": "chatdata"}.items():
        message = said(expand, [f"{bare.data}/{folder}/x"], bare)
        assert message.endswith(f"no such file or folder; make it with: paleotrain run {phase}, as in --preset {phase}_demo")
    monkeypatch.chdir(ROOT)
    assert said(expand, ["no/such"], bare) == f"no/such: no such file or folder in {ROOT}; check the path"
    monkeypatch.chdir(ROOT / "nbs")
    assert said(expand, ["no/such"], bare) == f"no/such: no such file or folder in {ROOT / 'nbs'} or {ROOT}; check the path"


def test_what_the_command_says(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("PALEOTRAIN_CORPORA", str(tmp_path / "corpora"))
    done = command("paleotrain", "run", "pretrain", "--preset", "shakespeare_char")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        f"error: scratch_lm/tinyshakespeare.txt: not in {tmp_path / 'corpora'}; Tiny Shakespeare (text in the public domain), published as karpathy/char-rnn")
    done = command("paleotrain", "run", "prepare", "--preset", "prepare_all")
    assert done.returncode == 2 and names_it(done.stderr.splitlines()[-1]) and done.stderr.splitlines()[-1].startswith("error: geology_books: no file at ")


def test_the_list_of_texts_is_whole():
    listed = yaml.safe_load((ROOT / "nbs/texts.yaml").read_text(encoding="utf-8"))
    assert all(entry.keys() == {"title", "licence", "published"} and all(entry.values()) for entry in listed.values())
    named = {text.removeprefix("{corpora}/") for name in presets(load_settings(ROOT)) for text in wanted(name)}
    assert named == set(listed)
