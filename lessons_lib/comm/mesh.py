"""A mesh: the ranks as a grid with named axes, and a group along each of them."""

from math import prod

from ..errors import check_whole


class Mesh:
    """Number the ranks of a communicator along named axes, the last one fastest. All ranks call it together.

    `Mesh(comm, dp=2, pp=2, tp=2)` puts ranks 0 and 1 next to each other along tp: neighbours along the last axis share
    the fastest wire where ranks are numbered machine by machine.

    Args:
        comm: a `Communicator`.
        sizes: how many ranks there are along each axis.

    Attributes:
        comm: the communicator of all ranks of the mesh.
        sizes: {axis: how many ranks}.
        coordinates: {axis: where this rank is}, from 0.

    Raises:
        ValueError: no axis, a size below one, or a product of sizes that is not the number of ranks.
    """

    def __init__(self, comm, /, **sizes):
        for axis, size in sizes.items():
            check_whole(axis, size, 1)
        product = " * ".join(f"{axis}={size}" for axis, size in sizes.items())
        if not sizes:
            raise ValueError("no axis: one or more are needed, such as Mesh(comm, dp=2, tp=2)")
        if prod(sizes.values()) != comm.world_size:
            raise ValueError(f"{product} = {prod(sizes.values())}: a product of {comm.world_size} is needed, the ranks")
        self.comm, self.sizes, self.coordinates, rest = comm, dict(sizes), {}, comm.rank
        for axis, size in reversed(sizes.items()):
            rest, self.coordinates[axis] = divmod(rest, size)
        self.coordinates = {axis: self.coordinates[axis] for axis in sizes}
        self._groups = {(axis,): self._split([axis]) for axis in sizes}

    def __repr__(self):
        axes = ", ".join(f"{axis}={at} of {self.sizes[axis]}" for axis, at in self.coordinates.items())
        return f"Mesh(rank {self.comm.rank}: {axes})"

    def __getitem__(self, axes):
        """The group of the ranks that differ from this one along `axes` alone.

        `mesh["tp"]` is at hand. The ranks of `mesh["dp", "tp"]` are numbered with the last of these axes fastest; all
        ranks ask for it together the first time. What a group does counts under its axes' name, such as "dp, tp".
        """
        axes = (axes,) if isinstance(axes, str) else axes
        if not isinstance(axes, tuple) or not axes or len(set(axes)) < len(axes) or not set(axes) <= set(self.sizes):
            named = ", ".join(map(repr, self.sizes))
            raise ValueError(
                f"axis={axes[0] if axes and len(axes) == 1 else axes!r}: one or more of {named} are needed"
            )
        if axes not in self._groups:
            self._groups[axes] = self._split(axes)
        return self._groups[axes]

    def _split(self, axes):
        """The group along `axes`; those of equal coordinates along all others are in one."""
        return self.comm.split(
            color=self._number([axis for axis in self.sizes if axis not in axes]),
            key=self._number(axes),
            name=", ".join(axes),
        )

    def _number(self, axes):
        """This rank's coordinates along `axes` as one number, the last axis fastest."""
        number = 0
        for axis in axes:
            number = number * self.sizes[axis] + self.coordinates[axis]
        return number
