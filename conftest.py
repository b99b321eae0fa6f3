"""What every test session shares: fonts, notebooks that may be slow to print, and a browser that may be required."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

LONGEST = "test_notebooks.py", "test_exercises.py"
PICTURE = re.compile(r'<img [^>]*src="data:image/png;base64,[^"]*">')


def pytest_addoption(parser):
    group = parser.getgroup("gradient-to-cluster")
    group.addoption("--require-browser", action="store_true", help="fail, do not skip, where there is no Chromium")
    group.addoption("--locked", action="store_true", help="fail, do not skip, beside other versions than the lock's")
    group.addoption("--two-machines", action="store_true", help="fail, do not skip, without network namespaces")
    group.addoption("--all-mutants", action="store_true", help="check all mutants of the references (many minutes)")
    group.addoption("--fresh-environment", action="store_true", help="install binder/ into a new environment (minutes)")


def pytest_configure(config):
    """Shells start background jobs with interrupts ignored, and every process below would ignore them too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        own_list_of_fonts(config)


def own_list_of_fonts(config):
    """Matplotlib's list of fonts outlives the environment that wrote it: a stale one makes cells warn that draw."""
    folder = tempfile.mkdtemp(prefix="matplotlib-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["MPLCONFIGDIR"] = folder  # workers and kernels inherit it
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)


def pytest_itemcollected(item):
    if hasattr(item, "output_timeout"):  # a notebook cell of nbval, which waits 5 s for output by default
        item.output_timeout = 60
        compare = item.compare_outputs
        item.compare_outputs = lambda test, ref, **more: compare(without_pictures(test), without_pictures(ref), **more)


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no worker begins one of them when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def without_pictures(outputs):
    """Outputs of a cell without pictures in HTML: nbval compares no PNG, whose pixels differ with the versions."""
    outputs = copy.deepcopy(outputs)
    for output in outputs:
        if PICTURE.fullmatch(output.get("data", {}).get("text/html", "")):
            del output["data"]["text/html"]
    return outputs


def pytest_terminal_summary(terminalreporter):
    """List what tests recorded as "took": a time is worth reading and never a reason to fail."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = [text for report in reports for name, text in getattr(report, "user_properties", []) if name == "took"]
    if lines:
        terminalreporter.section("notebooks")
        for line in lines:
            terminalreporter.line(line)
