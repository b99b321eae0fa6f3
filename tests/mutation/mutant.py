"""Mutants: a function or class whose source differs from the original by one small edit."""

import ast
import inspect
import itertools
import linecache
import re
from contextlib import nullcontext
from dataclasses import dataclass

from mutation.edits import edits

# Numbers, names, spaces, brackets one by one, operators.
_TOKENS = re.compile(r"\d[\w.]*|\w+|\s+|[()\[\]{}]|[^\w\s()\[\]{}]+")


@dataclass(frozen=True)
class Mutant:
    """A function or class with one edit.

    Attributes:
        name: that of the original.
        line: the line of the original, from 1, in which the edit begins.
        diff: that line with the edit in braces, such as `while n {>= → >} 1:`. No two mutants have the same.
        source: the whole source.
    """

    name: str
    line: int
    diff: str
    source: str

    def build(self, reference):
        """Return the function or class, with the globals and the closure of `reference`; inspect finds its source."""
        file = f"<mutant of {self.name}, line {self.line}: {self.diff}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        # Under the name of a program, as if typed into a notebook: so ranks get it by value.
        names = {**_names_around(reference), "nullcontext": nullcontext, "__name__": "__main__"}
        exec(compile(self.source, file, "exec"), names)
        return names[self.name]


def mutants_of(reference, source):
    """Make every mutant that has a bytecode of its own and is more than a stub.

    Args:
        reference: the function or class.
        source: its source, with the definition at the left margin.

    Returns:
        A list of `Mutant`, in the order of the source.
    """
    pairs = sorted(edits(ast.parse(source)), key=lambda pair: _span(pair[0]))
    seen, diffs, found = {_bytecode(compile(source, "", "exec"))}, {}, []
    for node, new in pairs:
        text, diff = _edited(source, node, new)
        code = _bytecode(compile(text, "", "exec"))
        if code not in seen and not _is_stub(ast.parse(text).body[0]):
            seen.add(code)
            diffs[diff] = diffs.get(diff, 0) + 1
            number = f" (number {diffs[diff]})" if diffs[diff] > 1 else ""
            found.append(Mutant(reference.__name__, node.lineno, diff + number, text))
    return found


def _span(node):
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _edited(source, node, new):
    """The source with `new` in the place of `node`, and the line with the edit in braces."""
    encoded = source.encode()  # columns count bytes
    starts = [0, *itertools.accumulate(map(len, encoded.splitlines(keepends=True)))]
    start, stop = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    before, old, after = (part.decode() for part in (encoded[:start], encoded[start:stop], encoded[stop:]))
    bare = ast.unparse(ast.fix_missing_locations(new)).replace("'", '"')
    text = bare
    if isinstance(node, ast.expr):  # brackets where the operators around would take it apart
        wanted = ast.parse(f"{before}({bare}){after}")
        text = bare if _parses_as(before + bare + after, wanted) else f"({bare})"
    return before + text + after, _marked(before.rsplit("\n", 1)[-1], old, text, _rest(after))


def _parses_as(source, tree):
    try:
        return ast.dump(ast.parse(source)) == ast.dump(tree)
    except SyntaxError:
        return False


def _marked(before, old, new, after):
    """`before {old → new} after` in one line, with no more in braces than differs, in whole words."""
    if new == "pass" and "\n" in old:
        old = _rest(old) + " …"
    left, right = (_TOKENS.findall(" ".join(text.split())) for text in (old, new))
    first = 0 if new == "pass" else _num_alike(left, right)
    last = min(_num_alike(left[::-1], right[::-1]), len(left) - first, len(right) - first)
    head, tail = before.lstrip() + "".join(left[:first]), "".join(left[len(left) - last :]) + after
    old, new = "".join(left[first : len(left) - last]), "".join(right[first : len(right) - last])
    head, tail = _cut(head[::-1])[::-1], _cut(tail)
    return f"{head}{{{old} → {new}}}{tail}"


def _cut(text, width=60):
    return text if len(text) <= width else text[: width - 1] + "…"


def _rest(text):
    """The rest of a line, without its comment."""
    return text.split("\n", 1)[0].split("  #")[0]


def _num_alike(left, right):
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _bytecode(code):
    """What a code object does, without the lines where it stands."""
    constants = [_bytecode(c) if inspect.iscode(c) else (type(c), repr(c)) for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, getattr(code, "co_exceptiontable", b""), names, tuple(constants)


def _is_stub(definition):
    """Whether nothing is left of the body, or of a public method: an answer that is not attempted."""
    if isinstance(definition, ast.ClassDef):
        methods = [node for node in definition.body if isinstance(node, ast.FunctionDef)]
        return any(_is_stub(method) for method in methods if not method.name.startswith("_"))
    body = definition.body[ast.get_docstring(definition) is not None :]
    return all(isinstance(node, ast.Pass) or (isinstance(node, ast.Return) and node.value is None) for node in body)


def _names_around(reference):
    if inspect.isclass(reference):
        return vars(inspect.getmodule(reference))
    return {**reference.__globals__, **inspect.getclosurevars(reference).nonlocals}
