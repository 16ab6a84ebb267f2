"""Patches of the host's identity samplers: refuse what they would loop on for ever."""

import functools
from collections.abc import Callable
from typing import Any

from .patch import Patch, target


def check_identities(sampler: Any, available: int) -> None:
    """Refuse, by a ValueError, fewer identities than one batch over all processes needs.

    Args:
        sampler: one of the host's identity samplers.
        available: identities of a batch that the data can fill.
    """
    needed = sampler.num_pids_per_batch * sampler._world_size
    if available < needed:
        raise ValueError(
            f"a batch needs {needed} identities of {sampler.num_instances} images "
            f"({sampler.num_pids_per_batch} a process, {sampler._world_size} processes) and the data fill "
            f"{available} ({sampler.num_identities} identities): lower SOLVER.IMS_PER_BATCH or raise "
            "DATALOADER.NUM_INSTANCE"
        )


def balanced_identities(sampler: Any) -> int:
    """Identities available to BalancedIdentitySampler: each comes once in a batch over all processes."""
    return sampler.num_identities


def naive_identities(sampler: Any) -> int:
    """Identities available to NaiveIdentitySampler: each once a process, and as often as its images last."""
    processes, instances = sampler._world_size, sampler.num_instances
    return sum(min(processes, max(1, len(index) // instances)) for index in sampler.pid_index.values())


def _patch(name: str, count: Callable[[Any], int]) -> None:
    sampler_class = target("fastreid.data.samplers.triplet_sampler", name)
    host_init = sampler_class.__init__

    @functools.wraps(host_init)
    def checked(
        self: Any, data_source: Any, mini_batch_size: int, num_instances: int, *args: Any, **kwargs: Any
    ) -> None:
        from ..data.samplers import check_batch  # here: it needs the patched host

        processes = target("fastreid.utils.comm", "get_world_size")()
        check_batch(mini_batch_size * processes, num_instances, processes)
        host_init(self, data_source, mini_batch_size, num_instances, *args, **kwargs)
        check_identities(self, count(self))

    sampler_class.__init__ = checked


PATCHES = (
    Patch(
        "balanced-sampler",
        "data/samplers/triplet_sampler.py:78",
        "BalancedIdentitySampler loops for ever when there are fewer identities than a batch takes",
        lambda: _patch("BalancedIdentitySampler", balanced_identities),
    ),
    Patch(
        "naive-sampler",
        "data/samplers/triplet_sampler.py:237",
        "NaiveIdentitySampler loops for ever when there are fewer identities than a batch takes",
        lambda: _patch("NaiveIdentitySampler", naive_identities),
    ),
)
