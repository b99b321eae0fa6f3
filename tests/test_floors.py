"""Imports go down the floors, never up and never in a circle: read from the source, without running it."""

import ast
import json
from pathlib import Path

import pytest

PACKAGE = "lessons_lib"
NOTEBOOKS, ROOT = 5, 3  # the floor of the lessons; of `import lessons_lib` itself, which offers launch and connect
FLOORS = {
    **dict.fromkeys(("autograd", "compress", "data", "devices", "errors", "losses", "memory", "models"), 0),
    **dict.fromkeys(("journal", "optim", "privacy", "shards", "trace", "trace_events", "verdicts", "waits"), 0),
    "schedules": 0.5,
    "comm": 1,
    **dict.fromkeys(("checkpoint", "cost", "monitor", "parallel"), 2),
    **dict.fromkeys(("launch", "train", "bench", "check_run", "museum", "pager", "capstone", "serve", "__main__"), 3),
    **dict.fromkeys(("show", "exercises"), 4),
}
WITHOUT_TORCH = "schedules"  # and all that it imports
APART = [("show", "exercises")]  # on one floor, but neither may know the other
REPOSITORY = Path(__file__).resolve().parent.parent


def modules(repository):
    """{dotted name: path} of every file of the library; a package has the name of its folder."""
    found = {}
    for path in sorted((repository / PACKAGE).rglob("*.py")):
        parts = path.relative_to(repository).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree, module, is_package, known):
    """(line, dotted name) of every module of the library that `tree` imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if is_package else -1] if node.level else []
            base = base[: len(base) - node.level + 1] if node.level > 1 else base
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in known else source for name in names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == PACKAGE)


def floor(module):
    """The floor of a dotted name, or None for a place that has none yet."""
    parts = module.split(".")
    return ROOT if len(parts) == 1 else FLOORS.get(parts[1])


def violations(repository):
    """One line for each import that goes up, sideways where it may not, nowhere, or round in a circle."""
    known, problems, graph = modules(repository), [], {}
    for module, path in known.items():
        where, is_package = path.relative_to(repository).as_posix(), path.name == "__init__.py"
        if floor(module) is None:
            problems.append(f"{where}:1: {module} is on no floor: name one in {Path(__file__).name}")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[module] = {}
        for line, target in imports(tree, module, is_package, known):
            graph[module].setdefault(target, f"{where}:{line}")
            problems += check(f"{where}:{line}", module, floor(module), target, known)
    for path in sorted((repository / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            lines = "".join(cell["source"]).splitlines()
            if cell["cell_type"] == "code" and lines and not lines[0].startswith("%%"):
                tree = ast.parse("\n".join("pass" if line.startswith(("%", "!")) else line for line in lines))
                where = f"notebooks/{path.name}, cell {number}"
                for line, target in imports(tree, "notebook", False, known):
                    problems += check(f"{where}, line {line}", "the notebook", NOTEBOOKS, target, known)
    return problems + circles(graph) + torch_below(graph, known, repository)


def check(where, module, own_floor, target, known):
    if target not in known:
        return [f"{where}: {module} imports {target}, which does not exist"]
    if floor(target) is not None and floor(target) > own_floor:
        return [f"{where}: {module} (floor {own_floor}) imports {target} (floor {floor(target)}): up"]
    places = {name.removeprefix(f"{PACKAGE}.").split(".")[0] for name in (module, target)}
    if any(places == set(pair) for pair in APART):
        return [f"{where}: {module} imports {target}: these two stay apart"]
    return []


def circles(graph):
    """Each import that closes a circle, found by walking the graph depth first."""
    problems, done, path = [], set(), []

    def walk(module):
        path.append(module)
        for target, where in graph[module].items():
            if target in path:
                circle = " → ".join([*path[path.index(target) :], target])
                problems.append(f"{where}: {module} imports {target}: a circle, {circle}")
            elif target in graph and target not in done:
                walk(target)
        done.add(path.pop())

    for module in graph:
        if module not in done:
            walk(module)
    return problems


def torch_below(graph, known, repository):
    """Each import of torch in what must do without, and in all that is imported there."""
    problems, todo = [], [name for name in graph if name.split(".")[1:2] == [WITHOUT_TORCH]]
    seen = set(todo)
    for module in todo:
        for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == "torch" for name in names):
                where = known[module].relative_to(repository).as_posix()
                problems.append(f"{where}:{node.lineno}: {module} imports torch, which {WITHOUT_TORCH} does without")
        todo += [name for name in graph.get(module, {}) if name in known and name not in seen]
        seen.update(graph.get(module, {}))
    return problems


def test_imports_go_down_and_never_in_a_circle():
    assert not (problems := violations(REPOSITORY)), "\n".join(problems)


SOUND = {
    "lessons_lib/__init__.py": "from .launch import launch\n",
    "lessons_lib/losses.py": "import torch\n",
    "lessons_lib/trace.py": "import time\n",
    "lessons_lib/schedules/__init__.py": "from .ring import ring\n",
    "lessons_lib/schedules/schedule.py": "",
    "lessons_lib/schedules/ring.py": "from .schedule import Schedule\nfrom .. import trace\n",
    "lessons_lib/comm/transport.py": "import torch\nfrom ..schedules import ring\n",
    "lessons_lib/parallel/data.py": "from lessons_lib.schedules import ring\n",
    "lessons_lib/launch/__init__.py": "from .launch import launch\n",
    "lessons_lib/launch/launch.py": "from ..comm import transport\nimport lessons_lib.parallel.data\n",
    "lessons_lib/show/lines.py": "from ..launch import launch\n",
    "lessons_lib/exercises/core.py": "from lessons_lib import launch\n",
}
LESSON = "import torch\nfrom lessons_lib import launch\nfrom lessons_lib.exercises import core\n%time x = 1"


@pytest.fixture
def tree(tmp_path):
    """A sound tree; `tree(path, source)` adds to a file of it and gives the violations."""

    def add(path="lessons_lib/losses.py", source=""):
        for name, text in {**SOUND, path: SOUND.get(path, "") + source}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return violations(tmp_path)

    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01-x.ipynb").write_text(
        json.dumps({"cells": [{"cell_type": "code", "source": LESSON}, {"cell_type": "markdown", "source": "("}]})
    )
    return add


def test_a_sound_tree_passes(tree):
    assert tree() == []


UP = "imports lessons_lib.{} (floor {}): up"


@pytest.mark.parametrize(
    "path, source, expected",
    [
        ("lessons_lib/losses.py", "from .schedules.ring import ring\n", ":2: lessons_lib.losses (floor 0) imports"),
        ("lessons_lib/losses.py", "def f():\n    from lessons_lib import launch\n", ":3: " + "lessons_lib.losses"),
        ("lessons_lib/schedules/ring.py", "from ..comm import transport\n", UP.format("comm.transport", 1)),
        ("lessons_lib/schedules/ring.py", "from ..parallel import data\n", UP.format("parallel.data", 2)),
        ("lessons_lib/schedules/ring.py", "def f():\n    import torch.nn\n", "imports torch, which schedules"),
        ("lessons_lib/trace.py", "from torch import nn\n", ":2: lessons_lib.trace imports torch, which schedules"),
        ("lessons_lib/parallel/data.py", "import lessons_lib.launch as start\n", UP.format("launch", 3)),
        ("lessons_lib/launch/launch.py", "from lessons_lib.show.lines import x\n", UP.format("show.lines", 4)),
        ("lessons_lib/exercises/core.py", "from ..show import lines\n", "these two stay apart"),
        ("lessons_lib/schedules/schedule.py", "from . import ring\n", "a circle, lessons_lib.schedules.ring"),
        ("lessons_lib/schedules/ring.py", "from lessons_lib.schedules import ring\n", "a circle"),
        ("lessons_lib/launch/launch.py", "import lessons_lib\n", "a circle, lessons_lib → lessons_lib.launch.launch"),
        ("lessons_lib/attic.py", "", "attic.py:1: lessons_lib.attic is on no floor"),
        (
            "lessons_lib/launch/launch.py",
            "from .nowhere import x\n",
            "lessons_lib.launch.nowhere, which does not exist",
        ),
    ],
)
def test_a_planted_violation_is_caught(tree, path, source, expected):
    problems = tree(path, source)
    assert any(problem.startswith(path) and expected in problem for problem in problems), problems


def test_a_notebook_that_imports_what_is_not_there_is_caught(tree, tmp_path):
    cell = {"cell_type": "code", "source": ["import torch\n", "import lessons_lib.shwo\n"]}
    (tmp_path / "notebooks/02-y.ipynb").write_text(json.dumps({"cells": [cell]}))
    (problem,) = tree()
    assert problem.startswith("notebooks/02-y.ipynb, cell 0, line 2: the notebook imports lessons_lib.shwo")
