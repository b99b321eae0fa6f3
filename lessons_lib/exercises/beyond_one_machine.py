"""Exercises of lesson 22: α and β of a wire, the memory of a plan, the cheapest one, and when to buy."""

from math import inf

from lessons_lib.exercises.core import Exercise, edit

# --- alpha_beta: fit a line ------------------------------------------------------------------------------------------


def alpha_beta(sizes_bytes, times_s):
    """Return (alpha_s, bandwidth_Bps) of the line that fits messages best: time = alpha_s + size / bandwidth_Bps.

    sizes_bytes, times_s: of each message, two lists of one length, with at least two different sizes.
    Best is the line for which the sum of the squared differences of the times is smallest. You may assume that it
        rises.
    """
    mean_bytes, mean_s = sum(sizes_bytes) / len(sizes_bytes), sum(times_s) / len(times_s)
    pairs = [(size - mean_bytes, time - mean_s) for size, time in zip(sizes_bytes, times_s, strict=True)]
    s_per_byte = sum(size * time for size, time in pairs) / sum(size * size for size, _ in pairs)
    return mean_s - s_per_byte * mean_bytes, 1 / s_per_byte


def _slope(sizes_bytes, times_s):
    """You return seconds per byte. Asked is its inverse, bytes per second."""
    alpha_s, bandwidth_Bps = alpha_beta.reference(sizes_bytes, times_s)
    return alpha_s, 1 / bandwidth_Bps


def _two_points(sizes_bytes, times_s):
    """You draw the line through the smallest and the largest message. What lies between counts as much: fit all."""
    (small, small_s), (large, large_s) = (f(zip(sizes_bytes, times_s, strict=True)) for f in (min, max))
    bandwidth_Bps = (large - small) / (large_s - small_s)
    return small_s - small / bandwidth_Bps, bandwidth_Bps


def _largest_alone(sizes_bytes, times_s):
    """You divide a size by its time. That time has alpha in it, even in a large message: fit the slope."""
    size, time_s = max(zip(sizes_bytes, times_s, strict=True))
    return alpha_beta.reference(sizes_bytes, times_s)[0], size / time_s


def _smallest_is_alpha(sizes_bytes, times_s):
    """You take the time of the smallest message for alpha. Its bytes take time too."""
    return min(times_s), alpha_beta.reference(sizes_bytes, times_s)[1]


alpha_beta = Exercise(
    alpha_beta,
    [
        ([0, 1000], [1e-3, 2e-3]),
        ([1000, 2000, 4000], [2e-3, 3e-3, 5e-3]),
        ([1024, 1024, 4096], [1e-5, 3e-5, 5e-5]),
        ([1e3, 1e4, 1e5, 1e6], [2.1e-5, 2.9e-5, 1.2e-4, 1.02e-3]),
        ([4e6, 1e3, 2e6], [4.3e-4, 3e-5, 2.1e-4]),  # in any order
        ([8, 16, 32, 64], [0.5, 0.4, 0.7, 0.9]),
        ([10, 20, 30], [0.9, 2.2, 3.1]),  # alpha comes out below 0
        ([1, 2], [3.0, 5.0]),
        ([1, 1, 2, 3], [1.0, 2.0, 4.0, 5.0]),  # one size twice counts twice
        ([0, 2**32, 2**33], [1.0, 2.0, 3.5]),
        ([0, 1000, 2000], [1e-5, 1.5e-5, 3e-5]),
    ],
    [
        _slope,
        _two_points,
        _largest_alone,
        _smallest_is_alpha,
        edit(
            "mean_s - s_per_byte * mean_bytes",
            "mean_s",
            "The line goes through the two means: alpha is where its size is 0.",
        ),
    ],
    [
        "The best line goes through the point of the two means.",
        "Its slope is Σ(size − mean)(time − mean) / Σ(size − mean)², in seconds per byte.",
        "alpha_s = mean time − slope · mean size, and the bandwidth is 1 / slope.",
    ],
    rtol=1e-6,
    atol=1e-12,
)


# --- memory_per_device -----------------------------------------------------------------------------------------------


def memory_per_device(num_weights, dp, tp, pp, zero):
    """Return the bytes that one device holds: weights, gradients and the state of Adam in mixed precision.

    num_weights: of the whole model; tp and pp cut them evenly.
    Each weight that a device has takes 2 bytes, its gradient 2, and the state of the optimiser 12.
    zero: the stage of ZeRO. From 1 on dp divides the optimiser's state, from 2 on gradients too, from 3 on weights too.
    """
    own = num_weights / (tp * pp)
    optimizer = 12 * own / (dp if zero >= 1 else 1)
    gradients = 2 * own / (dp if zero >= 2 else 1)
    weights = 2 * own / (dp if zero >= 3 else 1)
    return weights + gradients + optimizer


def _dp_divides_all(num_weights, dp, tp, pp, zero):
    """You let dp divide everything in every stage. Replicas have whole weights until stage 3, and without ZeRO all."""
    return 16 * num_weights / (tp * pp * dp)


def _order_reversed(num_weights, dp, tp, pp, zero):
    """You begin with the weights. ZeRO divides what is largest first: the state of the optimiser, then gradients."""
    own = num_weights / (tp * pp)
    parts = [2, 2, 12]
    return own * sum(size / (dp if zero > stage else 1) for stage, size in enumerate(parts))


def _pipeline_forgotten(num_weights, dp, tp, pp, zero):
    """You forget that a pipeline cuts the layers: each of its ranks has a part of the weights alone."""
    return memory_per_device.reference(num_weights, dp, tp, 1, zero)


memory_per_device = Exercise(
    memory_per_device,
    [
        (7.5e9, 64, 1, 1, 0),  # the table of lesson 14: 120, 31.4, 16.6 and 1.9 GB
        (7.5e9, 64, 1, 1, 1),
        (7.5e9, 64, 1, 1, 2),
        (7.5e9, 64, 1, 1, 3),
        (175e9, 1, 8, 8, 0),
        (175e9, 16, 8, 8, 1),
        (530e9, 4, 8, 35, 3),
        (530e9, 4, 8, 35, 2),
        (1e9, 1, 1, 1, 3),
        (1e9, 2, 4, 3, 1),
        (100.0, 3, 7, 1, 1),
        (100.0, 3, 1, 1, 2),
        (100.0, 7, 1, 1, 3),
        (10.0, 1, 2, 2, 0),
    ],
    [_dp_divides_all, _order_reversed, _pipeline_forgotten],
    [
        "First the weights of one device: tp and pp cut them, dp does not.",
        "Then each of the three parts for itself: 12, 2 and 2 bytes per weight, divided by dp from its stage on.",
        "`12 * own / (dp if zero >= 1 else 1)`, and so on for 2 and 3.",
    ],
)


# --- cheapest: which plan --------------------------------------------------------------------------------------------


def cheapest(plans, memory_bytes, num_devices):
    """Return the name of the plan whose step costs least among those that fit, or None if none fits.

    plans: a list of (name, devices, bytes per device, seconds of a step).
    memory_bytes: of each device; a plan may fill it to the last byte. num_devices: that there are.
    A step costs its devices times its seconds. Of plans that cost the same the faster one is better, and of those that
    are as fast too the one that comes first.
    """
    best, least = None, (float("inf"), float("inf"))
    for name, devices, size_bytes, step_s in plans:
        cost = (devices * step_s, step_s)
        if size_bytes <= memory_bytes and devices <= num_devices and cost < least:
            best, least = name, cost
    return best


def _fastest(plans, memory_bytes, num_devices):
    """You take the fastest. A plan on twice as many devices that is not twice as fast costs more."""
    fit = [plan for plan in plans if plan[2] <= memory_bytes and plan[1] <= num_devices]
    return min(fit, key=lambda plan: (plan[3], plan[1] * plan[3]))[0] if fit else None


def _does_it_fit(plans, memory_bytes, num_devices):
    """You do not ask whether it fits into a device's memory. The cheapest plan is often one that does not run."""
    return cheapest.reference(plans, inf, num_devices)


def _enough_devices(plans, memory_bytes, num_devices):
    """You do not ask whether there are so many devices."""
    return cheapest.reference(plans, memory_bytes, inf)


cheapest = Exercise(
    cheapest,
    [
        ([("a", 8, 60, 1.0), ("b", 16, 40, 0.6), ("c", 4, 90, 1.5)], 80, 16),
        ([("a", 8, 60, 1.0), ("b", 16, 40, 0.45)], 80, 16),
        ([("a", 8, 60, 1.0), ("b", 16, 40, 0.45)], 80, 8),
        ([("a", 8, 80, 1.0)], 80, 8),
        ([("a", 8, 81, 1.0), ("b", 9, 1, 1.0)], 80, 8),
        ([("a", 4, 1, 2.0), ("b", 8, 1, 1.0)], 80, 8),  # the same price: the faster one
        ([("b", 8, 1, 1.0), ("a", 4, 1, 2.0)], 80, 8),
        ([("a", 4, 1, 2.0), ("b", 4, 9, 2.0)], 80, 8),  # alike: the first
        ([], 80, 8),
        ([("x", 1, 0, 0.0), ("y", 1, 0, 1.0)], 0, 1),
        ([("b", 1, 1, 1.0), ("a", 1, 1, 1.0)], 80, 8),
        ([("a", 1, 1, 1.1), ("b", 2, 1, 0.7)], 80, 8),
        ([("a", 8, 1, 1.0), ("b", 6, 1, 1.0)], 80, 8),
        ([("a", 2, 9, 1.0), ("b", 2, 1, 1.0)], 80, 8),
        ([("a", 8, 1, 20000.0)], 80, 8),
        ([("a", 1, 1, 1.0), ("b", 2, 1, 0.503)], 80, 8),
    ],
    [
        _fastest,
        _does_it_fit,
        _enough_devices,
        edit("size_bytes <= memory_bytes", "size_bytes < memory_bytes", "A plan may fill the memory to the last byte."),
        edit("cost < least", "cost <= least", "Of plans that are alike the one that comes first is asked."),
        edit(
            "(devices * step_s, step_s)",
            "(devices * step_s, 0)",
            "Of plans that cost the same the faster one is asked.",
        ),
    ],
    [
        "Go through the plans and leave out what does not fit: too many bytes, or too many devices.",
        "Compare pairs: (devices · seconds, seconds). Python compares the first numbers, and then the second ones.",
        "Keep the first one that is strictly better than all before.",
    ],
)


# --- hours_until_cheaper ---------------------------------------------------------------------------------------------


def hours_until_cheaper(own_price, watts, price_per_kWh, rent_per_h):
    """Return after how many hours of work an own machine has cost as much as a rented one; `float("inf")` if it never
    does.

    own_price: of the machine, paid at once. watts: that it takes at work. price_per_kWh: of electricity, for 1,000
        watts in an hour. rent_per_h: of such a machine in the cloud, electricity included. All are at least 0. Where
        an hour of the own machine costs no less than an hour of rent, the answer is infinite, even if own_price is 0.
    """
    saved_per_h = rent_per_h - watts / 1000 * price_per_kWh
    return own_price / saved_per_h if saved_per_h > 0 else float("inf")


def _power_is_free(own_price, watts, price_per_kWh, rent_per_h):
    """You forget electricity: an own machine costs something in every hour too."""
    return own_price / rent_per_h if rent_per_h > 0 else float("inf")


def _watts_as_kilowatts(own_price, watts, price_per_kWh, rent_per_h):
    """A price per kWh is for 1,000 watts: divide the watts by 1,000."""
    return hours_until_cheaper.reference(own_price, 1000 * watts, price_per_kWh, rent_per_h)


def _never_is_negative(own_price, watts, price_per_kWh, rent_per_h):
    """If an hour of electricity costs more than an hour of rent, the own machine never catches up. You give a negative
    number of hours."""
    saved_per_h = rent_per_h - watts / 1000 * price_per_kWh
    return own_price / saved_per_h if saved_per_h else float("inf")


hours_until_cheaper = Exercise(
    hours_until_cheaper,
    [
        (20_000.0, 700.0, 0.3, 2.21),
        (2_000.0, 350.0, 0.25, 0.6),
        (30_000.0, 1000.0, 0.4, 0.3),  # never
        (30_000.0, 1000.0, 0.5, 0.5),  # the same in every hour: never
        (0.0, 500.0, 0.2, 1.0),
        (0.0, 5000.0, 0.2, 1.0),
        (1_000.0, 0.0, 0.3, 0.5),
        (1_000.0, 300.0, 0.0, 0.5),
        (1_000.0, 300.0, 0.1, 0.0),
        (1_000.0, 1000.0, 0.3, 0.305),
        (1_000.0, 0.0, 0.0, 0.01),
    ],
    [_power_is_free, _watts_as_kilowatts, _never_is_negative],
    [
        "What does an hour of the own machine cost, and what an hour of rent?",
        "Each hour saves rent_per_h − watts / 1000 · price_per_kWh. How many of these pay for the machine?",
        "If nothing is saved in an hour, it never pays: infinity.",
    ],
)
