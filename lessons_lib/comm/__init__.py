"""What a rank holds: its communicator, and the transports and memory under it (lessons 10 and 11)."""

from .communicator import Communicator
from .mesh import Mesh
from .shared_memory import SharedMemoryTransport
from .torch_transport import TorchTransport

__all__ = ["Communicator", "Mesh", "SharedMemoryTransport", "TorchTransport"]
