#!/usr/bin/env python3
r"""Tracklets of Market-1501, and what one refresh of the source model's features makes of them.

    benchmarks/tracklets.py cut --market DATASETS/Market-1501-v15.09.15 --output TRACKS --identities 150
    benchmarks/tracklets.py refresh --config-file benchmarks/tracklets.yml \
        SSKD.FOLDERS.MarketTracks.TRAIN TRACKS SSKD.SOURCE.WEIGHTS "['osnet.pth']"

`cut` links images 0002_c1s1_000451_03.jpg as 0002_c1s1_t000007_f000451_03.jpg. A tracklet is one identity
in one sequence of one camera, until it is not seen for more than --gap frames; identities serve for nothing
else. `refresh` clusters the same features as images and as tracklets and compares both with the identities.
"""

import argparse
import os
import re
import sys
import time
from collections import Counter

import numpy as np

from fastreid_sskd.clustering import ClusterOptions, cluster_agreement, pseudo_labels
from fastreid_sskd.data import Tracklets, extraction_loader, training_items
from fastreid_sskd.engine import AdaptationTrainer, load_config
from fastreid_sskd.evaluation.features import extract_features
from fastreid_sskd.modeling import load_source_weights

NAME = re.compile(r"(\d+)_(c\d+s\d+)_(\d+)_(\d+\.jpg)")


def tracklets_of(names: list[str], identities: int, gap: int) -> dict[str, str]:
    """{name of an image: the name that gives its tracklet} of the first identities."""
    images = sorted(
        (match[1], match[2], int(match[3]), match[4]) for match in map(NAME.fullmatch, names) if match
    )
    kept = set(sorted({image[0] for image in images})[:identities])
    tracks, last, named = Counter(), None, {}
    for who, clip, frame, end in images:
        if who not in kept:
            continue
        if last is None or last[:2] != (who, clip) or frame - last[2] > gap:
            tracks[clip] += 1
        last = who, clip, frame
        named[f"{who}_{clip}_{frame:06d}_{end}"] = f"{who}_{clip}_t{tracks[clip]:06d}_f{frame:06d}_{end}"
    return named


def cut(args: argparse.Namespace) -> None:
    """Make the folder of links."""
    folder = os.path.abspath(os.path.join(args.market, "bounding_box_train"))
    os.makedirs(args.output)
    named = tracklets_of(os.listdir(folder), args.identities, args.gap)
    for name, link in named.items():
        os.symlink(os.path.join(folder, name), os.path.join(args.output, link))
    count = len({name.rpartition("_f")[0] for name in named.values()})
    print(f"{len(named)} images in {count} tracklets")


def refresh(args: argparse.Namespace) -> None:
    """Print the table."""
    cfg = load_config(args.config_file, args.opts)
    model = AdaptationTrainer.build_model(cfg)
    load_source_weights(model, list(cfg.SSKD.SOURCE.WEIGHTS))
    items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    features = model.combine(extract_features(model, extraction_loader(cfg, items)))
    identities = np.array([item[1] for item in items])
    tracklets = Tracklets.from_items(items)
    together = Tracklets(tracklets.of_image, tracklets.scene, tracklets.first * 0 + 1, tracklets.last * 0)
    columns = "pairs, of, clusters, noise, purity, BCubed precision, recall, F, AMI, joined, split, seconds"
    pseudo_labels(features[:500], k1=5, rho=0.01)  # imports and compilation
    print("|", columns.replace(", ", " | "), "|\n" + "|---" * len(columns.split(", ")) + "|")
    for pairs in args.pairs:
        options = ClusterOptions.from_cfg(cfg).replace(pairs_per_image=pairs)
        each = len(tracklets) / len(items)
        fewer = options.replace(k1=max(2, round(options.k1 * each)), k2=max(1, round(options.k2 * each)))
        for name, groups, settings in (
            ("images", None, options),
            ("tracklets", tracklets, options),
            ("tracklets, no time", together, options),
            (f"tracklets, K1 {fewer.k1}, K2 {fewer.k2}", tracklets, fewer),
        ):
            start = time.process_time()
            found = pseudo_labels(features, settings, tracklets=groups)
            seconds = time.process_time() - start
            clustered = found.labels >= 0
            cells = Counter(zip(found.labels[clustered], identities[clustered]))
            largest = {cluster: 0 for cluster, _ in cells}
            for (cluster, _), images in cells.items():
                largest[cluster] = max(largest[cluster], images)
            agreement = cluster_agreement(found.labels, identities)
            ratios = [
                found.report.noise_share, sum(largest.values()) / max(clustered.sum(), 1),
                *(agreement[key] for key in ("BCubed precision", "BCubed recall", "BCubed F", "AMI")),
            ]  # fmt: skip
            done = (found.tracklets.joined, found.tracklets.split) if groups else ("-", "-")
            row = [
                f"{pairs:g}",
                name,
                found.report.num_clusters,
                *(f"{value:.3f}" for value in ratios),
                *done,
            ]
            print("|", " | ".join(map(str, [*row, f"{seconds:.2f}"])), "|", flush=True)


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    of_cut = commands.add_parser("cut", help="make the folder of links")
    of_cut.add_argument("--market", required=True, help="folder with bounding_box_train")
    of_cut.add_argument("--output", required=True, help="folder to make")
    of_cut.add_argument("--identities", type=int, required=True, help="training identities to keep, in order")
    of_cut.add_argument(
        "--gap", type=int, default=200, help="frames unseen that end a tracklet (25 a second)"
    )
    of_cut.set_defaults(run=cut)
    of_refresh = commands.add_parser("refresh", help="cluster with and without")
    of_refresh.add_argument("--config-file", required=True, help="see benchmarks/tracklets.yml")
    of_refresh.add_argument("--pairs", type=float, nargs="+", default=[3, 5, 7, 10.3], help="PAIRS_PER_IMAGE")
    of_refresh.add_argument("opts", nargs="*", default=[], help="config overrides")
    of_refresh.set_defaults(run=refresh)
    args = parser.parse_args()
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
