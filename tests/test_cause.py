"""Which of several failures is raised, tried without processes: what ranks reported, and the error it comes to."""

import pytest

from lessons_lib import CollectiveMismatch, RankFailed
from lessons_lib.launch.cause import Report, cause
from lessons_lib.trace import Span, Trace


def ended(how):
    return Report("ended", error=how)


def raised(words, details="its traceback"):
    return Report("error", error=words, details=details)


def waited(rank, why="was waited for"):
    return Report("error", error=RankFailed(rank, f"rank {rank} {why}"), details="a wait's traceback")


def disagreed(**calls):
    return Report("error", error=CollectiveMismatch({int(name[1:]): call for name, call in calls.items()}))


DONE = Report("result", 1)


@pytest.mark.parametrize(
    ("reports", "rank", "reason"),
    [
        ({0: raised("raised ValueError: x")}, 0, "rank 0 raised ValueError: x"),
        ({0: DONE, 1: raised("raised ValueError: x")}, 1, "rank 1 raised ValueError: x"),
        # The lowest rank speaks for several alike, whoever reported first.
        ({2: raised("raised B"), 1: raised("raised A")}, 1, "rank 1 raised A"),
        ({3: ended("was killed by SIGKILL"), 2: ended("ended with exit code 5")}, 2, "rank 2 ended with exit code 5"),
        # A process that ended comes before an error, an error before a disagreement, a disagreement before a wait.
        ({0: raised("raised A"), 1: ended("was killed by SIGKILL")}, 1, "rank 1 was killed by SIGKILL"),
        ({0: waited(2), 1: disagreed(r0="a", r1="b"), 2: raised("raised A")}, 2, "rank 2 raised A"),
        # Who waits for one that waits is not the cause.
        ({0: waited(1), 1: waited(2)}, 2, "rank 2 was waited for; rank 1 was waited for"),
        ({0: waited(1, "a"), 1: waited(2, "b"), 3: waited(0, "c")}, 2, "rank 2 b; rank 1 a; rank 0 c"),
        ({1: waited(0), 2: waited(1), 3: waited(2), 0: DONE}, 0, "rank 0 was waited for; rank 1 was waited for"),
        ({0: waited(1), 1: waited(0)}, 1, "rank 1 was waited for; rank 0 was waited for"),
        # A whole collective of torch cannot tell for whom it waits, and who failed by itself names itself.
        ({0: waited(None), 1: waited(3, "a"), 2: waited(3, "b")}, 3, "rank 3 a; rank None was waited for; rank 3 b"),
        ({0: waited(None), 1: waited(0), 2: waited(None), 3: waited(3, "is stopped")}, 3, "rank 3 is stopped"),
        ({1: waited(1, "returned what cannot be sent")}, 1, "rank 1 returned what cannot be sent"),
        ({0: waited(None, "is not known")}, None, "rank None is not known"),
    ],
)
def test_the_rank_that_explains_the_others_is_named(reports, rank, reason):
    error = cause(reports)
    assert isinstance(error, RankFailed)
    assert error.rank == rank and error.reason.startswith(reason)


def test_the_traceback_is_the_one_of_the_error_that_is_raised():
    assert cause({0: waited(1), 1: raised("raised A")}).details == "its traceback"
    assert cause({0: waited(1), 1: ended("was killed by SIGKILL")}).details == ""
    assert cause({0: waited(1), 1: waited(2)}).details == "a wait's traceback"


def test_a_disagreement_names_what_every_rank_said_of_it():
    error = cause({0: disagreed(r0="barrier()", r1="send(1)"), 1: waited(0), 2: disagreed(r2="recv(0)")})
    assert isinstance(error, CollectiveMismatch)
    assert error.calls == {0: "barrier()", 1: "send(1)", 2: "recv(0)"}


@pytest.mark.parametrize("failure", [ended("was killed"), raised("raised A"), waited(1), disagreed(r1="a")])
def test_the_error_carries_what_all_ranks_recorded(failure):
    failure.trace = Trace([Span(1, "work", 2.0, 3.0)])
    other = Report("result", 1, trace=Trace([Span(0, "work", 1.0, 2.0)]))
    assert [(span.rank, span.start_s) for span in cause({1: failure, 0: other}).trace.spans] == [(0, 0.0), (1, 1.0)]
    failure.trace = None
    assert cause({1: failure}).trace.spans == []
