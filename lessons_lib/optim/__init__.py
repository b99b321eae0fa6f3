"""The optimisers of lesson 03: drop-in for torch's, each a file that reads as its equation."""

from lessons_lib.optim.adam import Adam, AdamW
from lessons_lib.optim.rmsprop import RMSProp
from lessons_lib.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSProp"]
