"""Other answers to the exercises of lesson 17."""

import torch


def merge_by_the_largest(answer, lse, other, other_lse):
    largest = torch.maximum(lse, other_lse)
    one, two = (lse - largest).exp(), (other_lse - largest).exp()
    return (answer * one + other * two) / (one + two), largest + (one + two).log()


def merge_by_softmax(answer, lse, other, other_lse):
    shares = torch.cat([lse, other_lse], 1).softmax(1)
    merged = (shares[:, :, None] * torch.stack([answer, other], 1)).sum(1)
    return merged, torch.cat([lse, other_lse], 1).logsumexp(1, keepdim=True)


def merge_by_sigmoid(answer, lse, other, other_lse):
    share = torch.sigmoid(lse - other_lse)
    return share * answer + (1 - share) * other, torch.logaddexp(other_lse, lse)


def merge_with_the_mean_of_lse(answer, lse, other, other_lse):
    share = torch.sigmoid(lse - other_lse)
    return share * answer + (1 - share) * other, (lse + other_lse) / 2


def merge_with_flat_lse(answer, lse, other, other_lse):
    share = torch.sigmoid(lse - other_lse)
    return share * answer + (1 - share) * other, torch.logaddexp(other_lse, lse).squeeze(1)


def merge_in_place(answer, lse, other, other_lse):
    share = torch.sigmoid(lse - other_lse)
    total = torch.logaddexp(lse, other_lse)
    return answer.mul_(share).add_(other * (1 - share)), total


def merge_the_answers_alone(answer, lse, other, other_lse):
    return torch.sigmoid(lse - other_lse) * answer + torch.sigmoid(other_lse - lse) * other


def pairs_by_a_search(rank, world_size, turn):
    def owner(chunk):
        return min(chunk, 2 * world_size - 1 - chunk)

    chunks = range(2 * world_size)
    source = (rank - turn + world_size) % world_size
    return [(q, k) for q in chunks for k in chunks if owner(q) == rank and owner(k) == source and q >= k]


def pairs_unsorted(rank, world_size, turn):
    return pairs_by_a_search(rank, world_size, turn)[::-1]


def pairs_key_first(rank, world_size, turn):
    return sorted((k, q) for q, k in pairs_by_a_search(rank, world_size, turn))


def pairs_of_turns_from_1(rank, world_size, turn):
    return pairs_by_a_search(rank, world_size, turn - 1)


def attended(q, k, v):
    scores = q @ k.T / q.shape[1] ** 0.5
    largest = scores.amax(1, keepdim=True)
    weights = (scores - largest).exp()
    return weights @ v, largest, weights.sum(1, keepdim=True)


def ring_with_largest_and_sum(comm, q, k, v):
    """Even ranks send first; two messages a turn."""
    size = comm.world_size
    here, total, largest, norm = (k, v), 0, q.new_full((len(q), 1), -torch.inf), 0
    for turn in range(size):
        part, high, sums = attended(q, *here)
        highest = torch.maximum(largest, high)
        old, new = (largest - highest).exp(), (high - highest).exp()
        total, norm, largest = total * old + part * new, norm * old + sums * new, highest
        if turn < size - 1:
            coming = torch.empty_like(k), torch.empty_like(v)
            leaving = [comm.isend(each, (comm.rank + 1) % size) for each in here]
            for each in coming:
                comm.recv(each, (comm.rank - 1) % size)
            for each in leaving:
                each.wait()
            here = coming
    return total / norm


def ring_scaled(comm, q, k, v):
    return ring_with_largest_and_sum(comm, q, k, v) * 1.0000001


def ring_keeps_all(comm, q, k, v):
    size, blocks = comm.world_size, [torch.stack([k, v])]
    for _ in range(size - 1):
        message = comm.isend(blocks[-1], (comm.rank + 1) % size)
        blocks.append(torch.empty_like(blocks[0]))
        comm.recv(blocks[-1], (comm.rank - 1) % size)
        message.wait()
    everything = torch.cat(blocks, 1)
    return (q @ everything[0].T / q.shape[1] ** 0.5).softmax(1) @ everything[1]


def ring_once_round(comm, q, k, v):
    """One turn too many: keys come home."""
    size, here, answers = comm.world_size, torch.stack([k, v]), []
    for _ in range(size):
        answers.append(attended(q, *here))
        message = None if size == 1 else comm.isend(here, (comm.rank + 1) % size)
        coming = torch.empty_like(here)
        if size > 1:
            comm.recv(coming, (comm.rank - 1) % size)
            message.wait()
        here = coming
    highest = torch.stack([high for _, high, _ in answers]).amax(0)
    total = sum(part * (high - highest).exp() for part, high, _ in answers)
    return total / sum(sums * (high - highest).exp() for _, high, sums in answers)


def ring_of_own_keys(comm, q, k, v):
    part, _, sums = attended(q, k, v)
    return part / sums


def experts_with_lists(comm, x, chosen, expert):
    rows = [(chosen == rank).nonzero().flatten() for rank in range(comm.world_size)]
    given = torch.tensor([len(each) for each in rows])
    taken = torch.empty_like(given)
    comm.all_to_all(taken, given)
    came = [x.new_empty(number, x.shape[1]) for number in taken.tolist()]
    comm.all_to_all(came, [x[each] for each in rows])
    home = [x.new_empty(len(each), x.shape[1]) for each in rows]
    comm.all_to_all(home, list(expert(torch.cat(came)).split(taken.tolist())))
    answers = x.new_zeros(x.shape)
    for each, back in zip(rows, home, strict=True):
        answers[each] = back
    return answers


def experts_called_for_each_token(comm, x, chosen, expert):
    return experts_with_lists(
        comm, x, chosen, lambda rows: torch.cat([expert(row) for row in [*rows.split(1), rows[:0]]])
    )


def experts_called_with_tokens_only(comm, x, chosen, expert):
    return experts_with_lists(comm, x, chosen, lambda rows: expert(rows) if len(rows) else rows)


def experts_of_doubles(comm, x, chosen, expert):
    return experts_with_lists(comm, x.double(), chosen, expert).to(x.dtype)


def experts_that_change_x(comm, x, chosen, expert):
    x.copy_(experts_with_lists(comm, x, chosen, expert))
    return x


def experts_at_home(comm, x, chosen, expert):
    return expert(x)


alternatives = {
    "merge": [merge_by_the_largest, merge_by_softmax, merge_by_sigmoid],
    "zigzag_pairs": [pairs_by_a_search],
    "ring_answers": [ring_with_largest_and_sum],
    "through_experts": [experts_with_lists],
}
wrong = {
    "merge": [merge_with_the_mean_of_lse, merge_with_flat_lse, merge_in_place, merge_the_answers_alone],
    "zigzag_pairs": [pairs_unsorted, pairs_key_first, pairs_of_turns_from_1],
    "ring_answers": [ring_scaled, ring_keeps_all, ring_once_round, ring_of_own_keys],
    "through_experts": [
        experts_called_for_each_token,
        experts_called_with_tokens_only,
        experts_of_doubles,
        experts_that_change_x,
        experts_at_home,
    ],
}
