"""What a config says about a result: network, source, batch norm, epochs, device."""

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml
from fastreid.config import CfgNode

from ..data.samplers import images_per_bn
from ..engine import load_config

__all__ = ["as_dict", "backbone_name", "describe", "read_config", "source_name"]

_PEERS = ("SSKD", "SSKDSource")


def read_config(path: str) -> dict[str, Any]:
    """The ``config.yaml`` of a run as a dict: also that of an older version, whose keys are no longer known."""
    with open(path, encoding="utf-8") as file:
        try:
            config = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path!r} is no YAML: {error}") from error
    missing = [key for key in ("MODEL", "DATASETS", "SOLVER") if key not in (config if isinstance(config, dict) else {})]
    if missing:
        raise ValueError(f"{path!r} is no config of a run: it has no {' and no '.join(missing)}")
    return config


def as_dict(cfg: CfgNode) -> dict[str, Any]:
    """A config as the dict that its ``config.yaml`` would be read as."""
    return yaml.safe_load(cfg.dump())


def backbone_name(config: Mapping[str, Any]) -> str:
    """ "resnet50", "osnet x0.25", "resnet50-ibn": the host's builder and its DEPTH."""
    backbone = config["MODEL"]["BACKBONE"]
    name = re.sub(r"^build_|_backbone$", "", backbone["NAME"])
    depth = str(backbone["DEPTH"])
    name = name + depth[:-1] if re.fullmatch(r"\d+x", depth) else f"{name} {depth.replace('_', '.')}"
    kinds = [kind for kind in ("ibn", "se", "nl") if backbone.get(f"WITH_{kind.upper()}")]
    return "-".join([name, *kinds])


def source_name(config: Mapping[str, Any]) -> str:
    """The data sets of stage 1, else the names of the weights that the run starts from, else what it trains on."""
    source = config.get("SSKD", {}).get("SOURCE", {})
    if source.get("CONFIG") and os.path.isfile(source["CONFIG"]):
        return " + ".join(load_config(source["CONFIG"], source.get("OPTS", [])).DATASETS.NAMES)
    weights = [*source.get("WEIGHTS", []), config["MODEL"].get("WEIGHTS", "")]
    stems = dict.fromkeys(os.path.splitext(os.path.basename(path))[0] for path in weights if path)
    if stems and config["MODEL"]["META_ARCHITECTURE"] in _PEERS:
        return " + ".join(stems)
    return " + ".join(config["DATASETS"]["NAMES"])


def describe(config: Mapping[str, Any], test: str, processes: int = 1) -> dict[str, Any]:
    """The fields of a ``Result`` that the config of a training gives.

    Args:
        config: of the run.
        test: name of the test set.
        processes: of the run.
    """
    architecture = config["MODEL"]["META_ARCHITECTURE"]
    if architecture == "SSKD":
        method = "SSKD"
    else:
        method = f"{'supervised' if test in config['DATASETS']['NAMES'] else 'source only'}, {architecture}"
    return {
        "method": method,
        "target": test,
        "source": source_name(config),
        "backbone": backbone_name(config),
        "images_per_bn": images_per_bn(config, processes),
        "epochs": config["SOLVER"]["MAX_EPOCH"],
        "seed": config.get("SEED"),
    }
