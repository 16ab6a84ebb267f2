"""The refresh's search for neighbours, shared by the processes of a run."""

import dataclasses

import torch
from fastreid.utils import comm

from ..clustering import Candidates, ClusterOptions, Shard, find_method, merge_shards, search_neighbors
from ..processes import gather_rows, in_all, on_every

__all__ = ["shared_candidates"]

#: rows whose candidates are sent and merged at a time, so that the main process never holds those of all shards
_ROWS = 65_536


def shared_candidates(features: torch.Tensor, options: ClusterOptions, **search) -> Candidates | None:
    """Candidates of the k-NN search of ``pseudo_labels(features, options, **search)``, each process having searched its shard.

    Every process has to call this with the same features and options. Labels are those of one process's search,
    as :func:`merge_shards` says; what is sent does not depend on how many columns the features have.

    Args:
        features: (N, d), all of them. options, search: those of `pseudo_labels`, ``search`` its ``device`` and ``cameras``.

    Returns:
        In the main process; None elsewhere, and where there is nothing to share: one process, or a method that
        searches no neighbours.

    Raises:
        Exception: what a process's search has raised, in every process.

    Memory: every process holds candidates of all rows, O(N k), the main process besides those of all shards for 65,536.
    """
    if comm.get_world_size() == 1 or find_method(options.method).uses == "features":
        return None
    shard = Shard(comm.get_rank(), comm.get_world_size())
    own = in_all(lambda: search_neighbors(features, shard, options, **search))
    bounds = on_every(own.error)  # of one search all or none
    return _merged(own if own.error is None else dataclasses.replace(own, error=max(bounds)))


def _merged(own: Candidates) -> Candidates | None:
    """The candidates of all processes' shards, in the main process; those of this one are overwritten."""
    world = comm.get_world_size()
    names = ["indices", "approximate"] + ([] if own.farthest is None else ["farthest", "lowest"])
    for start in range(0, len(own.indices), _ROWS):
        mine = {name: getattr(own, name)[start : start + _ROWS] for name in names}
        of_all = {name: gather_rows(torch.from_numpy(values)) for name, values in mine.items()}
        if comm.is_main_process():
            parts = zip(*(values.chunk(world) for values in of_all.values()))
            whole = merge_shards(
                [dataclasses.replace(own, **{n: v.numpy() for n, v in zip(names, part)}) for part in parts]
            )
            for name in names:
                mine[name][...] = getattr(whole, name)
    return own if comm.is_main_process() else None
