"""`python -m lessons_lib`: this machine and the lessons; with a command: bench, monitor or serve."""

import argparse
import itertools
import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .devices import measure, probe, report


class Lesson(NamedTuple):
    """What the first cell of a notebook says about it; "" or 0 where it says nothing."""

    name: str
    title: str
    question: str
    minutes: int
    part: str


def lessons(folder):
    """A `Lesson` for each notebook in `folder` whose name begins with a number, in the order of the names."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9]*-*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "".join(cells[0]["source"]) if cells else ""
        title = re.search(r"^#\s+(.+)", text, re.MULTILINE)
        question = re.search(r"[^.:*_>#\n]+\?", text)
        minutes = re.search(r"\*Time:\* (\d+) minutes", text)
        part = re.search(r"^\*Your path, (Part .+):\*$", text, re.MULTILINE)
        said = [each[1].strip() if each else "" for each in (title, minutes, part)]
        found.append(Lesson(path.stem, said[0], question[0].strip() if question else "", int(said[1] or 0), said[2]))
    return found


def main(arguments=None):
    parser = _parser()
    options = parser.parse_args(arguments)

    if options.command == "bench":
        from . import bench as benchmarks

        rows = benchmarks.main(quick=options.quick)
        if options.save:
            command = "python -m lessons_lib bench" + (" --quick" if options.quick else "")
            benchmarks.save(rows, options.save, command)
        return 0
    if options.command == "monitor":
        if not Path(options.folder).is_dir():
            parser.error(f"{options.folder}: there is no such folder")
        return _watch(options.folder, options.once)
    if options.command == "serve":
        from .serve.command import run

        return run(options, parser.error)
    print(report([measure(device) for device in probe()]), flush=True)
    _list_lessons()
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m lessons_lib",
        description="Without a command: what this machine is, how fast it is, and the list of lessons.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    bench = commands.add_parser("bench", help="measure this library beside torch on the same work")
    bench.add_argument("--quick", action="store_true", help="fewer sizes and repeats: seconds, not minutes")
    bench.add_argument("--save", metavar="FILE", help="write the rows as JSON, too")
    watch = commands.add_parser("monitor", help="show the heartbeats that ranks write into a folder")
    watch.add_argument("folder", help="that of their `Heart`s")
    watch.add_argument("--once", action="store_true", help="show them once, and not every second until Ctrl-C")
    server = commands.add_parser("serve", help="answer OpenAI's clients: a model over HTTP, until Ctrl-C or SIGTERM")
    server.add_argument("model", nargs="?", help="a file of serve.save_model; without, a tiny model is trained")
    server.add_argument("--host", default="127.0.0.1", help="where to listen; this machine alone, if not given")
    server.add_argument("--port", type=int, default=8000, help="0 takes one that is free")
    server.add_argument("--keys", metavar="FILE", help="a client has to send a key that is a line of this file")
    server.add_argument("--max-batch", type=int, default=16, help="sequences at once")
    server.add_argument("--max-queue", type=int, default=64, help="sequences that wait beside them")
    server.add_argument("--drain", type=float, default=30.0, help="seconds to finish what was accepted, at the end")
    return parser


def _list_lessons():
    found = lessons(Path(__file__).resolve().parent.parent / "notebooks")
    if not found:
        print("\nThe list of lessons needs a checkout of the project; this is the installed library alone.")
        return
    hours = round(sum(lesson.minutes for lesson in found) / 60)
    print(f"\nlessons, {hours} hours in all: jupyter lab notebooks/{found[0].name}.ipynb")
    for part, in_it in itertools.groupby(found, key=lambda lesson: lesson.part):
        in_it = list(in_it)
        if part:
            print(f"{part}, {sum(lesson.minutes for lesson in in_it)} minutes")
        for lesson in in_it:
            print(f"  {lesson.name:28}{lesson.minutes:4} min  {lesson.question or lesson.title}")


def _watch(folder, once):
    from . import monitor

    with suppress(KeyboardInterrupt):
        while True:
            print(monitor.report(folder), flush=True)
            if once:
                break
            time.sleep(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
