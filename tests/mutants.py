"""Give every mutant of every exercise's reference to the check, which must reject it.

python tests/mutants.py [--jobs N] [lesson or lesson.exercise ...]

A mutant is the reference with one small edit (tests/mutation/). One that computes the same as the reference is listed
in tests/equivalents/<lesson>.py: `equivalent = {exercise: {diff: why it computes the same}}`, and must be accepted.
"""

import argparse
import collections
import multiprocessing
import os
import pathlib
import queue
import runpy
import signal
import sys
import threading
import time
from contextlib import redirect_stdout
from dataclasses import dataclass

import torch
from mutation.mutant import Mutant, mutants_of

from lessons_lib.devices import usable_cores
from lessons_lib.exercises import all_exercises

EQUIVALENTS = pathlib.Path(__file__).parent / "equivalents"
MEMORY_BYTES = 6 << 30  # of one process that checks mutants: more than any exercise needs
HUNG_S = 120  # a check that takes so long does not come back: each of its cases has at most 20 s


@dataclass(frozen=True)
class Trial:
    """A mutant, what the check said of it, and the reason if it is listed as equivalent to the reference.

    Attributes:
        exercise: "lesson.exercise".
        mutant: a `Mutant`.
        answer: a state of a verdict; else what became of the check: "raised …", "hung" or "crashed".
        reason: why the mutant computes the same as the reference, or "".
    """

    exercise: str
    mutant: Mutant
    answer: str
    reason: str

    @property
    def fault(self):
        """What is wrong with the check or with the list of equivalents, "" if nothing is."""
        if self.reason:
            return "" if self.answer == "correct" else f"listed as equivalent, but {self.answer}"
        return {"not yet": "", "correct": "survived"}.get(self.answer, self.answer)


def exercises(names=()):
    """{"lesson.exercise": Exercise} of the named lessons and exercises, or of all."""
    found = {f"{lesson}.{name}": task for lesson, tasks in all_exercises().items() for name, task in tasks.items()}
    unknown = [name for name in names if not any(name in (label, label.split(".")[0]) for label in found)]
    if unknown:
        raise ValueError(f"names={unknown}: lessons or exercises such as losses or losses.log_sum_exp are needed")
    return {label: task for label, task in found.items() if not names or {label, label.split(".")[0]} & set(names)}


def equivalents():
    """{"lesson.exercise": {diff: reason}}: the mutants that compute the same as the reference."""
    lists = {path.stem: runpy.run_path(str(path))["equivalent"] for path in sorted(EQUIVALENTS.glob("*.py"))}
    return {f"{lesson}.{name}": diffs for lesson, found in lists.items() for name, diffs in found.items()}


def run(chosen, jobs, hung_s=HUNG_S):
    """Check mutants in `jobs` processes, which are replaced when a mutant has spoiled them.

    Args:
        chosen: {"lesson.exercise": list of its mutants to check}.
        jobs: how many processes.
        hung_s: how long one check may take.

    Yields:
        A `Trial` for each mutant, in the order in which they end.
    """
    reasons, waiting, done = equivalents(), queue.SimpleQueue(), queue.SimpleQueue()
    for label, mutants in chosen.items():
        for start in range(0, len(mutants), 16):
            waiting.put((label, mutants[start : start + 16]))
    threads = [threading.Thread(target=_serve, args=(waiting, done, hung_s), daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for _ in range(sum(map(len, chosen.values()))):
        label, mutant, answer = done.get()
        if isinstance(answer, Exception):
            raise answer
        yield Trial(label, mutant, answer, reasons.get(label, {}).get(mutant.diff, ""))


def _serve(waiting, done, hung_s):
    """Hand batches to one process after another until none waits."""
    worker = None
    try:
        while True:
            label, mutants = waiting.get_nowait()
            worker = worker or _Worker()
            before, *answers, after = worker.check(label, mutants, hung_s)
            if before != "correct" and worker.is_new:
                raise RuntimeError(f"the check of {label} says of the reference itself: {before}")
            if before != "correct":  # an earlier batch has spoiled the process
                waiting.put((label, mutants))
            # A mutant that changes, without an error, what another reference computes later would not be noticed here.
            elif after == "correct" or len(mutants) == 1:
                for mutant, answer in zip(mutants, answers, strict=True):
                    done.put((label, mutant, answer))
            else:  # one of them may have decided what became of the others: each alone
                for mutant in mutants:
                    waiting.put((label, [mutant]))
            worker.is_new = False
            if before != "correct" or after != "correct":
                worker.kill()
                worker = None
    except queue.Empty:
        pass
    except Exception as error:
        done.put(("", None, error))
    finally:
        if worker:
            worker.kill()


class _Worker:
    """A process that checks mutants, seen from the one that gives them out.

    Attributes:
        is_new: whether no mutant has been in it.
    """

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_work, args=(pipe,))
        self._process.start()
        pipe.close()
        self._pipe.recv()  # all is imported
        self.is_new = True

    def check(self, label, mutants, hung_s):
        """What became of the reference, of each mutant, and of the reference again; an end is the end of all."""
        self._pipe.send((label, mutants))
        answers, num_answers = [], len(mutants) + 2
        try:
            while len(answers) < num_answers:
                if not self._pipe.poll(hung_s):
                    return answers + ["hung"] * (num_answers - len(answers))
                answers.append(self._pipe.recv())
        except EOFError:
            return answers + ["crashed"] * (num_answers - len(answers))
        return answers

    def kill(self):
        """End the process and those that it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()


def _work(pipe):
    """Check the reference, the mutants and the reference again, of one batch after another, for ever."""
    os.setsid()
    torch.set_num_threads(1)
    _limit_memory()
    tasks, reasons, limits_s = exercises(), equivalents(), {}
    pipe.send("ready")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        while True:
            label, mutants = pipe.recv()
            task = tasks[label]
            task.mistakes = ()  # a hint takes time and changes no state
            start_s = time.perf_counter()
            pipe.send(answer(task, task.reference))
            if label not in limits_s:
                took_s = time.perf_counter() - start_s
                limits_s[label] = task.time_limit_s, min(task.time_limit_s, 2 + 5 * took_s)
            for mutant in mutants:
                # A mutant that is to be accepted has all the time that an answer has.
                task.time_limit_s = limits_s[label][mutant.diff not in reasons.get(label, {})]
                pipe.send(answer(task, mutant.build(task.reference)))
            pipe.send(answer(task, task.reference))


def answer(task, function):
    """What becomes of a check: the state of its verdict, or what it raised."""
    try:
        return task.check(function).state
    except BaseException as error:
        return f"raised {type(error).__name__}"


def _limit_memory():
    """Let a mutant that takes ever more memory have a MemoryError, where the system knows such a limit."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def table(trials):
    """Rows of text: each exercise with its numbers, then everything that is wrong, one mutant per line."""
    rows = [f"{'exercise':44}{'mutants':>9}{'rejected':>10}{'equivalent':>12}{'survived':>10}{'score':>8}"]
    by_exercise = collections.defaultdict(list)
    for trial in trials:
        by_exercise[trial.exercise].append(trial)
    for label, own in [*sorted(by_exercise.items()), ("all", trials)]:
        equivalent = sum(bool(trial.reason) for trial in own)
        faults = sum(bool(trial.fault) for trial in own if not trial.reason)
        different = len(own) - equivalent
        score = f"{100 * (different - faults) / max(different, 1):.0f} %"
        rows.append(f"{label:44}{len(own):9}{different - faults:10}{equivalent:12}{faults:10}{score:>8}")
    faulty = sorted((t for t in trials if t.fault), key=lambda t: (t.exercise, t.mutant.line, t.mutant.diff))
    return [*rows, "", *(f"{t.exercise}, line {t.mutant.line}: {t.mutant.diff}  [{t.fault}]" for t in faulty)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="lessons, or exercises such as losses.log_sum_exp (default: all)")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes at a time (default: the cores)")
    arguments = parser.parse_args()
    chosen = {label: mutants_of(t.reference, t.source()) for label, t in exercises(arguments.names).items()}
    trials = []
    for trial in run(chosen, arguments.jobs):
        trials.append(trial)
        if sys.stderr.isatty():
            print(f"\r{len(trials)} of {sum(map(len, chosen.values()))}", end="", file=sys.stderr)
    print("\n".join(table(trials)))
    return any(trial.fault for trial in trials)


if __name__ == "__main__":
    sys.exit(main())
