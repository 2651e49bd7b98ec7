"""Checks of the house itself: modules in step with notebooks, README with index, links that lead somewhere, imports one way, every notebook tested.

    python tests/house.py                   all checks that train nothing
    python tests/house.py --notebooks       nbdev_test on all library notebooks, and that none was left out
    python tests/house.py --write-readme    README.md from nbs/index.ipynb
    python tests/house.py --write-parameters    the parameters cells of the run notebooks from their configurations
"""
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def skips_execution(notebook: Path) -> bool:
    return any(re.search(r"^- skip_exec: true$", source(c), re.M) for c in cells(notebook)[:2] if c["cell_type"] != "code")


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
        fresh = {p.name: p.read_bytes() for p in (copy / "paleotrain").glob("*.py")}
        ours = {p.name: p.read_bytes() for p in (root / "paleotrain").glob("*.py")}
    return [f"paleotrain/{n} is out of step with its notebook: run nbdev-export" for n in sorted(fresh | ours) if fresh.get(n) != ours.get(n)]


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
    pages = [root / "README.md", root / "CONTRIBUTING.md", root / "nbs/index.ipynb", *sorted((root / "nbs").glob("guide_*.ipynb"))]
    found = [f"{page.name}: the link to {target} leads nowhere" for page in pages for target in LINK.findall(text_of(page))
             if not (page.parent / target).exists()]
    linked = LINK.findall(text_of(root / "nbs/index.ipynb"))
    return found + [f"index.ipynb has no link to {n.name}" for n in sorted((root / "nbs").glob("[0-9]*.ipynb")) if n.name not in linked]


def import_order(folder: Path = ROOT / "nbs") -> list[str]:
    """Notebooks in order of their numbers; each may import only modules of notebooks that come before it by name."""
    notebooks = sorted(folder.glob("[0-9]*.ipynb"))
    code = {n.name: [source(c) for c in cells(n) if c["cell_type"] == "code"] for n in notebooks}
    exported = {m[1]: name for name, sources in code.items() for text in sources if (m := re.search(r"^#\|\s*default_exp (\S+)", text, re.M))}
    found = []
    for name, sources in code.items():
        for text in (t for t in sources if "#| export" in t):
            for used in re.findall(r"^\s*(?:from|import) paleotrain\.(\w+)", text, re.M):
                if exported.get(used, "~") >= name: found.append(f"{name} imports paleotrain.{used}, which does not come before it")
    return found


def notebooks_expected() -> set[str]:
    """Every notebook that nbdev_test should execute; the others are executed by pytest, and must be named there."""
    return {p.name for p in (ROOT / "nbs").glob("*.ipynb") if not skips_execution(p)}


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


def parameters_cell(phase: str) -> str:
    """The parameters of a phase as its run notebook declares them: name, type, and what each is, all None until somebody sets them."""
    from typing import Literal, get_args, get_origin

    from paleotrain.configurations import CONFIGURATIONS
    lines = ["preset: str = None  # values for all that is not set here; None: from settings.ini",
             "resume: str = None  # id of an interrupted run to go on with"]
    for name, field in CONFIGURATIONS[phase].model_fields.items():
        kind = next((one for one in get_args(field.annotation) if type(None) in get_args(field.annotation)), field.annotation) # of X | None, X
        written = "str" if get_origin(kind) is Literal else getattr(get_origin(kind) or kind, "__name__", "str")
        lines.append(f"{name}: {written} = None  # {field.description}")
    return "\n".join(lines)


def parameters_out_of_step(write: bool = False) -> list[str]:
    """Run notebooks whose parameters cell is not that of their configuration; mended where asked."""
    found = []
    for path in sorted((ROOT / "nbs").glob("run_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cell, wanted = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])), parameters_cell(path.stem.removeprefix("run_"))
        if source(cell) == wanted: continue
        found.append(f"{path.name}: its parameters cell is out of step: run tests/house.py --write-parameters")
        if write:
            cell["source"] = wanted.splitlines(keepends=True)
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def test_notebooks() -> int:
    """nbdev_test, and the comparison it does not make: zero notebooks tested would exit 0."""
    run = subprocess.Popen([BIN / "nbdev_test", "--n-workers", "2", "--do-print"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env={"OMP_NUM_THREADS": "1"} | os.environ) # a core each
    done = set()
    for line in run.stdout:
        print(line, end="", flush=True)
        if match := re.match(r"- Completed .*?([^/]+\.ipynb)", line): done.add(match[1])
    missing = sorted(notebooks_expected() - done)
    if missing: print(f"not tested: {', '.join(missing)}")
    code = run.wait()
    print(f"{len(done)} of {len(notebooks_expected())} notebooks executed, {'some failed' if code else 'none failed'}")
    return code or bool(missing)


def main() -> int:
    if "--write-readme" in sys.argv: return not (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    if "--notebooks" in sys.argv: return test_notebooks()
    if "--write-parameters" in sys.argv: print(*parameters_out_of_step(write=True), sep="\n"); return 0
    found = [*modules_out_of_step(), *readme_out_of_step(), *dead_links(), *import_order(), *parameters_out_of_step(),
             *skipped_but_untested(), *large_or_dirty()]
    print(*found, sep="\n") if found else print("house: modules, README, links, imports and notebook list are in order")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
