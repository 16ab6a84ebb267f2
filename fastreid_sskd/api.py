"""From unlabelled images to an adapted model, and from images to its features."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from PIL import Image

from .engine import load_config, resolve
from .engine.defaults import log_file
from .engine.files import output_folder
from .engine.pipeline import check_run, image_features, load_trained, train
from .refusals import checking

_Path = str | os.PathLike


class Adaptation(NamedTuple):
    """What :func:`adapt` has made.

    Attributes:
        output: the run's folder, for :func:`load`.
        results: of the last evaluation, {test set: {"teacher0": metrics, ..., "ensemble": metrics}}; {}
            without a test set.
    """

    output: str
    results: dict


def adapt(
    config: _Path,
    *,
    target: _Path = "",
    weights: _Path | Sequence[_Path] = (),
    output: _Path = "",
    opts: Sequence = (),
    resume: bool = False,
) -> Adaptation:
    """Adapt source models to unlabelled images, as ``fastreid-sskd train`` does.

    The log is in the output folder.

    Args:
        config: an SSKD config, a file or the name of one that the package ships, such as "sskd_crops.yml".
        target: folder of crops to adapt to; "": the config's target. A test set is kept only where the
            config's own target is a folder too.
        weights: source models, one file for all peers or one each; (): the config's, or stage 1 makes them.
        output: the run's folder; "": the config's ``OUTPUT_DIR``.
        opts: overrides of the config, KEY, value, ...
        resume: continue from the last checkpoint in the output folder, if there is one.

    Example:
        >>> from fastreid_sskd import adapt, load
        >>> run = adapt("sskd_crops.yml", target="crops", weights="market.pth", output="runs/mine")
        >>> model = load(run.output, "ensemble")
        >>> features = model(["crops/0001.jpg", "crops/0002.jpg"])  # (2, 2048)
    """
    cfg = _config(config, target, weights, output, opts)
    check_run(cfg, resume)
    with output_folder(cfg.OUTPUT_DIR), log_file(cfg.OUTPUT_DIR):
        return Adaptation(cfg.OUTPUT_DIR, train(cfg, resume))


@checking()
def _config(config, target, weights, output, opts) -> CfgNode:
    """The frozen config that :func:`adapt` runs."""
    cfg = resolve(load_config(os.fspath(config), opts))
    if cfg.MODEL.META_ARCHITECTURE != "SSKD":
        raise ValueError(
            f"adapt takes a config of MODEL.META_ARCHITECTURE SSKD, and {config!r} is of "
            f"{cfg.MODEL.META_ARCHITECTURE}: take sskd_crops.yml, or call fastreid_sskd.engine.run"
        )
    if target:
        name = next((name for name in cfg.DATASETS.NAMES if name in cfg.SSKD.FOLDERS), "")
        if not name:  # the config's test set is of other cameras than these
            name, cfg.DATASETS.TESTS, cfg.TEST.EVAL_PERIOD = "CropFolder", (), 0
        cfg.DATASETS.NAMES = (name,)
        cfg.SSKD.FOLDERS[name].TRAIN = os.path.abspath(target)
    if weights:
        files = [weights] if isinstance(weights, (str, os.PathLike)) else weights
        cfg.SSKD.SOURCE.WEIGHTS = [os.fspath(file) for file in files]
    cfg.OUTPUT_DIR = os.fspath(output) or cfg.OUTPUT_DIR
    if not cfg.OUTPUT_DIR:
        raise ValueError("OUTPUT_DIR is empty: name a folder for the run's checkpoints by output")
    cfg.freeze()
    return cfg


@checking()
def load(run: _Path, teacher: str | int = "", device: str = "") -> "FeatureExtractor":
    """Load a trained model: of SSKD, of stage 1, or a plain fast-reid one.

    Args:
        run: a run's folder, of which ``model_final.pth`` is taken; or one of its checkpoints.
        teacher: of an SSKD model: "ensemble", "best" or a peer's number; "": as the run's ``SSKD.EVAL_WITH``
            says.
        device: of torch; "": the GPU if there is one, else the CPU.

    Raises:
        FileNotFoundError: if there is no such run or checkpoint, or no ``config.yaml`` beside it.
        ValueError: if the file cannot be read or is of another model, or there is no such teacher.
    """
    weights = os.path.join(run, "model_final.pth") if os.path.isdir(run) else os.fspath(run)
    if not os.path.isfile(weights):
        raise FileNotFoundError(
            f"no file {weights!r}: name the folder of a finished run, or a checkpoint in a run's folder"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    opts = ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", device]
    cfg = load_config(
        os.path.join(os.path.dirname(weights), "config.yaml"),
        opts if teacher == "" else [*opts, "SSKD.EVAL_WITH", teacher],
    )
    resolve(cfg).freeze()
    return FeatureExtractor(cfg, load_trained(cfg))


class FeatureExtractor:
    """Map images to features (N, d), float32 of unit length, exactly as the model's evaluation does."""

    def __init__(self, cfg: CfgNode, model: torch.nn.Module):
        self.cfg = cfg
        self.model = model

    def __call__(self, images) -> np.ndarray:
        """Compute the features of images, in batches of ``TEST.IMS_PER_BATCH``.

        Args:
            images: one image or a sequence of N, which may be mixed and of any sizes. An image is a path or a
                uint8 array (H, W, 3) in RGB; an array (N, H, W, 3) is a sequence.

        Raises:
            FileNotFoundError, OSError: if a file is not there, or no image.
            ValueError: if an array is not as above.
            FloatingPointError: if a feature is not finite.
        """
        if isinstance(images, str) or not isinstance(images, Iterable) or getattr(images, "ndim", 0) == 3:
            images = [images]
        found = [_image(image) for image in images]
        if not found:  # the size of a feature is the network's answer
            return self([np.zeros((1, 1, 3), np.uint8)])[:0]
        return image_features(self.cfg, self.model, found)


def _image(image) -> str | Image.Image:
    """A path, or the image of an array."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            "an image is a path or an array (H, W, 3) of uint8 in RGB, values 0..255; got an array of shape "
            f"{pixels.shape} of {pixels.dtype}: convert it"
        )
    return Image.fromarray(pixels)
