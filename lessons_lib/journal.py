"""Records that outlive the process that writes them: a file of its own for each writer, a line for each record."""

import json
from dataclasses import asdict


def note(path, record):
    """Append a dataclass, whose values JSON can hold, to the file `path`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def notes(path, kind):
    """All records of the dataclass `kind` in the file `path`, none if there is no file.

    A line that is not ended is none: its writer is still at it, or has died in it.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [kind(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]
