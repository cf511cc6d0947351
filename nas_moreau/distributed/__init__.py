"""Several processes under torchrun: the same loop in each, on its shard of every batch; rank 0 alone writes.

Without torchrun, and with one process, every function is a no-op: `world_size()` is 1 and values come back as they are.
torch is imported only when a group is started. Plain data goes through gloo on the CPU, gradients through the device's
own backend.
"""

from nas_moreau.distributed.collectives import all_gather as all_gather
from nas_moreau.distributed.collectives import all_gather_object as all_gather_object
from nas_moreau.distributed.collectives import all_reduce_max as all_reduce_max
from nas_moreau.distributed.collectives import all_reduce_mean as all_reduce_mean
from nas_moreau.distributed.collectives import check_equal as check_equal
from nas_moreau.distributed.collectives import run_on_all_ranks as run_on_all_ranks
from nas_moreau.distributed.collectives import run_on_rank0 as run_on_rank0
from nas_moreau.distributed.process_group import RankLost as RankLost
from nas_moreau.distributed.process_group import child_environment as child_environment
from nas_moreau.distributed.process_group import detecting_lost_ranks as detecting_lost_ranks
from nas_moreau.distributed.process_group import launch_command as launch_command
from nas_moreau.distributed.process_group import launched as launched
from nas_moreau.distributed.process_group import rank as rank
from nas_moreau.distributed.process_group import reports_errors as reports_errors
from nas_moreau.distributed.process_group import session as session
from nas_moreau.distributed.process_group import world_size as world_size
from nas_moreau.distributed.queue import gather_at_end as gather_at_end
from nas_moreau.distributed.queue import work_queue as work_queue
from nas_moreau.distributed.shards import Shard as Shard
from nas_moreau.distributed.shards import own_device as own_device
from nas_moreau.distributed.shards import own_shards as own_shards

__all__ = [
    "RankLost",
    "Shard",
    "all_gather",
    "all_gather_object",
    "all_reduce_max",
    "all_reduce_mean",
    "check_equal",
    "child_environment",
    "detecting_lost_ranks",
    "gather_at_end",
    "launch_command",
    "launched",
    "own_device",
    "own_shards",
    "rank",
    "reports_errors",
    "run_on_all_ranks",
    "run_on_rank0",
    "session",
    "work_queue",
    "world_size",
]
