"""A nested state as a flat one: a name for each tensor and each plain value, and back (lesson 21)."""

import torch

PLAIN = (bool, int, float, str, type(None))
# How a name says what its container is: "weight" is a key of a dict, "#3" the key 3, "[0" a place in a list, "(0" one
# in a tuple. Keys that begin so themselves, or hold a slash, are escaped by "~".
_ESCAPES = (("~", "~0"), ("/", "~1"), ("#", "~2"), ("[", "~3"), ("(", "~4"))
_EMPTY = {dict: "{}", list: "[]", tuple: "()"}


def pack(state, name):
    """Take a state apart.

    Args:
        state: what a `state_dict()` gives: tensors, plain values, and lists, tuples and dicts of them, whose keys are
            texts or whole numbers.
        name: stands before all names.

    Returns:
        {name: tensor}, {name: plain value}. Tensors are as they are; an empty container is a value.

    Raises:
        TypeError: something else is in it, which is named.
    """
    tensors, values = {}, {}
    _take_apart(state, name, tensors, values)
    return tensors, values


def _take_apart(state, name, tensors, values):
    if isinstance(state, torch.Tensor):
        tensors[name] = state
    elif isinstance(state, PLAIN):
        values[name] = state
    elif isinstance(state, dict | list | tuple):
        if not state:
            values[name] = {"empty": _EMPTY[_kind(state)]}
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in pairs:
            _take_apart(value, f"{name}/{_word(key, _kind(state), name)}", tensors, values)
    else:
        raise TypeError(
            f"{name} is a {type(state).__name__}: tensors, numbers, texts, None, and dicts, lists and tuples of them "
            "can be kept"
        )


def _kind(container):
    return next(kind for kind in _EMPTY if isinstance(container, kind))


def _word(key, kind, name):
    if kind is not dict:
        return f"{'[' if kind is list else '('}{key}"
    if isinstance(key, int) and not isinstance(key, bool):
        return f"#{key}"
    if not isinstance(key, str):
        raise TypeError(f"{name} has the key {key!r}: texts and whole numbers can be kept")
    for character, escape in _ESCAPES:
        key = key.replace(character, escape)
    return key


def unpack(entries, name):
    """Put a state together again.

    Args:
        entries: {name: tensor or value}; those of other names are passed over.
        name: what stood before all names.

    Raises:
        KeyError: there is nothing of that name.
    """
    if name in entries:
        return _leaf(entries[name])
    root = {}
    for path, value in entries.items():
        if path.startswith(name + "/"):
            *above, last = path[len(name) + 1 :].split("/")
            node = root
            for word in above:
                node = node.setdefault(word, {})
            node[last] = _leaf(value)
    if not root:
        raise KeyError(name)
    return _put_together(root)


def _leaf(value):
    if isinstance(value, dict):
        return next(kind for kind, sign in _EMPTY.items() if sign == value["empty"])()
    return value


def _put_together(node):
    if not isinstance(node, dict) or not node:
        return node
    built = {word: _put_together(value) for word, value in node.items()}
    first = next(iter(built))[:1]
    if first in ("[", "("):
        in_order = [built[word] for word in sorted(built, key=lambda word: int(word[1:]))]
        return in_order if first == "[" else tuple(in_order)
    return {_key(word): value for word, value in built.items()}


def _key(word):
    if word.startswith("#"):
        return int(word[1:])
    for character, escape in reversed(_ESCAPES):
        word = word.replace(escape, character)
    return word
