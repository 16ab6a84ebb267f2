"""Weights from a user's files: read safely, found in any layout, and loaded whole or refused."""

import argparse
import codecs
import contextlib
import logging
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from fastreid.modeling.heads import ClasHead
from torch import nn

from ..refusals import said_of
from . import layouts
from .layouts import Match, State
from .peer import Peer
from .sskd import SSKD

logger = logging.getLogger("fastreid.sskd.weights")


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
        with open(path, "rb") as file:
            head = file.read(16)
        if re.match(_SAFETENSORS, head):
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
    """Read the tensors and arrays of a file under their dotted names: ``state_dict.module.conv1.weight``."""
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


def load_backbone(backbone: nn.Module, path: str) -> None:
    """Load ``MODEL.BACKBONE.PRETRAIN_PATH``: a backbone, alone or in any model, under any prefix."""
    with said_of("MODEL.BACKBONE.PRETRAIN_PATH"):
        match = _find_backbone(backbone, _of_peer(read_state_dict(path), None, path), path)
        _fill(backbone, match.found, path, match)


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
        evaluation: whether the network is used as it is. Then a random layer is refused too, and layers of
            the head that the network does not have.
        classifier: whether the classifier is loaded where it fits (into a :class:`.peer.Peer` with any number
            of rows).

    Returns:
        The names of the tensors that the file lacks, except the classifier's.

    Raises:
        WeightsError: if the file is of another network, or not finite.
    """
    state = _of_peer(state, k, path)
    match = _find_backbone(network.backbone, state, path, evaluation=evaluation)
    loaded = {f"backbone.{name}": value for name, value in match.found.items()}

    own = network.state_dict()
    outer = layouts.beside(state, match.prefix, own)
    heads = {f"{name}.weight": part for name, part in network.named_modules() if hasattr(part, "cls_layer")}
    rest = layouts.match(
        outer, {name: value for name, value in own.items() if not name.startswith("backbone.")}, ""
    )
    parameters = {name for name, _ in network.named_parameters() if name not in heads}
    missing = [name for name in rest.missing if name not in heads]
    random = [name for name in missing if name in parameters and own[name].ndim > 1]
    odd = [name for name in rest.misshapen if name in parameters]
    # "heads.classifier" is of fast-reid before 1.2
    unused = [name for name in rest.extra if not name.startswith("heads.classifier.")]
    # MGN's branches are most of its network: a bare backbone is no start for them.
    if odd or len(random) > 0.1 * len(own) or evaluation and (random or unused):
        rest = Match(match.prefix, rest.found, random, odd, unused, rest.total)
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
    """
    own = model.state_dict()
    prefix = layouts.prefix_of(state, own)
    for name, part in model.named_modules():
        key = f"{name}.heads.weight" if name else "heads.weight"
        rows = state.get(prefix + key)
        if isinstance(part, Peer) and rows is not None and rows.shape[1:] == own[key].shape[1:]:
            own[key] = rows
    match = layouts.match(state, own, prefix, whole=True)
    if not match.whole:
        _refuse(path, model, match, state, "model")
    _fill(model, match.found, path, match, "model")


def load_model(model: nn.Module, path: str, *, evaluation: bool = False) -> dict[str, Any]:
    """Load ``MODEL.WEIGHTS`` into the model of a config: an SSKD model exactly, others by load_network.

    Returns:
        What the file has under other keys than "model".
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


def _find_backbone(backbone: nn.Module, state: State, path: str, *, evaluation: bool = False) -> Match:
    """Find the whole backbone in a file, or refuse it; in evaluation also without layers that no file has."""
    match = layouts.find_backbone(backbone, state)
    if not (match.whole and match.found) or evaluation and match.new:
        _refuse(path, backbone, match, state)
    if match.rule:
        logger.warning("%s has other names than the backbone: it is loaded %s", path, match.rule)
    if match.new:
        said = "%s has no weights for %d tensors (first: %s): they keep their initial values"
        logger.warning(said, path, len(match.new), match.new[0])
    return match


def _fill(network: nn.Module, found: State, path: str, match: Match, what: str = "backbone") -> None:
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


# ---- models of peers ------------------------------------------------------------------------------

_TEACHER = re.compile(r"(?:^|\.)teachers\.(\d+)\.", re.MULTILINE)


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


# ---- refusing ------------------------------------------------------------------------------------


def _refuse(path: str, network: nn.Module, match: Match, state: State, what: str = "backbone") -> None:
    """Raise what does not fit, and the probable cause, in a few lines."""
    below = layouts.below(state, match.prefix)
    known = {*match.found, *match.misshapen}
    others = match.extra or [name for name in below if name not in known]
    share = f"{match.num_found} of {match.total} {what} tensors of this {type(network).__name__} fit"
    text = f"{path!r} holds weights of another network than the config describes: {share}"
    text += f" ({match.num_found / match.total:.0%})"
    quantised = {name for name, v in below.items() if v.is_quantized or v.dtype in (torch.int8, torch.uint8)}
    small = [name for name in match.misshapen if name in quantised]
    kinds = {
        "missing": [*match.missing, *match.new],
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


def _cause(match: Match, there: list[str]) -> str:
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
