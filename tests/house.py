"""Checks of the house itself: modules in step with notebooks, README with index, links, imports one way, a budget a part, every notebook tested.

    python tests/house.py                   all checks that train nothing
    python tests/house.py --notebooks       nbdev_test on all library notebooks, and that none was left out
    python tests/house.py --budget          Python tokens of each part, and its ceiling
    python tests/house.py --write-readme    README.md from nbs/index.ipynb
    python tests/house.py --write-parameters    the parameters cells of the run notebooks from their configurations
"""
import ast
import io
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def skips_execution(notebook: Path) -> bool:
    return any(re.search(r"^(- )?skip_exec: true$", source(c), re.M) for c in cells(notebook)[:2] if c["cell_type"] != "code")


def files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def modules_out_of_step(root: Path = ROOT) -> list[str]:
    """Export afresh in a copy without any generated module; whatever differs is out of step, untracked files included."""
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "copy"
        (copy / "paleotrain").mkdir(parents=True)
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        shutil.copy2(root / "pyproject.toml", copy)
        shutil.copy2(root / "paleotrain/__init__.py", copy / "paleotrain")
        subprocess.run([BIN / "nbdev-export"], cwd=copy, check=True)
        fresh, ours = ({p.relative_to(place).as_posix(): p.read_bytes() for p in (place / "paleotrain").rglob("*.py")} for place in (copy, root))
    return [f"{n} is out of step with its notebook: run nbdev-export" for n in sorted(fresh | ours) if fresh.get(n) != ours.get(n)]


def chapters(folder: Path = ROOT / "nbs") -> list[Path]:
    """The notebooks that make the library: parts in order of their numbers, chapters in order of theirs."""
    return sorted(folder.glob("[0-9]*/[0-9]*.ipynb"))


LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)") # the target of a link or an image in Markdown that is a file


def readme() -> str:
    """README.md as nbconvert makes it from the index notebook, with links counted from the root."""
    from nbconvert import MarkdownExporter
    text, _ = MarkdownExporter().from_filename(str(ROOT / "nbs/index.ipynb"))
    return LINK.sub(lambda link: posixpath.normpath(f"nbs/{link[1]}"), text).strip() + "\n"


def readme_out_of_step() -> list[str]:
    same = (ROOT / "README.md").read_text(encoding="utf-8") == readme()
    long = [f"README.md has {n} lines, more than 120"] if (n := len(readme().splitlines())) > 120 else []
    return long + ([] if same else ["README.md is out of step with nbs/index.ipynb: run make readme"])


def text_of(page: Path) -> str:
    """What a page says: a Markdown file, or the Markdown of a notebook."""
    if page.suffix == ".md": return page.read_text(encoding="utf-8")
    return "\n".join(source(c) for c in cells(page) if c["cell_type"] == "markdown")


def dead_links(root: Path = ROOT) -> list[str]:
    """Local links of the pages a reader begins with that lead to no file, and chapters that the index does not link to."""
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "nbs").glob("*.ipynb")), *chapters(root / "nbs")]
    found = [f"{page.name}: the link to {target} leads nowhere" for page in pages for target in LINK.findall(text_of(page))
             if not (page.parent / target).exists()]
    linked = LINK.findall(text_of(root / "nbs/index.ipynb"))
    names = [chapter.relative_to(root / "nbs").as_posix() for chapter in chapters(root / "nbs")]
    return found + [f"index.ipynb has no link to {name}" for name in names if name not in linked]


BELOW_REPORT = ("core", "runs", "evaluation.red_lines", "tokenizers.train") # of the last two only constants, and what a cut term is: no torch
WRAPPERS = { # phases that run another one inside
    "phases.recovery": ("phases.dapt", "phases.pretrain_masked"), "phases.scaling": ("phases.pretrain_causal",), "phases.domains": ("phases.qlora",),
    "phases.chain": ("phases.chat_data",), "phases.curriculum": ("phases.chain", "phases.sft", "phases.chat_data"),
}
SHARED = "phases.scaffold" # what all phases may import


def module_of(notebook: Path) -> str:
    """The module that a notebook exports, as `data.readers`."""
    return next(m[1] for c in cells(notebook) if (m := re.search(r"^#\|\s*default_exp (\S+)", source(c), re.M)))


def imports(notebook: Path) -> list[str]:
    """The modules of ours that a notebook's exported cells import."""
    text = "\n".join(source(c) for c in cells(notebook) if c["cell_type"] == "code" and "#| export" in source(c))
    whole = re.findall(r"^\s*from paleotrain\.(\w+\.\w+) import", text, re.M)
    return whole + [f"{part}.{name}" for part, names in re.findall(r"^\s*from paleotrain\.(\w+) import ([^\n#]+)", text, re.M)
                    for name in re.findall(r"(\w+)(?: as \w+)?(?:, |\s*$)", names)]


def import_order(folder: Path = ROOT / "nbs") -> list[str]:
    """Imports upward, between phases, or out of a report: each chapter may import what comes before it, and of these not all."""
    order = {module_of(notebook): notebook for notebook in chapters(folder)}
    found = []
    for module, notebook in order.items():
        for used in imports(notebook):
            at = f"{notebook.relative_to(folder).as_posix()} imports paleotrain.{used}"
            if used not in order or order[used] >= notebook: found.append(f"{at}, which does not come before it")
            elif module.startswith("phases.") and used.startswith("phases.") and used not in (SHARED, *WRAPPERS.get(module, ())):
                found.append(f"{at}, another phase: what two phases need is in {SHARED}")
            elif module.startswith("report.") and not used.startswith(("report.", *BELOW_REPORT)):
                found.append(f"{at}: a report reads the files of a run, and nothing that trains")
    return found


CEILINGS = { # Python tokens of each part: what it has come to, rounded up
    "app": 7_700, "chat": 16_000, "core": 8_850, "data": 42_350, "evaluation": 21_700, "models": 12_700, "phases":
    61_700, "report": 43_400, "runs": 7_350, "tokenizers": 5_800, "training": 16_000,
}


def tokens(path: Path) -> int:
    """Python tokens of a module without comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    documented = {node.body[0].lineno for node in ast.walk(ast.parse(text))
                  if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None}
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type not in empty and not (t.type == tokenize.STRING and t.start[0] in documented) for t in found)


def budget(folder: Path = ROOT / "paleotrain") -> dict[str, int]:
    """Python tokens of each part."""
    return {part.name: sum(map(tokens, part.glob("*.py"))) for part in sorted(folder.iterdir()) if part.is_dir() and (part / "__init__.py").is_file()}


def over_budget() -> list[str]:
    """Parts that have grown beyond their ceiling; it is raised in the commit that adds an issue's feature, with a line in LOG.md."""
    return [f"paleotrain/{part} has {count:,} tokens, more than its ceiling of {CEILINGS.get(part, 0):,}" for part, count in budget().items()
            if count > CEILINGS.get(part, 0)]


def notebooks_expected() -> set[str]:
    """Every notebook that nbdev_test should execute; the others are executed by pytest, and must be named there."""
    return {p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if not skips_execution(p) and ".ipynb_checkpoints" not in p.parts}


def skipped_but_untested() -> list[str]:
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    skipped = [p for p in (ROOT / "nbs").glob("*.ipynb") if skips_execution(p)]
    wrong = [p.name for p in skipped if not p.name.startswith(("run_", "report", "guide_", "widget_"))]
    return ([f"{name} says skip_exec, but only run, report, guide and widget notebooks may" for name in wrong]
            + [f"{p.name} says skip_exec and no test executes it" for p in skipped if p.stem not in tests])


def large_or_dirty() -> list[str]:
    found = [f"{p} is {size // 1000} KB" for p in files() if p.suffix == ".ipynb" and (size := (ROOT / p).stat().st_size) > 300_000]
    for notebook in (ROOT / "nbs").glob("run_*.ipynb"):
        if not any("parameters" in c["metadata"].get("tags", []) for c in cells(notebook)): found.append(f"{notebook.name} has no cell tagged parameters")
    return found


def parameters_cells(phase: str) -> dict[str, str]:
    """The parameters of a phase as its run notebook declares them, by the tag of the cell: name, type, what each is; all None until somebody sets them.

    Where they are many, the cell `first` has those that matter most; the folded one behind it takes them over and has the others, and is what papermill sets.
    """
    from typing import Literal, get_args, get_origin

    from paleotrain.core.configurations import CONFIGURATIONS
    config = CONFIGURATIONS[phase]
    lines = {"preset": ("str", "values for all that is not set here; None: from settings.ini"),
             "resume": ("str", "id of an interrupted run to go on with")}
    for name, field in config.model_fields.items():
        kind = next((one for one in get_args(field.annotation) if type(None) in get_args(field.annotation)), field.annotation) # of X | None, X
        lines[name] = "str" if get_origin(kind) is Literal else getattr(get_origin(kind) or kind, "__name__", "str"), field.description
    def declared(name: str, value: str) -> str: return f"{name}: {lines[name][0]} = {value}  # {lines[name][1]}"
    if not config.FIRST: return {"parameters": "\n".join(declared(name, "None") for name in lines)}
    first = ["preset", "resume", *config.FIRST]
    rest = [name for name in lines if name not in first]
    folded = [*(declared(name, name) for name in first), *(declared(name, "None") for name in rest)]
    return {"first": "\n".join(declared(name, "None") for name in first),
            "parameters": "\n".join(["# the parameters above as papermill reads them, and all others", *folded])}


def parameters_out_of_step(write: bool = False) -> list[str]:
    """Run notebooks whose parameters cells are not those of their configuration; mended where asked."""
    from paleotrain.core.configurations import CONFIGURATIONS
    found = []
    for path in sorted((ROOT / "nbs").glob("run_*.ipynb")):
        notebook, phase = json.loads(path.read_text(encoding="utf-8")), path.stem.removeprefix("run_")
        wanted = parameters_cells(phase) if phase in CONFIGURATIONS else {}
        there = {tag: cell for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])}
        if "parameters" not in there or not wanted:
            fix = f"enter {phase} in CONFIGURATIONS of 01_core/04_configurations, and nbdev-export" if not wanted else "give a code cell the tag parameters"
            found.append(f"{path.name}: its parameters are not known: {fix}")
            continue
        if all(tag in there and source(there[tag]) == text for tag, text in wanted.items()): continue
        found.append(f"{path.name}: its parameters cell is out of step: run tests/house.py --write-parameters")
        if not write: continue
        if "first" in wanted and "first" not in there:
            there["first"] = there["parameters"] | {"id": "first", "metadata": {"tags": ["first"]}}
            notebook["cells"].insert(notebook["cells"].index(there["parameters"]), there["first"])
            there["parameters"]["metadata"]["jupyter"] = {"source_hidden": True}
        for tag, text in wanted.items(): there[tag]["source"] = text.splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def test_notebooks() -> int:
    """nbdev_test, and the comparison it does not make: zero notebooks tested would exit 0."""
    run = subprocess.Popen([BIN / "nbdev_test", "--n-workers", "2", "--do-print"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env={"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"} | os.environ) # a core each, as in a run
    done = set()
    for line in run.stdout:
        print(line, end="", flush=True)
        if match := re.match(r"- Completed (.*\.ipynb)", line): done.add((ROOT / match[1]).relative_to(ROOT / "nbs").as_posix())
    missing = sorted(notebooks_expected() - done)
    if missing: print(f"not tested: {', '.join(missing)}")
    code = run.wait()
    print(f"{len(done)} of {len(notebooks_expected())} notebooks executed, {'some failed' if code else 'none failed'}")
    return code or bool(missing)


def main() -> int:
    if "--write-readme" in sys.argv: return not (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    if "--notebooks" in sys.argv: return test_notebooks()
    if "--budget" in sys.argv: print(*(f"{part:12} {count:8,} of {CEILINGS.get(part, 0):8,}" for part, count in budget().items()), sep="\n"); return 0
    if "--write-parameters" in sys.argv: print(*parameters_out_of_step(write=True), sep="\n"); return 0
    found = [*modules_out_of_step(), *readme_out_of_step(), *dead_links(), *import_order(), *over_budget(), *parameters_out_of_step(),
             *skipped_but_untested(), *large_or_dirty()]
    print(*found, sep="\n") if found else print("house: modules, README, links, imports and notebook list are in order")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
