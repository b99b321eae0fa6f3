"""When an own machine is cheaper than a rented one (lesson 22)."""

from math import inf


def break_even_h(own_price, watts, price_per_kWh, rent_per_h):
    """After how many hours of work an own machine has cost less than a rented one; infinite if never.

    Args:
        own_price: of the machine, paid at once.
        watts: that it takes at work, its share of cooling too.
        price_per_kWh: of electricity.
        rent_per_h: of such a machine in the cloud, electricity included.

    Raises:
        ValueError: one of them is negative.
    """
    costs = {"own_price": own_price, "watts": watts, "price_per_kWh": price_per_kWh, "rent_per_h": rent_per_h}
    for name, value in costs.items():
        if not value >= 0:
            raise ValueError(f"{name}={value!r}: a number of at least 0 is needed")
    saved_per_h = rent_per_h - watts / 1000 * price_per_kWh
    return own_price / saved_per_h if saved_per_h > 0 else inf
