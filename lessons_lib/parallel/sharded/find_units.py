"""Which parts of a module are gathered together, and which parameters belong to each (lesson 14)."""

from torch import nn

LISTS = (nn.ModuleList, nn.ModuleDict)  # they hold modules, but are never called


def find_units(module, units=None):
    """The units of a module: those given, or the blocks, and the module itself for all that is in none of them.

    Blocks are the children of the outermost `nn.Sequential`s and `nn.ModuleList`s.

    Args:
        module: an `nn.Module`.
        units: modules within it, or None.

    Returns:
        {unit: [(owner, name, parameter), ...]}, the module first, then the units in the order in which they are
        registered. A parameter that several units use belongs to the module itself.

    Raises:
        ValueError: a unit is no part of the module, or is never called.
    """
    found = list(_blocks(module)) if units is None else list(units)
    inside = {each: name for name, each in module.named_modules()}
    for number, unit in enumerate(found):
        if unit not in inside:
            raise ValueError(f"units[{number}] is a {type(unit).__name__}: modules that lie within `module` are needed")
        if isinstance(unit, LISTS):
            raise ValueError(f"units[{number}] is a {type(unit).__name__}, which is never called: name its children")
    chosen, places = {module, *found}, {}
    ordered = [module, *[each for each in inside if each in chosen and each is not module]]
    _collect(module, module, chosen, places, set())
    homes = {}
    for parameter, used in places.items():
        of_units = {unit for unit, _, _ in used}
        homes[parameter] = of_units.pop() if len(of_units) == 1 else module
    members = {unit: [] for unit in ordered}
    for parameter, used in places.items():
        members[homes[parameter]] += [(owner, name, parameter) for _, owner, name in used]
    return {unit: places for unit, places in members.items() if places or unit is module}


def _blocks(module):
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList) and not isinstance(child, LISTS):
            yield child
        else:
            yield from _blocks(child)


def _collect(module, unit, chosen, places, seen):
    """Note for each parameter the units in which it lies: {parameter: [(unit, owner, name), ...]}."""
    unit = module if module in chosen else unit
    if (module, unit) in seen:
        return
    seen.add((module, unit))
    for name, parameter in module._parameters.items():
        if parameter is not None:
            places.setdefault(parameter, []).append((unit, module, name))
    for child in module.children():
        _collect(child, unit, chosen, places, seen)
