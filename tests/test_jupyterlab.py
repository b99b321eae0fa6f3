"""The lessons in the place where they are read: JupyterLab in a browser runs all cells, and its controls work."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from playwright.sync_api import Error, sync_playwright
from rerun import ROOT

from lessons_lib import show

LESSONS = sorted(path.name for number in ("00", "11") for path in (ROOT / "notebooks").glob(f"{number}-*.ipynb"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = ".jp-OutputArea-output img"
CONTROLS = f".jp-OutputArea-child:has([role=slider]):has({PICTURES})"
IDLE = """() => {
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""
ERRORS = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells;
    const outputs = cells.flatMap(cell => cell.cell_type === "code" ? cell.getOutputs() : []);
    const broken = [...document.querySelectorAll(".jupyter-widgets-error-widget")].map(node => node.innerText);
    return [...outputs.filter(o => o.output_type === "error").map(o => `${o.ename}: ${o.evalue}`), ...broken];
}"""
NUMBERS = """() => [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(node => node.innerText.trim())"""


@pytest.fixture(scope="module")
def browser(request):
    """Chromium without a window; where there is none, a skip with its reason, or a failure with --require-browser."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    where = {"executable_path": found} if found else {"channel": "chrome"}
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(args=ARGUMENTS, **where)
        except Error as error:
            stop = pytest.fail if request.config.option.require_browser else pytest.skip
            stop(f"no Chromium or Chrome starts here: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@contextlib.contextmanager
def serve(folder):
    """The address and token of a JupyterLab on folder/notebooks that leaves nothing outside `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(folder / kind) for kind in ("SETTINGS", "WORKSPACES")}
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1", f"--port={port}"]
    options += [f"--notebook-dir={folder}/notebooks"]
    log = folder / "log"
    with (
        open(log, "w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=output, stderr=output, env=os.environ | own
        ) as server,
    ):
        try:
            while not (found := list((folder / "RUNTIME").glob("jpserver-*.json"))):
                assert server.poll() is None and log.stat().st_mtime > time.time() - 60, log.read_text()
                time.sleep(0.1)
            running = json.loads(found[0].read_text())
            yield running["url"], running["token"]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on copies of the notebooks without their outputs, so that what is seen was computed there."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    settings = folder / "SETTINGS/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # cells out of sight are in the page too
    with serve(folder) as place:
        yield place


@pytest.fixture
def page(browser, tmp_path):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    yield page
    page.screenshot(path=tmp_path / "at-the-end.png")
    page.close()


def run_all_cells(page, place, lesson):
    url, token = place
    page.goto(f"{url}lab/tree/{lesson}?reset&token={token}", timeout=120_000)
    page.wait_for_function(IDLE, timeout=120_000)
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    numbers = page.evaluate(NUMBERS)
    finished = [f"[{n}]:" for n in range(1, len(numbers) + 1)]
    give_up = time.perf_counter() + 180
    while numbers != finished and not page.evaluate(ERRORS) and time.perf_counter() < give_up:
        page.wait_for_timeout(100)
        numbers = page.evaluate(NUMBERS)
    assert page.evaluate(ERRORS) == []
    assert numbers == finished
    page.wait_for_function(IDLE, timeout=60_000)


def picture_of(control):
    return control.locator("img").first.get_attribute("src")


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_runs_and_its_controls_change_the_picture(lesson, lab, page, record_property):
    start = time.perf_counter()
    run_all_cells(page, lab, lesson)
    record_property("took", f"{lesson} in JupyterLab: {time.perf_counter() - start:.1f} s")
    controls = page.locator(CONTROLS)
    assert controls.count() > 0
    texts = [image.get_attribute("alt") for image in page.locator(PICTURES).all()]
    assert len(texts) >= 2 and all(texts), "a picture without an alternative text"
    for control in controls.all():
        before, handle = picture_of(control), control.get_by_role("slider").first
        at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.press("ArrowLeft" if at_the_end else "ArrowRight")
        give_up = time.perf_counter() + 20
        while picture_of(control) == before:
            assert time.perf_counter() < give_up, "the picture stays as it was"
            page.wait_for_timeout(50)
    assert page.evaluate(ERRORS) == []


def test_the_lessons_to_open_are_there():
    assert len(LESSONS) == 2


def test_a_table_is_sorted_by_its_headings(browser):
    """Numbers as numbers, text as text, what is empty last; by the keyboard too."""
    numbers, names = [10, 9, None, 100], ["b", "C", "a", "*B2*"]
    rows = [{"number": number, "name": name} for number, name in zip(numbers, names, strict=True)]
    page = browser.new_page()
    page.set_content(show.table(rows, "a table").html())

    def column(k):
        return [cell.inner_text() for cell in page.locator(f"tbody td:nth-child({k})").all()]

    page.get_by_role("button", name="number").click()
    assert column(1) == ["9", "10", "100", ""]
    page.get_by_role("button", name="number").press("Enter")
    assert column(1) == ["100", "10", "9", ""]
    assert page.locator("th").first.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="name").click()
    assert column(2) == ["a", "b", "B2", "C"]
    assert [head.get_attribute("aria-sort") for head in page.locator("th").all()] == [None, "ascending"]
    page.close()
