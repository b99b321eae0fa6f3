"""The models of the lessons, as plain torch modules."""

from .classifiers import LeNet, SimpleCNN, linear, mlp, parameter_count
from .feed_forward import MLP, MixtureOfExperts
from .gpt import GPT

__all__ = ["GPT", "MLP", "LeNet", "MixtureOfExperts", "SimpleCNN", "linear", "mlp", "parameter_count"]
