"""JupyterLab itself, in a browser without a window: what a link of the index opens, and what the stop button does to a training."""
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest
from conftest import BIN, ROOT, SMALL, only_run

from paleotrain.runs.directory import checkpoints, derive_status, read_events

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage"]
SETTINGS = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
            "notebook-extension/tracker": {"windowingMode": "none"}} # every cell is in the page, seen or not
TRAINING = SMALL | {"max_steps": 400, "eval_steps": 200, "save_steps": 200}
LINE = "stopping after this step; press stop again to stop at once"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The system's Chromium."""
    try: from playwright.sync_api import sync_playwright
    except ImportError: pytest.skip("not tested in JupyterLab: links of the index, stop button (no playwright; it comes with the extra dev)")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None: pytest.skip(f"not tested in JupyterLab: links of the index, stop button (no browser: {', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield made
        made.close()


def copied(place: Path) -> Path:
    """The project as `make lab` finds it, in a copy that JupyterLab may save into."""
    shutil.copytree(ROOT / "nbs", place / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in [*ROOT.glob("*.md"), ROOT / "settings.ini", ROOT / "pyproject.toml"]: shutil.copy2(path, place)
    for name in ("paleotrain", "artifacts", "tests"): (place / name).symlink_to(ROOT / name)
    (place / "data").mkdir()
    (place / "data/sample").symlink_to(ROOT / "data/sample")
    return place


def environment(place: Path) -> dict[str, str]:
    """Nothing of the user's own JupyterLab is read or written."""
    own = {f"JUPYTER{name}_DIR": str(place / name.lower().strip("_")) for name in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")}
    for name, values in SETTINGS.items():
        file = Path(own["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", f"{name}.jupyterlab-settings")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    return os.environ | own | {"IPYTHONDIR": str(place / "ipython"), "PALEOTRAIN_RUNS": str(place / "runs"), "PALEOTRAIN_ROOT": str(place / "project"),
                               "PALEOTRAIN_PRESET": "demo"}


class Lab:
    """JupyterLab as `make lab` starts it, but for the browser."""
    def __init__(self, place: Path):
        self.runs, self.project = place / "runs", place / "project"
        self.project.mkdir()
        copied(self.project)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.token = secrets.token_hex(8)
        asked = re.search(r"^\t\$\(BIN\)/jupyter (lab .*)$", (ROOT / "Makefile").read_text(), re.M)[1].split() # what `make lab` says
        words = [str(BIN / "jupyter"), *asked, "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
                 f"--IdentityProvider.token={self.token}", *(["--allow-root"] if os.geteuid() == 0 else [])]
        with (place / "lab.log").open("w") as log:
            self.process = psutil.Popen(words, cwd=self.project, env=environment(place), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        servers = place / "runtime"
        self.until(lambda: list(servers.glob("jpserver-*.json")) and self.answers(json.loads(next(servers.glob("jpserver-*.json")).read_text())),
                   lambda: time.sleep(.1))

    def answers(self, server: dict) -> bool:
        self.url = server["url"].rstrip("/")
        return self.status("/api/status") == 200

    def status(self, path: str) -> int:
        """What the server answers to a request."""
        import requests
        try: return requests.get(self.url + path, headers={"Authorization": f"token {self.token}"}, timeout=60).status_code
        except requests.ConnectionError: return 0

    def until(self, condition: Callable[[], object], pause: Callable[[], None], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition(): # polling, with a limit
            assert self.process.poll() is None and time.monotonic() < end
            pause()

    def close(self) -> None:
        family = [*self.process.children(recursive=True), self.process] # kernels too
        for one in family: one.kill()
        psutil.wait_procs(family, timeout=20)


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture
def page(browser, lab):
    made = browser.new_page(viewport={"width": 1400, "height": 1000})
    made.set_default_timeout(120_000)
    yield made
    made.close()


def opened(page, lab: Lab, notebook: str):
    """A notebook of the project in a workspace of its own, rendered."""
    page.goto(f"{lab.url}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?token={lab.token}")
    page.wait_for_selector(".jp-NotebookPanel .jp-RenderedMarkdown h1")
    return page.locator(".jp-NotebookPanel").first


def local_links(page, lab: Lab, notebook: str) -> dict[str, str]:
    """The rendered links of a notebook that lead to files, with the path from the root that JupyterLab makes of each."""
    links = opened(page, lab, notebook).locator(".jp-RenderedMarkdown a[href]:not([href^='#'])")
    def resolved() -> list[str]:
        return [link["href"] for link in links.evaluate_all("all => all.map(a => ({href: a.getAttribute('href')}))")]
    lab.until(lambda: all(urlsplit(href).scheme for href in resolved()), lambda: page.wait_for_timeout(100)) # it rewrites them one by one
    paths = [unquote(urlsplit(href).path) for href in resolved() if href.startswith(f"{lab.url}/files/")]
    return {path.removeprefix("/files/"): path for path in paths}


def dead_links(page, lab: Lab, notebook: str) -> list[str]:
    return sorted(path for path in local_links(page, lab, notebook) if lab.status(f"/api/contents/{path}?content=0") != 200)


def test_every_link_of_the_index_opens_what_it_names(page, lab):
    assert dead_links(page, lab, "nbs/index.ipynb") == []
    chapter = page.locator(".jp-RenderedMarkdown a[href*='/files/nbs/'][href*='.ipynb']").first
    name = Path(urlsplit(chapter.get_attribute("href")).path).name
    chapter.click()
    page.wait_for_selector(f".lm-TabBar-tabLabel:text-is('{name}')")
    page.wait_for_function("document.querySelectorAll('.jp-NotebookPanel .jp-RenderedMarkdown h1').length > 1") # and its title is rendered
    assert page.locator(".jp-Dialog").count() == 0


def test_a_dead_link_is_found(page, lab):
    text = "# Links\n\n[there](index.ipynb) and [above](../README.md), [written from the root](nbs/index.ipynb), [elsewhere](https://example.org/x)"
    cell = {"cell_type": "markdown", "id": "links", "metadata": {}, "source": text}
    (lab.project / "nbs/dead.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert set(local_links(page, lab, "nbs/dead.ipynb")) == {"nbs/index.ipynb", "README.md", "nbs/nbs/index.ipynb"}
    assert dead_links(page, lab, "nbs/dead.ipynb") == ["nbs/nbs/index.ipynb"]


def set_parameters(notebook: Path, values: dict) -> None:
    """Write values into the parameters cells, as a user does."""
    text = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in text["cells"]:
        source = "".join(cell["source"])
        if not {"first", "parameters"} & set(cell["metadata"].get("tags", [])): continue
        for name, value in values.items(): source = re.sub(rf"^({name}: \w+) = None", rf"\g<1> = {value!r}", source, flags=re.M)
        cell["source"] = source
    notebook.write_text(json.dumps(text), encoding="utf-8")


class Training:
    """A run notebook in a page."""
    def __init__(self, page, lab: Lab, notebook: str):
        self.page, self.lab, self.panel = page, lab, opened(page, lab, notebook)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")

    def run_all(self) -> None:
        self.page.locator("#jp-MainMenu >> text='Run'").click()
        self.page.locator(".lm-Menu-itemLabel:text-is('Run All Cells')").click()

    def stop(self) -> None: self.panel.locator("[data-jp-item-name='interrupt']").click()

    def until(self, condition: Callable[[], object]) -> None:
        self.lab.until(condition, lambda: self.page.wait_for_timeout(50))

    def steps(self, attempt: int) -> list[int]:
        return [e["step"] for folder in self.lab.runs.glob("dapt-*") for e in read_events(folder) if e["kind"] == "train" and e["attempt"] == attempt]

    def ended(self) -> str:
        """All that stands below the cells, once none runs."""
        self.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        return "\n".join(self.panel.locator(".jp-OutputArea-output").all_inner_texts())

    def resume(self, name: str) -> None:
        """Type a run's id into the parameters cell."""
        line = self.panel.locator(".cm-line", has_text="resume: str = None")
        line.locator("span", has_text="None").dblclick()
        self.page.keyboard.insert_text(f'"{name}"')


def test_the_stop_button(page, lab):
    """Pressed once: a checkpoint, a report, one line; gone on with in the notebook; pressed twice: at once."""
    set_parameters(lab.project / "nbs/run_dapt.ipynb", TRAINING)
    notebook = Training(page, lab, "nbs/run_dapt.ipynb")
    notebook.run_all()
    notebook.until(lambda: notebook.steps(1))
    notebook.stop()
    said, folder = notebook.ended(), only_run(lab.runs)
    _, saved = checkpoints(folder)
    assert said.count(LINE) == 1 and "Traceback" not in said, said
    assert f"Interrupted: stopped at step {saved['step']}; go on with: " in said and f'resume = "{folder.name}" in the parameters cell' in said, said
    assert derive_status(folder) == "interrupted" and "was interrupted at step" in (folder / "report.html").read_text()

    notebook.resume(folder.name)
    notebook.run_all()
    notebook.until(lambda: notebook.steps(2))
    for _ in range(2): notebook.stop()
    said = notebook.ended()
    assert min(notebook.steps(2)) == saved["step"] + 1 # it went on from there
    assert said.count(LINE) == 1 and "Traceback" not in said, said
    assert f", at once; its last checkpoint is step {saved['step']}; go on with: " in said, said
    assert derive_status(folder) == "interrupted" and [one["step"] for one in checkpoints(folder)] == [0, saved["step"]]
