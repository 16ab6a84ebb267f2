"""Batch norm over contiguous chunks of the batch: what DataParallel on several GPUs does, on any device."""

import logging
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

logger = logging.getLogger("fastreid.sskd.batch_norm")


class _Chunked:
    """Normalise every ``chunk`` consecutive images of a training batch by their own statistics.

    The running statistics follow the first chunk only, as under DataParallel, where the replicas' buffers are
    discarded and the first device holds the module itself. Evaluation and the state dict are plain batch
    norm's.
    """

    chunk: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.shape[0] <= self.chunk:
            return super().forward(x)
        first, *others = x.split(self.chunk)
        out = [super().forward(first)]
        for part in others:
            out.append(F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps))
        return torch.cat(out)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, chunk={self.chunk}"


class ChunkedBatchNorm1d(_Chunked, nn.BatchNorm1d):
    """``BatchNorm1d`` whose training statistics are those of each chunk of the batch."""


class ChunkedBatchNorm2d(_Chunked, nn.BatchNorm2d):
    """``BatchNorm2d`` whose training statistics are those of each chunk of the batch."""


class ChunkedBatchNormAct2d(_Chunked, nn.BatchNorm2d):
    """timm's ``BatchNormAct2d``, a batch norm and its activation, in chunks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise in chunks, then drop and activate."""
        return self.act(self.drop(super().forward(x)))


_CHUNKED = {nn.BatchNorm1d: ChunkedBatchNorm1d, nn.BatchNorm2d: ChunkedBatchNorm2d}


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network has batch norms, whose statistics training could move."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def say_without_batch_norm(networks: Iterable[nn.Module]) -> None:
    """Log once for each kind of backbone without batch norm, as a ViT, what of the method acts on less."""
    for kind, network in {type(network.backbone).__name__: network for network in networks}.items():
        if not has_batch_norm(network.backbone):
            logger.info(
                "%s has no batch norm: SSKD.SOFT_LABELS.BN, BN_CHUNK and SOURCE.BN_DATASETS act on %s",
                kind,
                "the neck alone" if has_batch_norm(network.heads) else "nothing, as the head has none either",
            )


def chunk_batch_norm(model: nn.Module, chunk: int) -> int:
    """Turn every plain batch norm of a model into one over contiguous chunks of the batch, in place.

    Args:
        model: any network; parameters, buffers and their names stay as they are.
        chunk: images per chunk; 0 leaves the model alone. The last chunk of a batch may be smaller.

    Returns:
        The number of layers changed.

    Raises:
        ValueError: if ``chunk`` is negative or 1, which has no variance.
        TypeError: if a batch norm is of a kind without contiguous chunks (SyncBatchNorm, the host's GhostBN);
            the model is then unchanged.
    """
    if chunk == 0:
        return 0
    if chunk < 2:
        raise ValueError(f"SSKD.BN_CHUNK must be 0 (whole batch) or at least 2 images, got {chunk}")
    plain = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, _Chunked):
            continue
        kind = next((k for k in _CHUNKED if isinstance(module, k)), None)
        if type(module).__name__ == "BatchNormAct2d" and hasattr(module, "act"):  # timm may not be installed
            plain.append((module, ChunkedBatchNormAct2d))
            continue
        if kind is None or type(module).forward is not kind.forward:
            raise TypeError(
                f"SSKD.BN_CHUNK needs plain batch norm, but {name} is a {type(module).__name__}: "
                "set MODEL.BACKBONE.NORM and MODEL.HEADS.NORM to BN, or SSKD.BN_CHUNK to 0"
            )
        plain.append((module, _CHUNKED[kind]))
    for module, chunked in plain:
        module.__class__ = chunked
        module.chunk = chunk
    return len(plain)
