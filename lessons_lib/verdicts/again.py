"""The cells of a trial, run again outside their lesson, with the earlier cells that they need."""

import ast
import builtins
import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Again:
    """What the cells of a trial print, and what they printed when the lesson was recorded.

    Attributes:
        now, then: the texts.
        cells: the indices of the cells that were run, earlier ones of the lesson included.
    """

    now: str
    then: str
    cells: tuple[int, ...]

    @property
    def same(self):
        """Whether something was printed, and both times the same."""
        return self.now == self.then != ""


def run_again(folder, trial):
    """Run the cells of a trial once more, and compare what they print with what is stored below them.

    Of the cells before them those are run first that give a value to a name which is used. What is displayed and not
    printed, such as a picture, is neither shown nor compared.

    Args:
        folder: the folder with the notebooks.
        trial: a `Trial` of `read_trials(folder)`.

    Returns:
        An `Again`.

    Raises:
        ValueError: the trial has no cells.
        Exception: whatever one of the cells raises.
    """
    if not trial.cells:
        raise ValueError(f"trial={trial.title!r}: a trial with cells is needed")
    cells = json.loads((Path(folder) / trial.lesson).read_text(encoding="utf-8"))["cells"]
    sources = {k: "".join(cell["source"]) for k, cell in enumerate(cells) if cell["cell_type"] == "code"}
    run = [*_needed(sources, trial.cells), *trial.cells]
    names, printed = {"__name__": "__main__"}, {}
    with _torch_as_new():
        for index in run:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(sources[index], f"<{trial.lesson}, cell {index}>", "exec"), names)
            printed[index] = out.getvalue()
    streams = [output for index in trial.cells for output in cells[index]["outputs"] if "text" in output]
    then = "".join("".join(output["text"]) for output in streams)
    return Again("".join(printed[index] for index in trial.cells), then, tuple(run))


@contextlib.contextmanager
def _torch_as_new():
    """Lessons set torch's default dtype and seed, for the whole process: neither goes in, and neither comes out."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    dtype, random = torch.get_default_dtype(), torch.get_rng_state()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(random)


def _needed(sources, wanted_by):
    """The cells before those of `wanted_by` that define what they use, and what these use in turn, in order."""
    wanted, needed = set(), []
    for index in reversed([index for index in sources if index <= wanted_by[-1]]):
        used, defined = _names(ast.parse(sources[index]))
        if index in wanted_by or wanted & defined:
            needed.append(index)
            wanted = wanted - defined | used
    return [index for index in reversed(needed) if index not in wanted_by]


def _names(tree):
    """(names that a cell uses before it gives them a value, names that it gives a value)."""
    used, defined = set(), set()
    for statement in tree.body:
        used |= _loads(statement) - defined - set(dir(builtins))
        defined |= _stores(statement)
    return used, defined


def _loads(node):
    """Names that are read in `node` and come from outside it."""
    own = set()
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        own = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
    if isinstance(node, ast.FunctionDef):
        own |= set().union(*map(_stores, node.body))
    if isinstance(node, ast.For):
        own = _stores(node.target)
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        own = set().union(*(_stores(each.target) for each in node.generators))
    if isinstance(node, ast.With):
        own = set().union(*(_stores(each.optional_vars) for each in node.items if each.optional_vars))
    read = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set()
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        read = {node.target.id}
    return read.union(*map(_loads, ast.iter_child_nodes(node))) - own


def _stores(node):
    """Names that `node` gives a value, those within functions left out."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return set()
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    return set().union(*map(_stores, ast.iter_child_nodes(node)))
