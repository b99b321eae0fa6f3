"""Other answers to the exercises of lesson 21."""

import math


def save_by_another_name(name, data):
    """Any other name will do."""
    return (("write", "beside", data), ("flush", "beside"), ("rename", "beside", name))


def best_by_formula(save_s, restart_s, mean_between_s, step_s, max_steps):
    """The formula for a time that may be any, and the better of both neighbours."""
    exact = math.sqrt(2 * save_s * mean_between_s) / step_s
    low = min(max_steps, max(1, math.floor(exact)))

    def lost(steps):
        return save_s / (steps * step_s) + (steps * step_s / 2 + restart_s) / mean_between_s

    return min(low, min(max_steps, low + 1), key=lambda steps: (lost(steps), steps))


def rows_one_by_one(order, num_steps_done, batch_size, world_size):
    """Deal the rows one by one."""
    num_steps = -(-len(order) // batch_size)
    rows = [[[] for _ in range(max(0, num_steps - num_steps_done))] for _ in range(world_size)]
    for place in range(num_steps_done * batch_size, len(order)):
        step, within = divmod(place, batch_size)
        rows[within % world_size][step - num_steps_done].append(order[place])
    return rows


def bit_by_bit(replicas):
    """From the bytes of each number."""
    for place in range(len(replicas[0])):
        patterns = [replica[place : place + 1].numpy().view("uint64")[0].item() for replica in replicas]
        for bit in range(64):
            ones = [rank for rank, pattern in enumerate(patterns) if pattern >> bit & 1]
            zeros = [rank for rank in range(len(replicas)) if rank not in ones]
            if ones and zeros:
                return min(ones, zeros, key=len)[0], place, bit
    return None


alternatives = {
    "save_whole": [save_by_another_name],
    "whole_steps": [best_by_formula],
    "rows_after": [rows_one_by_one],
    "flipped_bit": [bit_by_bit],
}
