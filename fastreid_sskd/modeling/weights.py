"""Weights from a user's files: read safely, found in any layout, and loaded whole or refused."""

import argparse
import codecs
import contextlib
import logging
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.modeling.heads import ClasHead
from torch import nn

from .peer import Peer
from .sskd import SSKD

logger = logging.getLogger("fastreid.sskd.weights")

State = Mapping[str, torch.Tensor]


class WeightsError(ValueError):
    """A file of weights cannot be read, or is of another network."""


# ---- reading -------------------------------------------------------------------------------------

# What people have in place of a file of torch.save, by its first bytes.
_SAFETENSORS = rb"(?s).{8}\{\""
_KINDS = (
    (rb"\s*version https://git-lfs", "is a pointer of Git LFS: fetch the file itself with git lfs pull"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "is a web page: the download has failed, so download the file again"),
    (
        _SAFETENSORS,
        "is a safetensors file, damaged or without its package: copy it again, or pip install safetensors",
    ),
)


def read_file(path: str, *, mmap: bool = False) -> Any:
    """Read a file of ``torch.save`` to the CPU, unpickling only tensors, numpy and plain Python values.

    A file of safetensors is read where that package is installed.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is something else, saying what.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"weights {path!r} not found{': it is a folder' if os.path.isdir(path) else ''}. MODEL.WEIGHTS, "
            "SSKD.SOURCE.WEIGHTS and MODEL.BACKBONE.PRETRAIN_PATH take files on disk"
        )
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file  # required by timm

            return load_file(path)
        with _plain_objects_allowed():
            mmap = mmap and zipfile.is_zipfile(path)  # a file from before torch 1.6 is read whole
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file raises UnpicklingError, KeyError, struct.error, ...
        # Not chained: torch's own message advises to load the file unsafely.
        raise WeightsError(f"{path!r} {_what_it_is(path, error)}") from None


def read_state_dict(path: str, *, mmap: bool = False) -> dict[str, torch.Tensor]:
    """Read the tensors and arrays of a file under their dotted names, as ``state_dict.module.conv1.weight``.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is no file of tensors.
    """
    return _named_tensors(read_file(path, mmap=mmap), path)


def _plain_objects_allowed() -> AbstractContextManager:
    """Let ``weights_only`` read numpy's values and an argparse.Namespace, from torch 2.6 on."""
    if torch.__version__ < (2, 6):
        return contextlib.nullcontext()
    rebuild = np.zeros(1).__reduce__()[0]  # its module depends on the numpy that wrote the file
    scalar = np.float64(0).__reduce__()[0]
    names = [
        (function, f"numpy.{module}.multiarray.{name}")
        for function, name in ((rebuild, "_reconstruct"), (scalar, "scalar"))
        for module in ("core", "_core")
    ]
    types = {type(np.dtype(code)) for code in "?bBhilqefd"}  # those torch has as well
    return torch.serialization.safe_globals([*names, np.ndarray, np.dtype, *types, argparse.Namespace])


def _is_safetensors(path: str) -> bool:
    with open(path, "rb") as file:
        return re.match(_SAFETENSORS, file.read(16)) is not None


def _what_it_is(path: str, error: Exception) -> str:
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        return "is empty: copy or download it again"
    for pattern, kind in _KINDS:
        if re.match(pattern, head):
            return kind
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end inside a character
        if "".join(text.split()).isprintable():
            return "is a text file: give a file of torch.save"
    if "TorchScript" in str(error):
        return "is a TorchScript archive: save its state dict with torch.save(module.state_dict(), path)"
    if other := re.search(r"(?:GLOBAL|class) (\w+(?:\.\w+)+)", str(error)):
        return (
            f"holds an object of Python, {other[1]}, which is not loaded: save the tensors alone with "
            "torch.save(state_dict, path)"
        )
    return f"is damaged, or no file of torch.save ({type(error).__name__}): copy or download it again"


def _named_tensors(content: Any, path: str) -> dict[str, torch.Tensor]:
    def walk(content: Any, prefix: str, depth: int) -> Iterable[tuple[str, torch.Tensor]]:
        if not isinstance(content, Mapping) or not depth:
            return
        for key, value in content.items():
            if not isinstance(key, str):
                continue
            if isinstance(value, (np.ndarray, torch.Tensor)):
                yield prefix + key, torch.as_tensor(value)
            else:
                yield from walk(value, f"{prefix}{key}.", depth - 1)

    state = dict(walk(content, "", 6))
    if not state:
        what = type(content).__name__
        if isinstance(content, Mapping) and content:
            what += f" of {', '.join(map(repr, list(content)[:3]))}"
        raise WeightsError(f"{path!r} holds no named tensors, but a {what}: give a state dict")
    return state


# ---- loading -------------------------------------------------------------------------------------

# Layers that no public file has: the host's non-local blocks, which begin as identity, and its MobileNetV3's
# last layer.
_NEVER_PUBLIC = {"ResNet": "NL_", "ResNeXt": "NL_", "MobileNetV3": "conv."}


def load_backbone(backbone: nn.Module, path: str) -> None:
    """Load ``MODEL.BACKBONE.PRETRAIN_PATH``: a backbone, alone or in any model, under any prefix.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it cannot be read, or does not have the whole backbone, which is then unchanged.
    """
    state = _of_peer(read_state_dict(path), None, path)
    match = _match_backbone(backbone, state, path)
    never_public = _NEVER_PUBLIC.get(type(backbone).__name__)
    new = [name for name in match.missing if never_public and name.startswith(never_public)]
    if match.misshapen or match.extra or len(match.missing) > len(new) or not match.found:
        _refuse(path, backbone, match, state)
    _fill(backbone, match.found, path, match)
    if new:
        said = "%s has no weights for %d tensors (first: %s): they keep their initial values"
        logger.warning(said, path, len(new), new[0])


def load_network(
    network: nn.Module,
    state: State,
    path: str,
    k: int | None = None,
    *,
    evaluation: bool = False,
    classifier: bool = False,
) -> list[str]:
    """Load a network that has a backbone and heads: a peer, or one of the host's architectures.

    The file must have the whole backbone. Where it lacks the rest (a bare backbone), that keeps its initial
    values, with a warning. A classifier of other identities is left out.

    Args:
        network: to be filled; unchanged if the file is refused.
        state: see :func:`read_state_dict`; of an SSKD model teacher ``k`` is taken, None for its best.
        path: where the state is from, for messages.
        evaluation: whether the network is used as it is. Then a random layer outside of the backbone is
            refused too, and layers of the head that the network does not have.
        classifier: whether the classifier is loaded where it fits (into a :class:`.peer.Peer` with any number
            of rows).

    Returns:
        The names of the tensors that the file lacks, except the classifier's.

    Raises:
        WeightsError: if the file is of another network, or not finite.
    """
    state = _of_peer(state, k, path)
    match = _match_backbone(network.backbone, state, path)
    if not match.whole:
        _refuse(path, network.backbone, match, state)
    loaded = {f"backbone.{name}": value for name, value in match.found.items()}

    # The rest lies beside the backbone, if the file calls that by its name here.
    beside = re.fullmatch(r"(.*\.|)backbone\.", match.prefix)
    outer = _below(state, beside[1]) if beside else {}
    own = network.state_dict()
    heads = {f"{name}.weight": part for name, part in network.named_modules() if hasattr(part, "cls_layer")}
    rest = _match(outer, {name: value for name, value in own.items() if not name.startswith("backbone.")}, "")
    parameters = {name for name, _ in network.named_parameters() if name not in heads}
    missing = [name for name in rest.missing if name not in heads]
    random = [name for name in missing if name in parameters and own[name].ndim > 1]
    odd = [name for name in rest.misshapen if name in parameters]
    # "heads.classifier" is of fast-reid before 1.2
    unused = [name for name in rest.extra if not name.startswith("heads.classifier.")]
    # MGN's branches are most of its network: a bare backbone is no start for them.
    if odd or len(random) > 0.1 * len(own) or evaluation and (random or unused):
        rest = _Match(match.prefix, rest.found, random, odd, unused, rest.total)
        _refuse(path, network, rest, outer, "other")
    loaded.update({name: value for name, value in rest.found.items() if name not in heads})
    for name, head in heads.items() if classifier else ():
        rows, here = outer.get(name), own[name]
        if rows is None:
            continue
        if rows.shape == here.shape or isinstance(network, Peer) and rows.shape[1:] == here.shape[1:]:
            loaded[name] = rows
        elif evaluation and isinstance(head, ClasHead):  # which returns the classifier's outputs
            raise WeightsError(
                f"{path!r} has a classifier of {len(rows)} identities, and a ClasHead is evaluated by it: "
                f"set MODEL.HEADS.NUM_CLASSES to {len(rows)}, here {len(here)}"
            )
        else:
            sizes = (len(rows), len(here))
            logger.info("%s has a classifier of %d identities, here are %d: it is left out", path, *sizes)
    _fill(network, loaded, path, match)
    if missing:
        named = ", ".join(missing[:8])
        logger.warning("%s has no weights for %s: they keep their initial values", path, named)
    return missing


def load_exactly(model: nn.Module, state: State, path: str) -> None:
    """Load every tensor of a model, the classifier too: a resumed run, or a whole SSKD model.

    Peers take the number of clusters of the file.

    Raises:
        WeightsError: if the file is of another model, or not finite; the model is then unchanged.
    """
    own = model.state_dict()
    prefix = _prefix(state, own)
    for name, part in model.named_modules():
        key = f"{name}.heads.weight" if name else "heads.weight"
        rows = state.get(prefix + key)
        if isinstance(part, Peer) and rows is not None and rows.shape[1:] == own[key].shape[1:]:
            own[key] = rows
    match = _match(state, own, prefix, whole=True)
    if not match.whole:
        _refuse(path, model, match, state, "model")
    _fill(model, match.found, path, match, "model")


def load_model(model: nn.Module, path: str, *, evaluation: bool = False) -> dict[str, Any]:
    """Load ``MODEL.WEIGHTS`` into the model of a config: an SSKD model exactly, others by load_network.

    Returns:
        What the file has under other keys than "model".

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it cannot be read, or is of another network.
    """
    content = read_file(path)
    state = _named_tensors(content, path)
    if isinstance(model, SSKD):
        load_exactly(model, state, path)
    else:
        load_network(model, state, path, evaluation=evaluation, classifier=True)
    return {key: value for key, value in content.items() if key != "model"} if "model" in content else {}


def load_source_weights(model: SSKD, paths: Sequence[str]) -> list[list[str]]:
    """Start every student, and as its copy its teacher, from source weights.

    Args:
        model: the peers to fill.
        paths: one file a peer ("" leaves a peer as it is), or one file for all of them. An SSKD checkpoint
            holds one network a peer; from any other file all peers start equal, with a warning.

    Returns:
        For each peer what :func:`load_network` returns; all but the backbone for one that is left as it is.

    Raises:
        WeightsError: if a file is of another network.
        ValueError: if the number of files does not fit.
        FileNotFoundError: if a file is missing.
    """
    if len(paths) not in (1, model.num_peers):
        raise ValueError(
            f"SSKD.SOURCE.WEIGHTS takes 1 or SSKD.NUM_PEERS = {model.num_peers} files, got {len(paths)}"
        )
    states = {path: read_state_dict(path) for path in paths if path}
    if len(set(paths)) == 1 and model.num_peers > 1 and not is_sskd_state(states[paths[0]]):
        logger.warning(
            "all %d peers start from %s, so they start equal: pre-train one model per peer (different seeds)",
            model.num_peers,
            paths[0],
        )
    absent = []
    for k, (student, teacher) in enumerate(zip(model.students, model.teachers)):
        path = paths[k if len(paths) > 1 else 0]
        if not path:
            absent.append([name for name in student.state_dict() if not name.startswith("backbone.")])
            continue
        absent.append(load_network(student, states[path], path, k))
        teacher.load_state_dict(student.state_dict())
        logger.info("peer %d starts from %s", k, path)
    return absent


def _fill(network: nn.Module, found: State, path: str, match: "_Match", what: str = "backbone") -> None:
    """Load tensors that all are finite, and log how much of the network they are."""
    for name, value in found.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(
                f"{path!r} has values that are not finite in its tensor {name}: it is damaged, or of a "
                "training that has diverged. Take another checkpoint"
            )
    network.load_state_dict(found, strict=False)
    names = f"names begin with {match.prefix}" if match.prefix else "plain names"
    logger.info("loaded %d of %d %s tensors from %s (%s)", match.num_found, match.total, what, path, names)


# ---- finding a network in a file -----------------------------------------------------------------

_TEACHER = re.compile(r"(?:^|\.)teachers\.(\d+)\.", re.MULTILINE)
# Of two networks in a file that fit alike, those with these words come second.
_SECOND = re.compile(r"(^|[._])(student|encoder_k|momentum)")
# What backbones from elsewhere have beside the backbone's own parts, of other classes.
_CLASSIFIER = re.compile(r"(head\.)?(fc|classifier)\.|head\.(weight|bias)$")


def is_sskd_state(state: State) -> bool:
    """Whether a state dict is a whole SSKD model's, with students and teachers."""
    return any(_TEACHER.search(key) for key in state)


def _of_peer(state: State, k: int | None, path: str) -> State:
    """Return teacher k of an SSKD model (None: the best), or all tensors of a file of one network."""
    if not is_sskd_state(state):
        return state
    if k is None:
        best = [max(int(value), 0) for key, value in state.items() if key.split(".")[-1] == "best_peer"]
        k = best[0] if best else 0
        logger.warning("%s holds an SSKD model, not one network: its best teacher, %d, is taken", path, k)
    of_k = re.compile(rf"(?:^|\.)teachers\.0*{k}\.")
    own = {key: value for key, value in state.items() if of_k.search(key)}
    if not own:
        raise WeightsError(
            f"{path!r} holds no network for peer {k}: lower SSKD.NUM_PEERS, or give one file a peer"
        )
    return own


@dataclass(frozen=True)
class _Match:
    """What of a network a file has.

    Attributes:
        prefix: of the network's names in the file.
        found: own name -> tensor of the right shape.
        missing, misshapen: own names; counters of batches are not missed.
        extra: names in the file below the prefix that would belong to this network, if it were the file's.
        total: tensors of the network, without counters of batches.
    """

    prefix: str
    found: dict[str, torch.Tensor]
    missing: list[str]
    misshapen: list[str]
    extra: list[str]
    total: int

    @property
    def num_found(self) -> int:
        return sum(not _counts_batches(name) for name in self.found)

    @property
    def whole(self) -> bool:
        return not (self.missing or self.misshapen or self.extra)


def _match(state: State, own: State, prefix: str, *, whole: bool = False) -> _Match:
    """Compare a network's tensors with those of a file below a prefix.

    Args:
        state: tensors of the file.
        own: tensors of the network.
        prefix: of the network's names in the file.
        whole: whether all the file has there must be the network's; else only what is beside the network's
            own parts (``layer3.6`` beside ``layer3.5``, but no ``fc``).
    """
    below = _below(state, prefix)
    found: dict[str, torch.Tensor] = {}
    missing, misshapen = [], []
    for name, tensor in own.items():
        value = _in_shape(below[name], tensor) if name in below else None
        if value is not None:
            found[name] = value
        elif not _counts_batches(name):
            (misshapen if name in below else missing).append(name)

    def stem(name: str) -> str:
        return name.split(".")[0].rstrip("0123456789")

    stems = {stem(name) for name in own} | {"NL_"}
    extra = [
        name
        for name in below
        if not (name in own or _counts_batches(name) or _CLASSIFIER.match(name))
        # statistics may be of another norm
        and (whole or stem(name) in stems and not name.endswith(("running_mean", "running_var")))
    ]
    return _Match(prefix, found, missing, misshapen, extra, sum(not _counts_batches(name) for name in own))


def _match_backbone(backbone: nn.Module, state: State, path: str) -> _Match:
    own, given = backbone.state_dict(), state
    prefix = _prefix(state, own)
    positions = state.get(f"{prefix}pos_embed", torch.empty(0))
    known = "pos_embed" in own and positions.ndim == 3 and positions.shape[1] > 2
    if known and positions.shape != own["pos_embed"].shape:
        distilled = f"{prefix}dist_token" in state and "dist_token" not in own
        state = {**state, f"{prefix}pos_embed": _resized_positions(backbone, positions, distilled)}
    of_fastreid = prefix.endswith("backbone.") and any(
        key.startswith(f"{prefix.removesuffix('backbone.')}heads.") for key in state
    )
    match = _match(state, own, prefix, whole=of_fastreid)
    if not match.whole and hasattr(backbone, "from_other_layout"):
        with contextlib.suppress(Exception):  # of another network: timm's rules fail in their own ways
            other = _match(backbone.from_other_layout(_below(given, prefix)), own, "", whole=of_fastreid)
            if other.whole:
                logger.warning(
                    "%s has another layout or size than the backbone: timm's rules convert it", path
                )
                return replace(other, prefix=prefix)
    if match.missing and (renamed := _in_order(state, own)):
        logger.warning("%s has other names than the backbone, but its shapes: it is loaded by order", path)
        return _Match("", renamed, [], [], [], match.total)
    return match


def _prefix(state: State, own: State) -> str:
    """Return what most of the network's names have before them in the file."""
    fitting: Counter[str] = Counter()
    named: Counter[str] = Counter()
    for key, value in state.items():
        for at in (0, *(dot.end() for dot in re.finditer(r"\.", key))):
            name = key[at:]
            if name in own and not _counts_batches(name):
                named[key[:at]] += 1
                fitting[key[:at]] += _in_shape(value, own[name]) is not None
    return max(named, key=lambda start: (fitting[start], named[start], not _SECOND.search(start)), default="")


def _below(state: State, prefix: str) -> dict[str, torch.Tensor]:
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
        own.numel() == 1 or value.shape[0] == own.shape[0] and min(value.ndim, own.ndim) == 2
    )
    return value.reshape(own.shape) if flat else None


def _resized_positions(backbone: nn.Module, positions: torch.Tensor, distilled: bool) -> torch.Tensor:
    """Resize the positions (1, t + n, d) of a ViT to its own grid; drop a distilled one's second token.

    t is the number of its tokens that have positions, 1 in the host's.

    A grid is a square, else of about the own shape; positions of neither, or without a class token, are
    unchanged.
    """
    embed = backbone.patch_embed
    rows, columns = embed.grid_size if hasattr(embed, "grid_size") else (embed.num_y, embed.num_x)
    tokens = backbone.pos_embed.shape[1] - rows * columns
    token, grid = positions[:, :tokens], positions[:, tokens + distilled :]
    patches = grid.shape[1]
    if patches == rows * columns:
        return torch.cat([token, grid], dim=1)

    def stretched(side: int) -> float:
        return abs(math.log(side * side / patches * columns / rows))

    side = math.isqrt(patches)
    if side * side != patches:
        side = min((n for n in range(1, patches + 1) if patches % n == 0), key=stretched)
    without_token = any(
        patches + n in (rows * columns, math.isqrt(patches + n) ** 2) for n in range(1, tokens + 1)
    )
    if without_token and stretched(side) > 1e-9 or side * side != patches and stretched(side) > math.log(1.5):
        return positions
    sizes = (side, patches // side, rows, columns)
    logger.warning("the positions of a grid of %d x %d patches are resized to %d x %d", *sizes)
    grid = grid.reshape(1, side, patches // side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(rows, columns), mode="bilinear").permute(0, 2, 3, 1)
    return torch.cat([token, grid.reshape(1, rows * columns, -1).to(token.dtype)], dim=1)


def _in_order(state: State, own: State) -> dict[str, torch.Tensor] | None:
    """Name the file's first tensors as the network's, if their kinds and shapes are in its order; else None.

    Other toolboxes name one network's layers otherwise: torchvision's MobileNetV2, a ResNet kept as
    nn.Sequential.
    """
    if any(re.search(r"(^|\.)backbone\.", key) for key in state):  # fast-reid's own names
        return None
    names = [name for name in own if not _counts_batches(name)]
    theirs = [(key, value) for key, value in state.items() if not _counts_batches(key)][: len(names)]
    same = len(theirs) == len(names) and all(
        key.split(".")[-1] == name.split(".")[-1] and value.shape == own[name].shape
        for name, (key, value) in zip(names, theirs)
    )
    return {name: value for name, (_, value) in zip(names, theirs)} if same else None


# ---- refusing ------------------------------------------------------------------------------------


def _refuse(path: str, network: nn.Module, match: _Match, state: State, what: str = "backbone") -> None:
    """Raise what does not fit, and the probable cause, in a few lines."""
    below = _below(state, match.prefix)
    known = {*match.found, *match.misshapen}
    others = match.extra or [name for name in below if name not in known]
    share = f"{match.num_found} of {match.total} {what} tensors of this {type(network).__name__} fit"
    text = f"{path!r} holds weights of another network than the config describes: {share}"
    text += f" ({match.num_found / match.total:.0%})"
    small = [name for name in match.misshapen if name in below and _is_quantised(below[name])]
    kinds = {
        "missing": match.missing,
        "of another shape": [name for name in match.misshapen if name not in small],
        "quantised to 8 bits or fewer": small,
        "only in the file": others,
    }
    for kind, names in kinds.items():
        if names:
            text += f"\n  {len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    cause = _cause(match, list(below))
    if small:
        cause = (
            "a quantised copy, whose values do not say what they stand for: give the float weights that it "
            "was made from"
        )
    raise WeightsError(f"{text}\n  Probably {cause}")


def _is_quantised(value: torch.Tensor) -> bool:
    return value.is_quantized or value.dtype in (torch.int8, torch.uint8)


def _cause(match: _Match, there: list[str]) -> str:
    here = [*match.found, *match.missing, *match.misshapen]
    theirs, ours = (len(set(_TEACHER.findall("\n".join(names)))) for names in (there, here))
    if theirs != ours and ours:
        if not theirs:
            return (
                "one network, and no SSKD model: evaluate it with the config that it was trained with, or "
                "let the peers start from it (SSKD.SOURCE.WEIGHTS)"
            )
        return f"an SSKD model of {theirs} peers: set SSKD.NUM_PEERS, here {ours}, or SSKD.PEERS"
    if match.misshapen and all(name.startswith("heads.") for name in match.misshapen):
        return "another head: compare MODEL.HEADS and MODEL.BACKBONE.FEAT_DIM"
    if match.num_found < 0.1 * match.total:
        return "another architecture: compare MODEL.BACKBONE.NAME and MODEL.META_ARCHITECTURE"
    for part, key in ((".IN.", "WITH_IBN"), (".se.", "WITH_SE"), ("NL_", "WITH_NL")):
        has = any(part in name for name in there)
        if has != any(part in name for name in here):
            return f"MODEL.BACKBONE.{key}, which would have to be {has}"
    if match.misshapen:
        return "another depth or width: compare MODEL.BACKBONE.DEPTH and MODEL.BACKBONE.NAME"
    if not match.missing:
        return "a larger network: compare MODEL.BACKBONE.DEPTH and MODEL.HEADS"
    if len({name.split(".")[0] for name in match.missing}) == 1:
        return "its last layers are left out, or it is another variant: compare MODEL.BACKBONE.NAME and DEPTH"
    return "a smaller network or another variant: compare MODEL.BACKBONE.DEPTH and MODEL.BACKBONE.NAME"
