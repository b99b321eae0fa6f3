"""The optimisers of lesson 03: drop-in for torch's, each a file that reads as its equation."""

from .adam import Adam, AdamW
from .rmsprop import RMSProp
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSProp"]
