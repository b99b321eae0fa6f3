"""Algorithms for many processes as data, and their readers (lessons 10, 11, 16, 17). No process, no tensor, no torch.

One word for one thing, in all of the project:

- message: one chunk that goes from one rank to another in one round: (src, dst, chunk, op). The op is "add" or "copy".
- chunk: one of the nearly equal pieces into which a schedule cuts the tensor, numbered from 0.
- round: messages that happen at once; each reads what stood at the start of the round. A schedule is a list of rounds.
- transfer: all messages of one round that share src, dst and op. They travel as one.
- part: one rank's end of a transfer.
- segment: a piece of every chunk. Large tensors go through the rounds segment by segment, to stay in the cache.
- step: one round of one segment, for one rank.
- plan: all steps of one rank.
- window: one plan under way over one transport.
- contribution: what one rank brought to one chunk. share: the contributions that a rank holds of a chunk.
- call: one operation of the communicator, with what it says to the other ranks.
- pass: one backward pass.
- slices: (start, stop) pairs. location: where a tensor lies in a buffer. index: where a number stands on the board.

A program is a training step, or a piece of one, as data: for each rank a list of steps. Its words, and those of the
strategies that run it:

- step, of a program: one thing that one rank does: it computes, sends or receives.
- block: what a step is done to: a tuple whose meaning the kind of program gives, such as (stage, micro_batch).
- kind: a subclass of `Program`, such as `Pipeline`. It says what each op needs and makes, and what was promised.
- stage: one of the pieces into which a pipeline cuts a model. micro-batch: one of those into which it cuts a batch.
- stash: what a forward pass keeps for its backward pass.
- placement: for each stage, group of heads or expert the rank that it lies on. owners: likewise for each chunk of a
  sequence.
- unit: a module whose parameters are gathered and let go together. piece: what a rank keeps of a parameter of a unit.

Schedules and programs are read by `verify` (is it right?), `count` (what does it move?) and `simulate` (how long?); a
schedule also by `make_plan` (what does one rank do?), `replay` (what does each rank hold?) and `show.schedule` (how
does it look?).
"""

from .attention import Attention, chunk_owners, ring_of_keys
from .choose import ALGORITHMS
from .count import Counts, count
from .delivery import all_to_all, gather, scatter
from .direct import direct, direct_all_gather, direct_reduce_scatter
from .exchanges import Exchange, exchange_of_heads, expert_routing
from .halving_doubling import halving_doubling
from .hierarchical import hierarchical
from .links import Links
from .orders import pipeline
from .pipeline import Pipeline
from .pipelines import gpipe, interleaved, one_f_one_b
from .program import Program, Step
from .program_readers import ProgramCounts
from .read_table import read_table
from .replay import replay
from .ring import ring, ring_all_gather, ring_reduce_scatter
from .schedule import Message, Schedule, chunk_bounds
from .sharded import ShardedStep, sharded_step
from .simulate import simulate
from .simulation import Simulation
from .star import star, star_broadcast
from .tasks import best_schedule, graham_bound, list_schedule, longest_first, static_split
from .tree import tree, tree_broadcast
from .verify import verify
from .zero_bubble import zb_h1, zbv

__all__ = [
    "ALGORITHMS",
    "Attention",
    "Counts",
    "Exchange",
    "Links",
    "Message",
    "Pipeline",
    "Program",
    "ProgramCounts",
    "Schedule",
    "ShardedStep",
    "Simulation",
    "Step",
    "all_to_all",
    "best_schedule",
    "chunk_bounds",
    "chunk_owners",
    "count",
    "direct",
    "direct_all_gather",
    "direct_reduce_scatter",
    "exchange_of_heads",
    "expert_routing",
    "gather",
    "gpipe",
    "graham_bound",
    "halving_doubling",
    "hierarchical",
    "interleaved",
    "list_schedule",
    "longest_first",
    "one_f_one_b",
    "pipeline",
    "read_table",
    "replay",
    "ring",
    "ring_all_gather",
    "ring_of_keys",
    "ring_reduce_scatter",
    "scatter",
    "sharded_step",
    "simulate",
    "star",
    "star_broadcast",
    "static_split",
    "tree",
    "tree_broadcast",
    "verify",
    "zb_h1",
    "zbv",
]
