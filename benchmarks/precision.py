#!/usr/bin/env python3
"""Measure what the precision of the passes does to the first pseudo-labels of a run.

    FASTREID_DATASETS=data benchmarks/precision.py osnet_x0_25_msmt17.pth --json precision_labels.json

Each row clusters other features of the same images and network: those of a precision, or float32's with
Gaussian noise of a given relative size, which says how large an error the labels bear. Where the device lacks
a type, its rounding is simulated: weights and what each module gives are rounded, sums stay float32.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import measure
import numpy as np
import torch
from fastreid.modeling import build_model
from sklearn.metrics import adjusted_rand_score
from tabulate import tabulate
from torch import nn

from fastreid_sskd.clustering import ClusterOptions, cluster_agreement, pseudo_labels
from fastreid_sskd.clustering.diagnostics import noise_as_singletons
from fastreid_sskd.data import extraction_loader
from fastreid_sskd.data.items import training_items
from fastreid_sskd.engine import load_config
from fastreid_sskd.engine.files import write_atomically
from fastreid_sskd.engine.refresh import estimate_necks
from fastreid_sskd.evaluation.features import extract_features
from fastreid_sskd.modeling import SSKD
from fastreid_sskd.modeling.weights import load_source_weights
from fastreid_sskd.precision import Precision


@contextmanager
def rounded(model: SSKD, dtype: torch.dtype, float32: tuple[str, ...] = ()) -> Iterator[None]:
    """Round the weights of the teachers and what each of their modules gives to a type.

    Args:
        model: is left as it was.
        dtype: the type.
        float32: beginnings of the names of modules that are left alone.
    """
    kept, hooks = {}, []
    for name, module in model.teachers[0].named_modules():
        if name.startswith(float32) or next(module.children(), None) is not None:
            continue
        hooks.append(module.register_forward_hook(lambda _, __, out: out.to(dtype).float()))
        if isinstance(module, nn.Conv2d):
            kept[module.weight] = module.weight.data
            module.weight.data = module.weight.data.to(dtype).float()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, value in kept.items():
            weight.data = value


def rows(args: argparse.Namespace) -> list[dict]:
    """One row for each kind of features."""
    opts = ["MODEL.DEVICE", args.device, "SSKD.NUM_PEERS", "1", *args.opts]
    cfg = load_config(args.config, opts)
    items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    identities = np.unique([item[1] for item in items], return_inverse=True)[1]
    model = build_model(cfg).eval()
    absent = load_source_weights(model, [args.weights])

    def features(precision: str = "float32") -> torch.Tensor:
        half = load_config(args.config, [*opts, "SSKD.PRECISION", precision])
        estimate_necks(half, model, items, absent)
        return model.combine(extract_features(model, extraction_loader(half, items), Precision(half)))

    def noisy(size: float) -> torch.Tensor:
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(args.seed))
        return nn.functional.normalize(clean + size / clean.shape[1] ** 0.5 * noise.to(clean), dim=1)

    clean, found, reference = None, [], None

    def add(what: str, make) -> torch.Tensor:
        nonlocal reference
        cpu = time.process_time()
        given = make()
        cpu = time.process_time() - cpu
        labels = pseudo_labels(given, options=ClusterOptions.from_cfg(cfg), device=args.device).labels
        reference = labels if reference is None else reference
        agreement = cluster_agreement(labels, identities)
        error = 0.0 if clean is None else float((given - clean).norm(dim=1).median())
        found.append({
            "features": what,
            "relative error": error,
            "ARI with float32": adjusted_rand_score(*map(noise_as_singletons, (reference, labels))),
            "clusters": int(labels.max()) + 1,
            "noise": float((labels < 0).mean()),
            "ARI with identities": agreement["ARI"],
            "BCubed F": agreement["BCubed F"],
            "CPU seconds": cpu,
        })  # fmt: skip
        print(found[-1], flush=True)
        return given

    clean = add("float32", features)
    for size in args.noise:
        add(f"float32 and noise of {size:g}", lambda size=size: noisy(size))
    add("bfloat16", lambda: features("bfloat16"))
    for dtype, but in ((torch.float16, ()), (torch.bfloat16, tuple(args.float32)), (torch.bfloat16, ())):
        with rounded(model, dtype, but):
            what = f"{dtype}".removeprefix("torch.") + ", simulated"
            add(what + f", {' '.join(but)} in float32" * bool(but), features)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = measure.parser(__doc__)
    parser.add_argument("weights", help="of the network that the config describes")
    parser.add_argument("--config", default="sskd_msmt2m_osnet_256.yml")
    parser.add_argument("--noise", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 6e-2])
    parser.add_argument(
        "--float32", nargs="+", metavar="NAME", default=["backbone.conv4", "backbone.conv5", "heads"],
        help="beginnings of the names of the modules that one row computes in float32",
    )  # fmt: skip
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE ... of the config")
    return parser


def main() -> None:
    """Measure, print the table, write the record."""
    args = _parser().parse_args()
    args.device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if args.threads:
        torch.set_num_threads(args.threads)
    found = rows(args)
    if args.json:
        record = {"machine": measure.machine(), "rows": found}
        write_atomically(
            str(args.json), lambda file: file.write(f"{json.dumps(record, indent=1)}\n".encode())
        )
    print(tabulate(found, headers="keys", tablefmt="github", floatfmt=".3g"))


if __name__ == "__main__":
    main()
