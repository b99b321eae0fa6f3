"""Cells of lessons are easy before they are short: limits on what one line may hold, beside those on length."""

import ast

import nbformat
import pytest
from rerun import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
READ = (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.BinOp, ast.Compare, ast.IfExp, ast.Lambda, ast.Starred)
READ += (ast.comprehension,)
MAX_READ = 20  # names, operations and calls in a line; half of all lines have 6 or fewer, one in a hundred more than 18
MAX_CALLS = 3  # calls in the argument of one another
MAX_BOUND = 3  # names that one line gives a value each


def too_dense(source):
    """What makes the cell `source` hard to read: a list of (line, rule)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for rule, broken in RULES.items():
            if broken(node):
                found.append((node.lineno, rule))
    return found


def within(node, kinds):
    """Whether something of the `kinds` stands within `node`, and is not `node` itself."""
    return any(isinstance(inner, kinds) for inner in ast.walk(node) if inner is not node)


def starred_target(node):
    targets = [node.target] if isinstance(node, ast.For) else [each.target for each in getattr(node, "generators", [])]
    return any(within(target, ast.Starred) for target in targets)


def unpacked_comprehension(node):
    return isinstance(node, ast.Call) and any(
        isinstance(argument, ast.Starred) and within(argument, COMPREHENSIONS) for argument in node.args
    )


def nested_comprehension(node):
    """A table, that is a list within a list or within a dictionary, is what may be nested, two deep."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    table = isinstance(node, ast.ListComp | ast.DictComp)
    inner = [each for each in ast.walk(node) if isinstance(each, COMPREHENSIONS) and each is not node]
    return any(not (table and isinstance(each, ast.ListComp)) or within(each, COMPREHENSIONS) for each in inner)


def many_values(node):
    return (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
    ) and len(node.value.elts) > MAX_BOUND


def binding_argument(node):
    return isinstance(node, ast.Call) and any(isinstance(argument, ast.NamedExpr) for argument in node.args)


def nested_condition(node):
    return isinstance(node, ast.IfExp) and within(node, ast.IfExp)


def nested_calls(node):
    return isinstance(node, ast.stmt) and max(map(calls_deep, lines_of(node)), default=0) > MAX_CALLS


def calls_deep(node):
    """How many calls stand in the arguments of one another; in a chain, a.b().c(), they follow each other."""
    if isinstance(node, ast.Call):
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        return max(calls_deep(node.func), 1 + max(map(calls_deep, arguments), default=0))
    return max(map(calls_deep, ast.iter_child_nodes(node)), default=0)


def full_line(node):
    if not isinstance(node, ast.stmt):
        return False
    parts = lines_of(node)
    read = sum(isinstance(each, READ) for part in parts for each in ast.walk(part))
    lines = 1 if parts != [node] else node.end_lineno - node.lineno + 1
    return read > MAX_READ * lines


def lines_of(statement):
    """What stands in the first line of a compound statement, or all of a simple one."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Try):
        return []
    if isinstance(statement, ast.For):
        return [statement.target, statement.iter]
    if isinstance(statement, ast.While | ast.If):
        return [statement.test]
    return statement.items if isinstance(statement, ast.With) else [statement]


RULES = {
    "no star in the target of a for": starred_target,
    "no comprehension behind a star": unpacked_comprehension,
    "no comprehension in a comprehension, but for tables": nested_comprehension,
    f"at most {MAX_BOUND} values bound in a line": many_values,
    "no := in an argument": binding_argument,
    "no if … else within another": nested_condition,
    f"at most {MAX_CALLS} calls in one another's arguments": nested_calls,
    f"at most {MAX_READ} names, operations and calls in a line": full_line,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_line_of_a_lesson_is_too_dense(path):
    found = []
    for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            found += [f"{rule}: {lines[line - 1].strip()}" for line, rule in too_dense(cell.source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "source"),
    list(
        zip(
            RULES,
            [
                "for (name, w), *grads in zip(named, *ranks, strict=True):\n    pass",
                "pairs = zip(*(grad(y, leaves) for y in both), strict=True)",
                "rises = {name: sum(a > 0 for a in values) for name, values in losses.items()}",
                "free, taken, device, spans = [0.0], [], 0.0, []",
                "train(network, feed, spans := [])",
                "verdict = 'in' if a < P < b else 'below' if P <= a else 'above'",
                "rows = list(learning(model, SGD(model.parameters(), lr=rate(step))))",
                "sum((odd(x[k:64:4], more=k == 0) - x[k:64:4]).square().mean() / 4 for k in range(4)).backward()",
            ],
            strict=True,
        )
    ),
    ids=[broken.__name__ for broken in RULES.values()],
)
def test_a_rule_finds_what_was_hard_to_read(rule, source):
    assert rule in [broken for _, broken in too_dense(source)]


def test_honest_lines_are_not_too_dense():
    table = "curves = {name: (sizes, [1e3 * simulate(f(n), M).total_s for n in sizes]) for name, f in all.items()}"
    chain = "right = (model(x_test.flatten(1)).argmax(1) == y_test).double().mean().item()"
    several = "figure, title, axes = show.figure(height=3.4), 'loss', {'logx': True, 'logy': True}"
    for source in (table, chain, several, "grid = [[a * b for b in rows] for a in columns]"):
        assert too_dense(source) == []
