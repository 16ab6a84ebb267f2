"""Where a network's tensors are in a file: behind which prefix, under whose names, in which order."""

import contextlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

logger = logging.getLogger("fastreid.sskd.weights")

State = Mapping[str, torch.Tensor]

# Of networks in a file that fit alike, those with these words come first, and those second.
_FIRST = re.compile(r"(^|[._])(ema|teacher)[._]")
_SECOND = re.compile(r"(^|[._])(student|encoder_k|momentum)")
# What backbones from elsewhere have beside the backbone's own parts, of other classes.
_CLASSIFIER = re.compile(r"(head\.)?(fc|classifier)\.|head\.(weight|bias)$")


@dataclass(frozen=True)
class Match:
    """What of a network a file has.

    Attributes:
        prefix: of the network's names in the file.
        found: own name -> tensor of the right shape.
        missing, misshapen: own names; counters of batches are not missed.
        extra: names in the file below the prefix that would belong to this network, if it were the file's.
        total: tensors of the network, without counters of batches.
        new: own names that no public file has, which are missing.
        rule: how the file's names were converted; "" if they are the network's.
    """

    prefix: str
    found: dict[str, torch.Tensor]
    missing: list[str]
    misshapen: list[str]
    extra: list[str]
    total: int
    new: Sequence[str] = ()
    rule: str = ""

    @property
    def num_found(self) -> int:
        """Tensors of ``total`` that the file has."""
        return sum(not _counts_batches(name) for name in self.found)

    @property
    def whole(self) -> bool:
        """Whether the file has this network, and no larger one."""
        return not (self.missing or self.misshapen or self.extra)


def match(state: State, own: State, prefix: str, *, whole: bool = False) -> Match:
    """Compare a network's tensors with those of a file below a prefix.

    Args:
        state: tensors of the file.
        own: tensors of the network.
        prefix: of the network's names in the file.
        whole: whether all the file has there must be the network's; else only what is beside the network's
            own parts (``layer3.6`` beside ``layer3.5``, but no ``fc``).
    """
    there = below(state, prefix)
    found: dict[str, torch.Tensor] = {}
    missing, misshapen = [], []
    for name, tensor in own.items():
        value = _in_shape(there[name], tensor) if name in there else None
        if value is not None:
            found[name] = value
        elif not _counts_batches(name):
            (misshapen if name in there else missing).append(name)

    def stem(name: str) -> str:
        return name.split(".")[0].rstrip("0123456789")

    stems = {stem(name) for name in own} | {"NL_"}
    extra = [
        name
        for name in there
        if not (name in own or _counts_batches(name) or _CLASSIFIER.match(name))
        # statistics may be of another norm
        and (whole or stem(name) in stems and not name.endswith(("running_mean", "running_var")))
    ]
    return Match(prefix, found, missing, misshapen, extra, sum(not _counts_batches(name) for name in own))


# Layers that no public file has: the host's non-local blocks, which begin as identity, and its MobileNetV3's
# last layer.
_NEVER_PUBLIC = {"ResNet": "NL_", "ResNeXt": "NL_", "MobileNetV3": "conv."}


def find_backbone(backbone: nn.Module, state: State) -> Match:
    """Return how much of a backbone a file has, in that layout in which it has most."""
    own, best = backbone.state_dict(), None
    for rule, renamed in _layouts(backbone, state, own):
        prefix = prefix_of(renamed, own)
        of_fastreid = prefix.endswith("backbone.") and any(
            key.startswith(f"{prefix.removesuffix('backbone.')}heads.") for key in renamed
        )
        found = match(_with_own_grid(backbone, renamed, prefix), own, prefix, whole=of_fastreid)
        if best is None or found.num_found > best.num_found:
            best = replace(found, rule=rule)
        if found.whole:
            break
    never_public = _NEVER_PUBLIC.get(type(backbone).__name__)
    new = [name for name in best.missing if never_public and name.startswith(never_public)]
    return replace(best, missing=[name for name in best.missing if name not in new], new=new)


# Names of torchvision's ViT and ConvNeXt -> those of timm and fast-reid.
_RENAMES: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = (
    (r"\bclass_token$", "cls_token"),
    (r"\bconv_proj\.", "patch_embed.proj."),
    (r"\bencoder\.pos_embedding$", "pos_embed"),
    (r"\bencoder\.ln\.", "norm."),
    (r"\bencoder\.layers\.encoder_layer_", "blocks."),
    (r"\bln_([12])\.", r"norm\1."),
    (r"\bself_attention\.in_proj_", "attn.qkv."),
    (r"\bself_attention\.out_proj\.", "attn.proj."),
    (r"\bmlp\.(?:0|linear_1)\.", "mlp.fc1."),
    (r"\bmlp\.(?:3|linear_2)\.", "mlp.fc2."),
    (r"\bfeatures\.0\.", "stem."),
    (r"\bfeatures\.([246])\.", lambda match: f"stages.{int(match[1]) // 2}.downsample."),
    (r"\bfeatures\.([1357])\.", lambda match: f"stages.{int(match[1]) // 2}.blocks."),
    (r"\bblock\.0\.", "conv_dw."),
    (r"\bblock\.2\.", "norm."),
    (r"\bblock\.3\.", "mlp.fc1."),
    (r"\bblock\.5\.", "mlp.fc2."),
    (r"\blayer_scale$", "gamma"),
)
# The batch norm behind the backbone: of fast-reid before 1.0, TransReID and Bag of Tricks, MMT and SpCL.
_NECK = re.compile(r"(?:heads\.bnneck|bottleneck|feat_bn)\.(\w+)")


def _layouts(backbone: nn.Module, state: State, own: State) -> Iterator[tuple[str, State]]:
    """Yield the file's tensors as they are, then under other names, each with how they were converted."""
    yield "", state
    renamed: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        for pattern, name in _RENAMES:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    yield "by torchvision's names", renamed
    if hasattr(backbone, "from_other_layout"):
        prefix = prefix_of(state, own)
        with contextlib.suppress(Exception):  # of another network: timm's rules fail in their own ways
            converted = backbone.from_other_layout(below(state, prefix))
            yield "by timm's rules", {prefix + name: value for name, value in converted.items()}
    yield "by order", _in_order(state, own)


def beside(state: State, prefix: str, own: State) -> dict[str, torch.Tensor]:
    """Return what the file has beside its backbone, a neck of the own size under fast-reid's name."""
    outer = below(state, re.sub(r"(^|\.)(backbone|base)\.$", r"\1", prefix))
    for key in list(outer):
        name = _NECK.sub(r"heads.bottleneck.0.\1", key)
        if name in own and own[name].shape == outer[key].shape:
            outer.setdefault(name, outer[key])
    return outer


def prefix_of(state: State, own: State) -> str:
    """Return what most of the network's names have before them in the file."""
    fitting: Counter[str] = Counter()
    named: Counter[str] = Counter()
    for key, value in state.items():
        for at in (0, *(dot.end() for dot in re.finditer(r"\.", key))):
            name = key[at:]
            if name in own and not _counts_batches(name):
                named[key[:at]] += 1
                fitting[key[:at]] += _in_shape(value, own[name]) is not None

    def preferred(start: str) -> tuple:
        return fitting[start], named[start], bool(_FIRST.search(start)), not _SECOND.search(start)

    return max(named, key=preferred, default="")


def below(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # momentum is fixed: nothing depends on it


def _in_shape(value: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """Return the value in the shape of the network's own tensor; None if it is another tensor.

    A counter may be a vector of one, and a convolution's weight (O, I, H, W) may be stored as (O, I * H * W).
    """
    if value.is_floating_point() != own.is_floating_point():
        return None
    if value.shape == own.shape:
        return value
    flat = value.numel() == own.numel() and (
        own.numel() == 1 or value.shape[0] == own.shape[0] and min(value.ndim, own.ndim) in (1, 2)
    )
    return value.reshape(own.shape) if flat else None


def _with_own_grid(backbone: nn.Module, state: State, prefix: str) -> State:
    """Resample a ViT's positions (1, t + n, d) to its own grid, as timm does; drop a distilled token's.

    t is the number of its tokens that have positions, 1 in the host's. The file's grid is a square, else of
    about the own shape; positions of neither, or without a class token, are unchanged.
    """
    key, own = f"{prefix}pos_embed", getattr(backbone, "pos_embed", None)
    positions = state.get(key, torch.empty(0))
    if own is None or positions.ndim != 3 or positions.shape[1] < 3 or positions.shape == own.shape:
        return state
    embed, count = backbone.patch_embed, positions.shape[1]
    rows, columns = embed.grid_size if hasattr(embed, "grid_size") else (embed.num_y, embed.num_x)
    tokens = own.shape[1] - rows * columns
    distilled = f"{prefix}dist_token" in state and not hasattr(backbone, "dist_token")
    token, grid = positions[:, :tokens], positions[:, tokens + distilled :]
    patches = grid.shape[1]

    def stretched(side: int) -> float:
        return abs(math.log(side * side / patches * columns / rows))

    side = math.isqrt(patches)
    if side * side != patches:
        side = min((n for n in range(1, patches + 1) if patches % n == 0), key=stretched)
        if stretched(side) > math.log(1.5) or count in (rows * columns, math.isqrt(count) ** 2):
            return state
    sizes = (side, patches // side, rows, columns)
    if sizes[:2] != sizes[2:]:
        logger.warning("the positions of a grid of %d x %d patches are resized to %d x %d", *sizes)
        grid = grid.float().reshape(1, *sizes[:2], -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        grid = grid.flatten(2).transpose(1, 2).to(token.dtype)
    return {**state, key: torch.cat([token, grid], dim=1)}


def _in_order(state: State, own: State) -> dict[str, torch.Tensor]:
    """Name the file's first tensors as the network's, if their kinds and shapes are in its order; else {}.

    Other toolboxes name one network's layers otherwise: torchvision's MobileNetV2, a ResNet kept as
    nn.Sequential.
    """
    names = [name for name in own if not _counts_batches(name)]
    theirs = [(key, value) for key, value in state.items() if not _counts_batches(key)][: len(names)]
    same = len(theirs) == len(names) and all(
        key.split(".")[-1] == name.split(".")[-1] and value.shape == own[name].shape
        for name, (key, value) in zip(names, theirs)
    )
    if not same or any(re.search(r"(^|\.)backbone\.", key) for key in state):  # fast-reid's own names
        return {}
    prefix = re.sub(r"[^.]*$", "", os.path.commonprefix([key for key, _ in theirs]))
    return {prefix + name: value for name, (_, value) in zip(names, theirs)}
