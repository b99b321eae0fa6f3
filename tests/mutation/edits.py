"""The small edits that make mutants of a function or class, such as people get wrong.

Constants are raised and lowered, comparisons and operators exchanged, conditions negated or always true, statements
dropped, neighbouring arguments swapped, loops made shorter or longer, what is done in place is done out of place, …
"""

import ast
import copy
import itertools

import torch

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mod),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitXor: (ast.BitOr, ast.Add),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}
# Names of functions and methods, and texts, that are taken for one another.
CONFUSED = {
    "min": ("max",),
    "max": ("min",),
    "amin": ("amax",),
    "amax": ("amin",),
    "argmin": ("argmax",),
    "argmax": ("argmin",),
    "minimum": ("maximum",),
    "maximum": ("minimum",),
    "sum": ("mean", "max"),
    "mean": ("sum",),
    "all": ("any",),
    "any": ("all",),
    "ceil": ("floor",),
    "floor": ("ceil",),
    "zeros": ("ones",),
    "ones": ("zeros",),
    "zeros_like": ("ones_like",),
    "ones_like": ("zeros_like",),
    "tril": ("triu",),
    "triu": ("tril",),
    "no_grad": ("enable_grad",),
    "enable_grad": ("no_grad",),
    "add": ("copy",),
    "copy": ("add",),
}
DROPPED_CALLS = ("list", "tuple", "sorted", "reversed", "abs", "int", "float")
DROPPED_METHODS = ("clone", "detach", "contiguous", "copy")
SYMMETRIC = ("min", "max", "minimum", "maximum", "transpose")  # the order of their arguments is all the same


def edits(tree):
    """Pairs (node, node to put in its place)."""
    nodes = _editable(tree)
    for node in nodes:
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from ((node, new) for new in _statements(node))
        if type(node) in RULES:
            yield from ((node, new) for new in RULES[type(node)](node))
        yield from _conditions(node)
        yield from _surroundings(node)
    yield from _exchanges(nodes)


def _editable(tree):
    """All nodes but docstrings, `strict=…`, which changes no value, and f-strings."""
    skipped = set()
    for node in ast.walk(tree):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        strict = isinstance(node, ast.keyword) and node.arg == "strict"
        # Before Python 3.12 the nodes within an f-string do not say where they stand.
        if docstring or strict or isinstance(node, ast.JoinedStr):
            skipped.update(ast.walk(node))
    return [node for node in ast.walk(tree) if node not in skipped]


def _conditions(node):
    """Each condition turned round (a comparison turns round by itself), or always true."""
    tests = [node.test] if isinstance(node, ast.If | ast.While | ast.IfExp) else []
    for test in node.ifs if isinstance(node, ast.comprehension) else tests:
        if not isinstance(test, ast.Compare) or len(test.ops) > 1:
            yield test, ast.UnaryOp(ast.Not(), test)
        if not isinstance(node, ast.While):
            yield test, ast.Constant(True)


def _surroundings(node):
    """A loop that leaves out the last item, and a block without what surrounds it."""
    if isinstance(node, ast.For | ast.comprehension) and not _is_call(node.iter, "range"):
        yield node.iter, ast.parse(f"list({ast.unparse(node.iter)})[:-1]", mode="eval").body
    if isinstance(node, ast.With):
        yield from ((item.context_expr, ast.parse("nullcontext()", mode="eval").body) for item in node.items)


def _exchanges(nodes):
    """A text or a peer (`src=`, `dst=`) in the place of another one of the function."""
    texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    peers = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg in ("src", "dst")]
    for node in texts:
        known = [ast.Constant(text) for text in CONFUSED.get(node.value, ())]
        yield from ((node, new) for new in known or _next(node, texts) or [ast.Constant(node.value + "_")])
    for node in peers:
        yield from ((node, new) for new in _next(node, peers))


def _next(node, others):
    """The one that follows `node` among those that are written differently, going round; an empty list if none is."""
    different = {ast.unparse(other): other for other in others}
    keys = list(different)
    following = keys[(keys.index(ast.unparse(node)) + 1) % len(keys)]
    return [different[following]] if len(keys) > 1 else []


def _statements(node):
    """What may stand in the place of a statement."""
    yield ast.Pass()
    if isinstance(node, ast.AugAssign):
        yield from (_with(node, op=op()) for op in OPERATORS.get(type(node.op), ()))
        yield ast.Assign([node.target], ast.BinOp(node.target, node.op, node.value), lineno=node.lineno)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp):
        left = ast.unparse(node.value.left)
        yield from (ast.AugAssign(x, node.value.op, node.value.right) for x in node.targets if ast.unparse(x) == left)
    if isinstance(node, ast.Return) and node.value:
        yield ast.Return()
        if isinstance(node.value, ast.Tuple):
            yield ast.Return(node.value.elts[0])
            yield from (ast.Return(_with(node.value, elts=elts)) for elts in _swapped(node.value.elts))


def _constants(node):
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int | float):
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))


def _comparisons(node):
    for i, op in enumerate(node.ops):
        yield from (_with(node, ops=[*node.ops[:i], new(), *node.ops[i + 1 :]]) for new in COMPARISONS[type(op)])


def _operators(node):
    yield from (_with(node, op=new()) for new in OPERATORS.get(type(node.op), ()))
    if isinstance(node.op, ast.MatMult):
        yield _with(node, left=node.right, right=node.left)


def _booleans(node):
    yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    for i in range(len(node.values)):
        rest = node.values[:i] + node.values[i + 1 :]
        yield rest[0] if len(rest) == 1 else _with(node, values=rest)


def _signs(node):
    yield node.operand


def _calls(node):
    if getattr(node.func, "id", getattr(node.func, "attr", "")) not in SYMMETRIC:
        yield from (_with(node, args=args) for args in _swapped(node.args))
    for keyword in node.keywords:
        if keyword.arg != "strict":
            yield _with(node, keywords=[other for other in node.keywords if other is not keyword])
    if _is_call(node, "range"):
        yield from _ranges(node)
    if isinstance(node.func, ast.Name):
        yield from (_with(node, func=ast.Name(name)) for name in CONFUSED.get(node.func.id, ()) if name != "mean")
        if node.func.id in DROPPED_CALLS and len(node.args) == 1:
            yield node.args[0]
    if isinstance(node.func, ast.Attribute):
        yield from (_with(node, func=_with(node.func, attr=name)) for name in _method_names(node))
        if node.func.attr in DROPPED_METHODS and not node.args:
            yield node.func.value


def _method_names(call):
    """Methods that may stand in the place of the one that is called."""
    name = call.func.attr
    yield from (other for other in CONFUSED.get(name, ()) if hasattr(torch.Tensor, other) or hasattr(torch, other))
    if name.endswith("_") and not name.endswith("__"):
        yield name.rstrip("_")
    # Of a value without a name nobody sees whether it changes in place.
    elif isinstance(_changed(call), ast.Name) and hasattr(torch.Tensor, name + "_"):
        yield name + "_"


def _changed(call):
    """What a method or a function of torch would change if it worked in place; None if it is no tensor."""
    owner = call.func.value
    if isinstance(owner, ast.Name) and owner.id in ("torch", "math"):
        return call.args[0] if owner.id == "torch" and call.args else None
    return owner


def _ranges(node):
    one, (first, *ends) = ast.Constant(1), node.args
    yield _with(node, args=[ast.BinOp(first, ast.Add(), one), *ends] if ends else [one, first])
    stop = ends[0] if ends else first
    if not (isinstance(stop, ast.BinOp) and isinstance(stop.right, ast.Constant)):  # else n + 1 is made n and n + 2
        for op in ast.Sub(), ast.Add():
            other = ast.BinOp(stop, op, one)
            yield _with(node, args=[first, other, *ends[1:]] if ends else [other])


RULES = {
    ast.Constant: _constants,
    ast.Compare: _comparisons,
    ast.BinOp: _operators,
    ast.BoolOp: _booleans,
    ast.UnaryOp: _signs,
    ast.Call: _calls,
}


def _swapped(items):
    """The list with each pair of neighbours swapped in turn; what is starred stays in its place."""
    for i, pair in enumerate(itertools.pairwise(items)):
        if not any(isinstance(item, ast.Starred) for item in pair):
            yield [*items[:i], *pair[::-1], *items[i + 2 :]]


def _is_call(node, name):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _with(node, **fields):
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
