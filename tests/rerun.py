"""Execute notebooks in place and keep of them what is the same on every machine.

python tests/rerun.py                            all notebooks
python tests/rerun.py notebooks/11-*.ipynb       some of them

Prints time, peak memory of all processes of the kernel, and the slowest cells. A notebook in which a cell
fails is left as it was.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import pathlib
import re
import sys
import threading
import time
from dataclasses import dataclass

import nbformat
import psutil
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PREDICTION = "**Predict.**"
GUESS = re.compile(r"^(guess\w*) = .*# your guess: \w", re.MULTILINE)


@dataclass
class Measured:
    """What running a notebook took; `peak_bytes` is None where it cannot be measured."""

    time_s: float
    cell_times_s: list
    peak_bytes: int | None

    def __str__(self):
        memory = f"{self.peak_bytes / 1e6:.0f} MB" if self.peak_bytes else "memory not measured"
        slowest = sorted(enumerate(self.cell_times_s, 1), key=lambda pair: -pair[1])[:3]
        return f"{self.time_s:.1f} s, {memory}; slowest cells: " + ", ".join(f"[{n}] {t:.1f} s" for n, t in slowest)


class PeakMemory:
    """The most memory that the process `pid` and all its descendants held together while the body ran.

    Linux only: the sum of the proportional set sizes, which share a page out among the processes that map it.
    The system takes milliseconds to add up the pages of one process: a tenth of the time goes into looking, at most.
    """

    def __init__(self, pid, interval_s=0.05):
        self.pid, self.interval_s, self.bytes = pid, interval_s, None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        if sys.platform == "linux":
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self):
        took_s = 0.0
        while not self._done.wait(max(self.interval_s, 9 * took_s)):
            start_s = time.perf_counter()
            self.bytes = max(self.bytes or 0, self._now())
            took_s = time.perf_counter() - start_s

    def _now(self):
        try:
            kernel = psutil.Process(self.pid)
            pids = [self.pid, *(child.pid for child in kernel.children(recursive=True))]
        except psutil.NoSuchProcess:
            return 0
        return sum(map(proportional_set_size, pids))


def proportional_set_size(pid):
    """Bytes of memory of a process, a page shared by n processes counted as 1/n; 0 when it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE).group(1))


def read(path):
    """The notebook at `path`; a cell without an id gets one made from its source."""
    raw = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    seen = set()
    for cell in raw["cells"]:
        name = cell.get("id") or hashlib.sha1("".join(cell["source"]).encode()).hexdigest()[:8]
        while name in seen:
            name = hashlib.sha1(name.encode()).hexdigest()[:8]
        cell["id"] = name
        seen.add(name)
    raw["nbformat"], raw["nbformat_minor"] = 4, 5
    return nbformat.reads(json.dumps(raw), as_version=4)


@contextlib.contextmanager
def kernel(notebook, folder):
    """A client with a fresh kernel in `folder` for the cells of `notebook`, whose outputs are dropped."""
    client = NotebookClient(notebook, timeout=180, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(folder)}}
    client.reset_execution_trackers()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with client.setup_kernel():
        yield client


def execute(client):
    """Run all cells of a notebook in order, and return what it took. A failing cell raises."""
    start, times = time.perf_counter(), []
    with PeakMemory(client.km.provisioner.pid) as memory:
        for index, cell in enumerate(client.nb.cells):
            began = time.perf_counter()
            client.execute_cell(cell, index)
            if cell.cell_type == "code":
                times.append(time.perf_counter() - began)
    return Measured(time.perf_counter() - start, times, memory.bytes)


def execute_backwards(client, shipped):
    """Run the cells of `shipped`, the last one first, in a kernel that has run all of them or their like before.

    Each cell then finds every name as the end of the lesson left it. The stubs of the exercises come before all others.

    Returns:
        The cells that fail, or print something else than `shipped` has below them, with what they print. What is tagged
        "nbval-ignore-output" may print anything.
    """
    client.allow_errors, other = True, []
    backwards = [index for index, cell in reversed(list(enumerate(shipped.cells))) if cell.cell_type == "code"]
    for index in sorted(backwards, key=lambda index: "exercise" not in shipped.cells[index].metadata.get("tags", [])):
        cell, stored = client.nb.cells[index], shipped.cells[index]
        cell.source, cell.outputs = stored.source, []
        client.execute_cell(cell, index)
        failed = any(output.output_type == "error" for output in cell.outputs)
        ignored = "nbval-ignore-output" in stored.metadata.get("tags", [])
        if failed or (not ignored and printed(cell) != printed(stored)):
            other.append(f"[{index}] {stored.source}\n{printed(cell)}")
    return other


# Runs in the kernel, and leaves no name there. Images may change their size, which is what they show, and colour keys.
MOVE_SLIDERS = """
def _move_sliders():
    import gc
    from lessons_lib.show.control import Control

    def limits(control):
        axes = [ax for ax in control.picture.figure.axes if not ax.images and ax.get_label() != "<colorbar>"]
        return [(*ax.get_xlim(), *ax.get_ylim()) for ax in axes]

    for control in [each for each in gc.get_objects() if type(each) is Control]:
        before = limits(control)
        for name, slider in control.widgets.items():
            start = slider.value
            for end in (slider.min, slider.max) if hasattr(slider, "min") else ():
                slider.value = end
                if control.message.value:
                    print(f"{control.picture.alt}: {control.message.value}")
                elif limits(control) != before:
                    print(f"{control.picture.alt}: {name}={end}: {limits(control)} instead of {before}")
            slider.value = start

_move_sliders()
"""


def move_sliders(client):
    """Move each slider of a lesson that has run to both its ends; what is said where an axis does not stay still."""
    cell = nbformat.v4.new_code_cell(MOVE_SLIDERS)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1)
    return printed(client.nb.cells.pop())


def printed(cell):
    """The text below a cell: what it prints, the text of its results, and its errors."""
    texts = []
    for output in cell.outputs:
        texts += [output.get("text", ""), output.get("data", {}).get("text/plain", ""), output.get("evalue", "")]
    return without_erased("".join(texts))


def without_erased(text):
    """The text that is left where carriage returns have overwritten lines."""
    return re.sub(r"^.*\r(?=[^\n])", "", text, flags=re.MULTILINE)


def fill(notebook):
    """Put the reference of its exercise into every cell tagged "exercise"; the names of the exercises."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    module = re.search(r"from lessons_lib\.exercises import (\w+)", code).group(1)
    exercises, filled = importlib.import_module(f"lessons_lib.exercises.{module}"), []
    for cell in notebook.cells:
        if "exercise" in cell.metadata.get("tags", []):
            defined = [node.name for node in ast.parse(cell.source).body if hasattr(node, "name")]
            name = next(name for name in defined if hasattr(getattr(exercises, name, None), "check"))
            cell.source = getattr(exercises, name).source()
            filled.append(name)
    return filled


def answers(notebook):
    """The ids of the cells whose outputs tell what the reader is asked to predict.

    They begin below "**Predict.**" and the cell with the guess, if there is one, and end with the run of code cells in
    which the guess is first used. A cell that uses another guess of the same prediction later is an answer too.
    """
    ids, guesses, open_, told = [], set(), False, False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if PREDICTION in cell.source:
                open_, told, guesses = True, False, set()
            elif told:
                open_ = False
        elif found := GUESS.findall(cell.source):
            guesses |= set(found)
        else:
            used = {name for name in guesses if re.search(rf"\b{name}\b", cell.source)}
            told = told or bool(used) or not guesses
            guesses -= used
            if cell.outputs and (open_ or used):
                ids.append(cell.id)
    return ids


def clean(notebook):
    """Drop what differs from machine to machine or from run to run, and fold the outputs that tell an answer."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    folded = answers(notebook)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"jupyter": {"outputs_hidden": True}} if cell.id in folded else {}
        cell.metadata |= {"tags": tags} if tags else {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
            output.pop("transient", None)
            if "text" in output:
                output.text = without_erased(output.text)
    return nbformat.from_dict(notebook)


def main(paths):
    for path in paths or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = read(path)
        with kernel(notebook, pathlib.Path(path).resolve().parent) as client:
            measured = execute(client)
        text = nbformat.writes(clean(notebook), version=4)
        pathlib.Path(path).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        print(f"{pathlib.Path(path).name}: {measured}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", nargs="*", type=pathlib.Path, help="default: all in notebooks/")
    main(parser.parse_args().notebook)
