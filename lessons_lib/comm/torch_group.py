"""Process groups of `torch.distributed` that only their members make."""

from torch.distributed import distributed_c10d as c10d


def new_group(ranks, timeout):
    """A process group of `ranks` (numbers in the launch, in the order of the group). Its members call it together.

    `dist.new_group` wants to be called by all ranks of the launch for each group, which groups of groups cannot do.
    With use_local_synchronization=True it would not, but then the name of the group, by which its members find each
    other, depends on how many groups a rank is in, and members in different numbers of groups wait for ever. So the
    function behind it is called, with a name that the store makes unique: all members count its use.
    """
    default = c10d._get_default_group()
    backend, store = c10d._world.pg_map[default]
    name = f"lessons_lib/{'_'.join(map(str, ranks))}"
    number = (store.add(name, 1) - 1) // len(ranks)
    rank = ranks.index(default.rank())
    arguments = len(ranks), rank, ranks, backend, store, f"{name}/{number}"
    group, _ = c10d._new_process_group_helper(*arguments, timeout=timeout)
    c10d._world.pg_group_ranks[group] = {global_rank: r for r, global_rank in enumerate(ranks)}
    return group
