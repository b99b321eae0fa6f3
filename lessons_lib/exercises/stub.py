"""Whether anybody has written the answer yet."""

import dis
import inspect


def is_stub(fn):
    """Whether nobody has written `fn` yet: its body is `...`, `pass`, `return None` or raises NotImplementedError.

    A class is a stub when one of its public methods is a stub.
    """
    if fn is None or fn is ...:
        return True
    if inspect.isclass(fn):
        return any(is_stub(v) for k, v in vars(fn).items() if inspect.isfunction(v) and not k.startswith("_"))
    try:
        code = getattr(inspect.unwrap(fn), "__code__", None)
    except Exception:  # an object that fails when it is asked for anything
        return False
    if code is None:
        return False
    # What the compiler puts before the first statement, in any version of Python from 3.10 on.
    setup = {"RESUME", "NOP", "CACHE", "PRECALL", "PUSH_NULL", "MAKE_CELL", "COPY_FREE_VARS"}
    steps = [step for step in dis.get_instructions(code) if step.opname not in setup]
    if steps[0].argval == "NotImplementedError":
        return all(step.opname.startswith(("LOAD_", "CALL", "RAISE_")) for step in steps[1:])
    return len(steps) <= 2 and steps[-1].opname.startswith("RETURN") and steps[0].argval in (None, ...)
