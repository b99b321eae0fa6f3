"""The museum: training that looks healthy and is wrong, each exhibit met by people in real code (lesson 23).

An exhibit is one function of a communicator and `record`. With `mended=True` it does the same, but for the line that
was wrong.
"""

from .exhibit import Exhibit, table
from .gradients import GRADIENTS
from .layers import LAYERS
from .samples import SAMPLES
from .state import STATE

__all__ = ["EXHIBITS", "Exhibit", "table"]

EXHIBITS = {exhibit.name: exhibit for exhibit in [*GRADIENTS, *SAMPLES, *LAYERS, *STATE]}
