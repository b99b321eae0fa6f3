"""Where a piece of work finishes first: arithmetic on measured speeds."""

from dataclasses import dataclass, fields
from numbers import Real


@dataclass(frozen=True)
class Work:
    """A piece of work, as a device sees it.

    Args:
        flops: the number of floating-point operations.
        bytes_in, bytes_out: how many bytes are brought to the device before, and back after.
        bytes_touched: how many bytes are read plus written in the memory of the device.
        num_launches: how many operations the work consists of.

    Raises:
        ValueError: a number is negative.
    """

    flops: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    bytes_touched: float = 0.0
    num_launches: int = 1

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Real) or not value >= 0:
                raise ValueError(f"{field.name}={value!r}: a number of at least 0 is needed")


@dataclass(frozen=True)
class Prediction:
    """How long a piece of work takes on one device, and what the time goes to."""

    device: str
    transfer_s: float
    launch_s: float
    compute_s: float

    @property
    def total_s(self):
        return self.transfer_s + self.launch_s + self.compute_s


@dataclass(frozen=True)
class Decision:
    """The device on which the work finishes first, and the predictions for all of them, fastest first."""

    device: str
    predictions: tuple[Prediction, ...]

    @property
    def time_s(self):
        """Predicted seconds by device: {"cuda:0": 0.001, "cpu": 0.2}."""
        return {prediction.device: prediction.total_s for prediction in self.predictions}

    def __str__(self):
        lines = [f"{'milliseconds':14}{'total':>10}{'transfer':>10}{'launch':>10}{'compute':>10}"]
        for p in self.predictions:
            times = (p.total_s, p.transfer_s, p.launch_s, p.compute_s)
            lines.append(f"{p.device:14}" + "".join(f"{1e3 * time_s:>10.3f}" for time_s in times))
        return "\n".join([*lines, f"{self.device} finishes first"])


def predict(work, m):
    """Predict how long a piece of work takes on a device (lesson 07).

        transfer = round_trip + bytes_in / to_device + bytes_out / from_device
        launch   = num_launches · launch
        compute  = max(flops / flops_per_s, bytes_touched / memory)      whichever the device runs out of first

    The three are added; a device that overlaps them is faster than this.

    Args:
        work: a `Work`.
        m: the `Measurement` of the device.

    Returns:
        A `Prediction`.

    Source: for compute, the roofline model, Williams et al. (2009).
    """
    transfer_s = m.round_trip_s + work.bytes_in / m.to_device_Bps + work.bytes_out / m.from_device_Bps
    compute_s = max(work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps)
    return Prediction(m.device, transfer_s, work.num_launches * m.launch_s, compute_s)


def dispatch(work, measurements):
    """Choose the device on which a piece of work finishes first, transfer included (lesson 07).

    Args:
        work: a `Work`.
        measurements: a list of `Measurement`, such as [measure(device) for device in probe()]. Of equals the first
            wins.

    Returns:
        A `Decision`, which says why.

    Raises:
        ValueError: the list is empty.
    """
    predictions = sorted((predict(work, m) for m in measurements), key=lambda p: p.total_s)
    if not predictions:
        raise ValueError("measurements=[]: the Measurement of at least one device is needed")
    return Decision(predictions[0].device, tuple(predictions))
