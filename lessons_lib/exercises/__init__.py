"""The exercises, one module per lesson: `from lessons_lib.exercises import all_reduce as exercise`."""

from lessons_lib.exercises.core import Exercise, Outcome, Verdict, all_exercises, by_rank, edit, on_ranks

__all__ = ["Exercise", "Outcome", "Verdict", "all_exercises", "by_rank", "edit", "on_ranks"]
