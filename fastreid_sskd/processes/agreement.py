"""A loud check that the processes train the same model."""
import zlib

import torch
from fastreid.utils import comm
from torch import nn

from .control import on_every

__all__ = ["DisagreementError", "check_agreement"]


class DisagreementError(RuntimeError):
    """Processes of one run have different models."""


@torch.no_grad()
def check_agreement(model: nn.Module) -> None:
    """Compare a checksum of every parameter and buffer between the processes.

    Raises:
        DisagreementError: in every process, naming the first tensor that differs and the values' ranks.
    """
    if comm.get_world_size() == 1:
        return
    own = {name: zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()) for name, tensor in model.state_dict().items()
           if tensor.numel()}
    found = on_every(own)
    for name in own:
        ranks = [rank for rank, sums in enumerate(found) if sums.get(name) != found[0].get(name)]
        if ranks:
            raise DisagreementError(
                f"{name} differs between the main process and rank {', '.join(map(str, ranks))}: the processes no longer train "
                "the same model. Unequal devices or versions of torch can do that; go on from the last checkpoint"
            )
