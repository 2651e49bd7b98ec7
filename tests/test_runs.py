"""What a run stands on: events after a kill, a lock beside those who look, parameters as they were typed, a kernel, and a terminal with few signs."""
import ast
import json
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, here

from paleotrain.core.files import write_json
from paleotrain.runs.directory import Run, derive_status, read_events
from paleotrain.runs.session import described, resume_run


@pytest.fixture
def stopped(runs):
    """A run of generating that was killed in the midst of a line, and the configuration it has."""
    from paleotrain.core.configurations import GenerateConfig
    folder = runs / "generate-1"
    write_json(folder / "request.json", {})
    run = Run(folder)
    config = described(GenerateConfig(), dict.fromkeys(GenerateConfig.model_fields, "default"))
    run.update(run_id=folder.name, phase="generate", attempts=[{"attempt": 1}], config=config)
    run.log("status", status="started")
    for step in (1, 2): run.log("train", step, loss=1 / step)
    run.lock.release()
    return run.folder, GenerateConfig


@pytest.mark.parametrize("torn", [b'{"t": 1, "kind": "tra', b"\0" * 40, "{\"text\": \"é".encode()[:-1], b"{"],
                         ids=["within a word", "zeros", "within a letter", "begun"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_line_cut_short_is_dropped_on_resume_and_joined_to_nothing(stopped, torn, checkpoint):
    folder, config = stopped
    whole = (folder / "events.jsonl").read_bytes()
    if checkpoint: write_json(folder / "checkpoints/step-000002/checkpoint.json", {"step": 2, "metric": None, "events": len(whole), "files": {}})
    (folder / "events.jsonl").write_bytes(whole + torn)
    run, _ = resume_run(folder, "generate", config, {})
    run.log("train", 3, loss=.1)
    run.lock.release()
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["status", "train", "train", "status", "train"]
    assert (folder / "events.attempt-1.jsonl").read_bytes() == torn and len(read_events(folder)) == 5


def test_a_checkpoint_that_counts_on_more_events_than_are_there_takes_nothing_away(stopped):
    folder, config = stopped
    size = len((folder / "events.jsonl").read_bytes())
    write_json(folder / "checkpoints/step-000002/checkpoint.json", {"step": 2, "metric": None, "events": size + 99, "files": {}})
    resume_run(folder, "generate", config, {})[0].lock.release()
    assert [event["kind"] for event in read_events(folder)] == ["status", "train", "train", "status"]


def test_whoever_looks_at_a_run_keeps_no_writer_out_and_needs_no_right_to_write(stopped):
    folder, _ = stopped
    over, found = threading.Event(), set()
    def look():
        while not over.is_set(): found.add(derive_status(folder))
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for one in lookers: one.start()
    try:
        for _ in range(100): Run(folder).lock.release()
    finally:
        over.set()
        for one in lookers: one.join()
    assert found <= {"interrupted", "running"}
    (folder / "writer.lock").chmod(0o400)
    assert derive_status(folder) == "interrupted"


# The kernel

ORPHAN = """
import ctypes, os, subprocess, sys, time
import psutil
ctypes.CDLL(None).prctl(36, 1) # PR_SET_CHILD_SUBREAPER: orphans come here, and not to process 1
starter = f'''
import os, subprocess, sys
from paleotrain.app.cli import starting
command = starting([sys.executable, "-m", "ipykernel_launcher", "-f", {sys.argv[1]!r}])
kernel = subprocess.Popen(command, env=os.environ | dict(JPY_PARENT_PID=str(os.getpid())))
print(kernel.pid, flush=True)
if {sys.argv[2]!r} == "up":
    while not os.path.exists({sys.argv[1]!r}): pass
os.kill(os.getpid(), 9)
'''
kernel = int(subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE).stdout)
end = time.monotonic() + 30
while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != "zombie" and time.monotonic() < end: time.sleep(.05)
print("ended" if time.monotonic() < end else "lives on")
if time.monotonic() >= end: os.kill(kernel, 9)
"""


@pytest.mark.parametrize("when", ["at once", "up"])
def test_a_kernel_ends_with_the_command_that_started_it_below_another_reaper(tmp_path, when):
    """Killed before the kernel has begun, and once it is up (its connection file is there)."""
    done = subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path / "kernel.json"), when], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["ended"], done.stderr


# What is typed

def parameters(*words: str) -> dict:
    """What the run notebook gets of `paleotrain run`, as its configuration has it."""
    from paleotrain.app.cli import given_values, make_parser
    from paleotrain.core.configurations import CONFIGURATIONS
    from paleotrain.core.settings import load_settings
    from paleotrain.core.config import validated
    arguments = make_parser(load_settings()).parse_args(["run", *words])
    values = given_values(arguments)
    config = validated(CONFIGURATIONS[arguments.phase], {name: value for name, value in values.items() if name not in ("preset", "resume")})
    return {name: getattr(config, name) for name in values if name in config.model_fields}


@pytest.mark.parametrize("typed", ["2024", "007", "1e5", "2024.0", "True", "no", "2024-01-15", "12:30", r"the \nabla of mud", "a;b", "100 %", "nan", "0x10",
                                   "null"])
def test_a_text_stays_as_it_was_typed_by_p_and_in_a_file(tmp_path, typed):
    own = tmp_path / "own.yaml"
    plain = f"prompt: {typed}\n" if typed not in ("True", "null") else "" # which are no text without quotes
    own.write_text(f"system: '{typed}'\nstop: ['{typed}']\n{plain}")
    assert parameters("generate", "-p", "prompt", typed, "-p", "system", typed) == {"prompt": typed, "system": typed}
    assert set(map(str, parameters("generate", "-f", str(own)).values())) == {typed, str([typed])}


def test_lines_come_from_yaml_and_not_from_backslashes(tmp_path):
    (tmp_path / "own.yaml").write_text('prompts: ["ROMEO:\\n", "the \\\\nabla"]\n')
    for phase in ("pretrain", "evaluate"):
        assert parameters(phase, "-f", str(tmp_path / "own.yaml")) == {"prompts": ["ROMEO:\n", r"the \nabla"]}
        assert parameters(phase, "-p", "prompts", r"the \nabla;C:\new") == {"prompts": [r"the \nabla", r"C:\new"]}
    assert parameters("generate", "-p", "stop", r"\n\n;END") == {"stop": ["\n\n", "END"]} # where a text ends is no text


@pytest.mark.parametrize(("given", "taken"), [
    (("prepare", "name", 2024), "2024"), (("prepare", "languages", ["en", "no"]), ["en", "no"]), (("prepare", "sources", 2024), ["2024"]),
    (("generate", "prompt", 42), "42"), (("generate", "prompt", .5), "0.5"), (("pretrain", "prompts", 42), ["42"]), (("generate", "stop", 5), ["5"]),
    (("dapt", "tracker_tags", ["a", 1]), ["a", "1"])])
def test_what_papermill_made_a_number_of_is_text_again_where_only_one_thing_can_have_been_typed(given, taken):
    from paleotrain.core.configurations import CONFIGURATIONS
    from paleotrain.core.config import validated
    phase, name, value = given
    assert getattr(validated(CONFIGURATIONS[phase], {name: value}), name) == taken


@pytest.mark.parametrize(("given", "fix"), [
    (("generate", "prompt", 1e5), "how it was typed is lost"), (("generate", "prompt", 2024.), "papermill's -r"),
    (("prepare", "name", float("nan")), "papermill's -r"),
    (("prepare", "languages", ["en", False]), 'quote it, as in "no"'), (("generate", "prompt", True), "True is no text"),
    (("tokenizer", "kind", ["bpe", "words"]), "kind is: kinds"), (("prepare", "languages", ["en", None]), "languages is: languages to keep"),
    (("scaling", "rungs", [None]), "rungs is: family, tokenizer and size")])
def test_where_the_spelling_is_lost_or_an_item_is_wrong_the_line_says_what_to_write(given, fix):
    from paleotrain.core.configurations import CONFIGURATIONS
    from paleotrain.core.settings import UserError
    from paleotrain.core.config import validated
    phase, name, value = given
    with pytest.raises(UserError) as said: validated(CONFIGURATIONS[phase], {name: value})
    assert fix in str(said.value) and "see the presets" not in str(said.value)


def test_names_and_values_that_are_code_reach_no_cell(runs, tmp_path, monkeypatch):
    """By -p, in a file, in a preset; what is passed on comes out of papermill's cell as it went in."""
    from papermill.translators import PythonTranslator
    monkeypatch.setattr("conftest.execute_here", lambda *_: pytest.fail("papermill was reached"))
    (tmp_path / "own.yaml").write_text("'domain = open(\"made\", \"w\"); x': 1\n")
    (tmp_path / "bytes.yaml").write_text("domain: !!binary IjsgcHJpbnQoMSk7ICI=\n") # "; print(1); "
    for words in (("-p", "import os; os.mkdir('made'); y", "1"), ("-p", "max_steps = 1\nx", "1"), ("-p", "max-steps", "1"), ("-f", str(tmp_path / "own.yaml")),
                  ("-f", str(tmp_path / "bytes.yaml"))):
        done = here("run", "dapt", *words, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and not (tmp_path / "made").exists() and not runs.exists()
    hard = {"a": 'x"; print(1) #', "b": "\\", "c": '\\"', "d": "é\n\t\x00'", "e": ["\"]", True, None, -1.5], "f": {"k\"": 1}, "g": "{x}", "h": "\ud83d"}
    names: dict = {}
    exec(PythonTranslator.codify(hard), names)
    assert {name: names[name] for name in hard} == hard


# The terminal

@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A finished run on a terminal that has ASCII alone, where that of the test has all."""
    place = tmp_path_factory.mktemp("spoken")
    texts = [f"The animal number {n} – “Olenus” – has five eyes and lived in the mud of sea {n * 7} beside {n * 3} others of its kind." for n in range(40)]
    (place / "own.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "DATA"): patch.setenv(f"PALEOTRAIN_{name}", str(place / name.lower()))
        done = here("run", "prepare", "-p", "sources", str(place / "own.jsonl"), "-p", "name", "own", encoding="ascii")
        yield done, next((place / "runs").iterdir())


def test_a_finished_run_ends_well_where_the_terminal_has_ascii_alone(spoken):
    done, folder = spoken
    assert done.returncode == 0 and done.stdout.isascii() and done.stderr.isascii(), done.stderr[-2000:]
    assert done.stdout.rstrip().endswith(f"report: {folder / 'report.html'}")
    table = [line for line in done.stdout.split("\n\n")[-2].splitlines() if "points to" not in line] # the claims: columns as wide as they are shown
    assert ">= 99.9 %" in done.stdout and "+ PASS" in done.stdout and {line.rindex("  ") for line in table[1:]} == {table[1].rindex("  ")}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("words", [("compare", "RUN", "RUN"), ("runs",), ("report", "RUN"), ("report", "café–≤三"), ("run", "--help")])
def test_whatever_the_command_says_is_said_on_any_terminal(spoken, encoding, words):
    done = here(*(str(spoken[1]) if word == "RUN" else word for word in words), encoding=encoding)
    assert done.returncode == (2 if "café–≤三" in words else 0) and "Traceback" not in done.stderr and "UnicodeEncodeError" not in done.stderr


def test_every_sign_of_the_library_has_a_plain_one():
    """Letters are written by their number; a sign that is printed has to have a counterpart."""
    for name in ("app/checks", "app/cli", "app/doctor", "models/memory", "report/masked", "report/record", "report/summary", "report/terminal",
                 "runs/directory", "runs/session", "training/callbacks"):
        source = (ROOT / f"paleotrain/{name}.py").read_text(encoding="utf-8")
        texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        for sign in {sign for text in texts for sign in text if not sign.isalnum()}: assert b"\\u" not in sign.encode("ascii", "plain"), (name, sign)
