"""Source pre-training (stage 1): one network on labelled source images, with the target in its batch norm."""

import math

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn

from ..losses import LossSet, PeerBatch, build_losses
from .bn_chunk import has_batch_norm
from .peer import Peer, PixelNormalisation, build_peer


@META_ARCH_REGISTRY.register()
class SSKDSource(Peer):
    """Train with L_id + L_ms + 2 L_nn, all on the source.

    ``forward({"images": (B, 3, H, W), "targets": (B,)})`` returns ``{"loss_<name>": weighted scalar}``.
    With ``"bn_images"`` (B', 3, H, W) in the batch, these unlabelled target images pass through the network
    in train mode after the source's; only batch-norm statistics change. Its checkpoints have the names of a
    :class:`fastreid.modeling.meta_arch.Baseline` and load there. ``classifier_std`` is that of the
    classifier's initial weights; None keeps those of the peer.
    """

    @configurable
    def __init__(
        self, *, peer: Peer, losses: LossSet, pixel_mean, pixel_std, classifier_std: float | None = None
    ):
        super().__init__(peer.backbone, peer.heads, architecture=peer.architecture)
        if classifier_std is not None:
            if not 0 < classifier_std < math.inf:
                raise ValueError(
                    f"SSKD.SOURCE.CLASSIFIER_STD must be a standard deviation > 0, got {classifier_std}: "
                    "change it in the config or on the command line"
                )
            nn.init.normal_(self.heads.weight, std=classifier_std)
        self._has_batch_norm = has_batch_norm(self)
        self.losses = losses
        self.pixels = PixelNormalisation(pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Return the constructor's arguments from a config."""
        return {
            "peer": build_peer(cfg),
            "losses": build_losses(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "classifier_std": cfg.SSKD.SOURCE.CLASSIFIER_STD,
        }

    device = property(lambda self: self.pixels.mean.device, doc="Where the model is.")

    def forward(self, batched_inputs: dict) -> dict[str, torch.Tensor] | torch.Tensor:
        """Return the losses in training, the feature in evaluation."""
        images = self.pixels(batched_inputs["images"])
        if not self.training:
            return super().forward(images)
        labels = batched_inputs["targets"].to(self.device)
        outputs = super().forward(images, labels)
        if "bn_images" in batched_inputs and self._has_batch_norm:
            bn_images = self.pixels(batched_inputs["bn_images"])
            with torch.no_grad():
                super().forward(bn_images)
        return self.losses(
            PeerBatch(features=outputs["features"], logits=outputs["cls_outputs"], labels=labels)
        )
