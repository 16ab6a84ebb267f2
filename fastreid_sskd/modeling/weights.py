"""Source weights into the peers: our checkpoints, any fast-reid checkpoint of the same backbone, or a bare backbone."""
import contextlib
import logging
import os
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from .peer import Peer
from .sskd import SSKD

__all__ = ["is_sskd_state", "load_network", "load_source_weights", "read_state_dict"]

logger = logging.getLogger("fastreid.sskd.weights")

# A bare backbone from elsewhere (torchvision, torchreid) often brings its classifier of other classes along.
_CLASSIFIERS = ("backbone.fc.", "backbone.classifier.")


def _arrays_allowed() -> AbstractContextManager:
    """Lets ``weights_only`` read numpy's arrays too, from torch 2.6 on; before, it refuses such a file."""
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
    return torch.serialization.safe_globals([*names, np.ndarray, np.dtype, *types])


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint: a fast-reid one (under "model") or a plain state dict.

    Args:
        path: a file that ``torch.load(weights_only=True)`` reads; nothing else in it is unpickled. Numpy arrays
            in it count as tensors (torch >= 2.6).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint of tensors.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"weights {path!r} not found: give existing files in SSKD.SOURCE.WEIGHTS or MODEL.WEIGHTS, "
            "or none to pre-train on the source"
        )
    with open(path, "rb") as file:
        try:
            with _arrays_allowed():
                saved = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of a damaged file anything: UnpicklingError, KeyError, struct.error, OSError
            raise ValueError(
                f"{path!r} is not a checkpoint of plain tensors: it is damaged, or holds other objects too; then "
                f"save the tensors alone with torch.save(state_dict, path) (torch: {type(error).__name__})"
            ) from error
    for key in ("model", "state_dict"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not saved:
        raise ValueError(f"{path!r} holds no state dict, but a {type(saved).__name__}")
    state = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in saved.items()}
    state = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not state:
        raise ValueError(f"{path!r} holds no named tensors: its keys begin with {list(saved)[:3]}")
    return {k.removeprefix("module."): v for k, v in state.items()}


def is_sskd_state(state: dict[str, torch.Tensor]) -> bool:
    """Whether a state dict is a whole SSKD model's, with students and teachers."""
    return any(key.startswith("teachers.") for key in state)


def _peer_state(state: dict[str, torch.Tensor], k: int, own: Container[str]) -> dict[str, torch.Tensor]:
    """The part of a state dict that is peer k's network: of an SSKD checkpoint, teacher k's; ``own``: names of all its tensors."""
    prefix = f"teachers.{k}."
    if is_sskd_state(state):
        state = {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
    if not any(key.startswith("backbone.") for key in state):
        return {f"backbone.{key}": value for key, value in state.items()}
    return {key: value for key, value in state.items() if key.startswith(("backbone.", "heads.")) or key in own}


def load_network(peer: Peer, state: dict[str, torch.Tensor], path: str, k: int = 0) -> list[str]:
    """Load one network but its classifier, which is of other identities and stays as it is.

    That is backbone, BN-neck, and what an architecture of its own (``SSKD.PEER_ARCHITECTURE``) has besides.

    Args:
        peer: the network to fill.
        state: of a fast-reid model, of a bare backbone, or of an SSKD model (then teacher ``k``).
        path: where the state is from, for messages.

    Returns:
        The names of the tensors that the state lacks, the classifier apart: they keep their initial values.

    Raises:
        ValueError: if the backbone or the neck does not fit, or an SSKD model has no such teacher.
    """
    own = peer.state_dict()
    state = _peer_state(state, k, own)
    if not state:
        raise ValueError(f"{path!r} holds no network for peer {k}: lower SSKD.NUM_PEERS, or give one file a peer")
    state = {key: value for key, value in state.items() if key != "heads.weight"}
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    missing = [k for k in own if k.startswith("backbone.") and k not in state and "num_batches_tracked" not in k]
    unknown = [
        k for k in state if k not in own and k.startswith("backbone.") and not k.startswith(_CLASSIFIERS)
    ]
    if wrong or missing or unknown:
        parts = [
            f"{len(keys)} {what} (first: {keys[0]})"
            for what, keys in (("missing", missing), ("of another shape", wrong), ("unknown", unknown))
            if keys
        ]
        raise ValueError(
            f"{path!r} holds weights of another network than MODEL.BACKBONE / MODEL.HEADS describe: tensors "
            + ", ".join(parts)
        )
    absent = [k for k in own if not k.startswith("backbone.") and k != "heads.weight" and k not in state]
    if absent:
        logger.warning("%s has no weights for %s: they keep their initial values", path, ", ".join(absent))
    peer.load_state_dict(state, strict=False)
    return absent


def load_source_weights(model: SSKD, paths: Sequence[str]) -> list[list[str]]:
    """Start every student, and as its copy its teacher, from source weights.

    Args:
        model: the peers to fill.
        paths: one file a peer, or one file for all of them (an SSKD checkpoint holds one network a peer; from any
            other file all peers start equal, which is warned of: only their views will make them differ).

    Returns:
        For each peer what :func:`load_network` does.

    Raises:
        ValueError: if the number of files does not fit, or a file is of another network.
        FileNotFoundError: if a file is missing.
    """
    if len(paths) not in (1, model.num_peers):
        raise ValueError(
            f"SSKD.SOURCE.WEIGHTS takes 1 or SSKD.NUM_PEERS = {model.num_peers} files, got {len(paths)}"
        )
    states = [read_state_dict(path) for path in paths]
    if len(set(paths)) == 1 and model.num_peers > 1 and not is_sskd_state(states[0]):
        logger.warning(
            "all %d peers start from %s, so they start equal: pre-train one model a peer (different seeds) "
            "for peers that have something to teach each other", model.num_peers, paths[0],
        )
    absent = []
    for k, (student, teacher) in enumerate(zip(model.students, model.teachers)):
        at = k if len(paths) > 1 else 0
        absent.append(load_network(student, states[at], paths[at], k))
        teacher.load_state_dict(student.state_dict())
        logger.info("peer %d starts from %s", k, paths[at])
    return absent
