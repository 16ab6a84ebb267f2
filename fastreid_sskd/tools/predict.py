r"""What a trained model answers on images without labels: features, who is the same person, clusters.

    tools/predict.py C --images CROPS --output features.parquet W          # features in a file
    tools/predict.py C --images CROPS --query person.jpg --picture found.png W
    tools/predict.py C --images CROPS --camera '_c(\d+)' --query QUERIES --false-match-rate 1e-3 \
        --rerank --matches found.csv W                                     # who is the same person
    tools/predict.py C --images CROPS --clusters FOLDER W                  # a folder a cluster, and a CSV
    tools/predict.py C --images DAY2 --gallery seen.npz --query person.jpg W   # a gallery that is added to

C is --config-file runs/sskd_m2d/config.yaml and W MODEL.WEIGHTS runs/sskd_m2d/model_final.pth. Works with
SSKD, source and plain fast-reid configs. Without --images and --gallery the images are those of the config's
first test set (else of its target); then the true threshold is printed beside an estimated one. .parquet
needs pip install "fastreid-sskd[parquet]". Exit status 2: refused; no file is half-written.
"""

import argparse
import csv
import io
import os

import numpy as np
from PIL import Image

from fastreid_sskd.answers import (
    Gallery,
    PairCounts,
    estimate_threshold,
    model_fingerprint,
    read_gallery,
    reranked_distance,
    search,
    write_clusters,
)
from fastreid_sskd.answers.cluster_folder import check_cluster_folder
from fastreid_sskd.clustering import ClusterOptions, pseudo_labels
from fastreid_sskd.data.datasets import IMAGE_ENDINGS, folder_class, image_paths
from fastreid_sskd.data.items import unseen_items
from fastreid_sskd.engine import load_config, resolve
from fastreid_sskd.engine.files import check_output, write_atomically
from fastreid_sskd.engine.pipeline import check_trained, image_features, load_trained
from fastreid_sskd.export.feature_files import check_feature_file, neighbors_picture, write_features
from fastreid_sskd.refusals import checking, exit_status, said_of


def parse_arguments() -> argparse.Namespace:
    """The command line, with what can be refused without a look at any file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, help="of the model: config.yaml in the output folder of its run"
    )
    parser.add_argument("--images", metavar="FOLDER", help="searched with its sub-folders")
    parser.add_argument("--camera", metavar="EXPRESSION", help="as SSKD.FOLDERS.<NAME>.CAMERA")
    parser.add_argument("--gallery", metavar="FILE", help=".npz that keeps features; --images are added")
    parser.add_argument("--output", metavar="FILE", help="features: .npy, .npz or .parquet")
    parser.add_argument("--query", metavar="IMAGE", help="find the images nearest to it, or to a folder's")
    parser.add_argument("--neighbours", type=int, default=10, metavar="N", help="how many (default 10)")
    parser.add_argument("--picture", metavar="FILE", help="of one query's (default neighbours.png)")
    parser.add_argument("--matches", metavar="FILE", help=".csv of all queries' neighbours")
    parser.add_argument("--rerank", action="store_true", help="rank by k-reciprocal neighbours, TEST.RERANK")
    same = parser.add_mutually_exclusive_group()
    same.add_argument(
        "--false-match-rate", type=float, metavar="RATE",
        help="estimate the cosine from which two images are one person: at 1e-3 of 1,000 pairs of different "
        "people one is",
    )  # fmt: skip
    same.add_argument("--threshold", type=float, metavar="COSINE", help="such a cosine, e.g. an export's")
    parser.add_argument("--clusters", metavar="FOLDER", help="make it, with links in a folder a cluster")
    parser.add_argument("--copy", action="store_true", help="--clusters: copies instead of links")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=[], help="overrides: MODEL.WEIGHTS FILE, KEY value ..."
    )
    args = parser.parse_args()
    asked = args.output or args.query or args.clusters or (args.gallery and args.images)
    if not asked and args.false_match_rate is None:
        parser.error(
            "nothing to do: give --output, --query, --clusters, --false-match-rate, or --images for --gallery"
        )
    if args.neighbours < 1:
        parser.error(f"--neighbours must be at least 1, got {args.neighbours}")
    if args.false_match_rate is not None and not 0 < args.false_match_rate < 1:
        parser.error(f"--false-match-rate lies between 0 and 1, e.g. 1e-3, got {args.false_match_rate:g}")
    if args.threshold is not None and not -1 <= args.threshold <= 1:
        parser.error(f"--threshold is a cosine between -1 and 1, got {args.threshold:g}")
    needed = {"camera": "images", "copy": "clusters"}
    needed |= dict.fromkeys(("rerank", "matches", "picture", "threshold"), "query")
    for given, needs in needed.items():
        if getattr(args, given) is not parser.get_default(given) and not getattr(args, needs):
            parser.error(f"--{given} goes with --{needs}")
    return args


def find_items(args, cfg) -> list:
    """(path, identity, camera) of the images to encode."""
    if not args.images:
        return [] if args.gallery else unseen_items(cfg)
    if not args.camera:
        return [(path, None, "") for path in image_paths(args.images)]
    image_paths(args.images)  # says what is wrong with the folder
    with said_of("--camera"):
        return folder_class("images", {"TRAIN": args.images, "CAMERA": args.camera})(root="").train


def find_queries(args) -> list:
    """The query images; makes up the picture's name."""
    if not args.query:
        return []
    if os.path.isdir(args.query):
        if args.picture:
            raise ValueError(f"--picture is of one query, and {args.query!r} is a folder: use --matches")
        return image_paths(args.query)
    if not os.path.isfile(args.query):
        raise FileNotFoundError(f"--query: no file {args.query!r}, and no folder")
    args.picture = args.picture or "neighbours.png"
    return [args.query]


def check_files(args, cfg, items, queries) -> None:
    """Refuse what cannot be written before the model is loaded."""
    reads = [args.config_file, cfg.MODEL.WEIGHTS, *queries]
    if args.output:
        check_feature_file(args.output, [item[0] for item in items], reads)
    if args.gallery:
        check_output(args.gallery, (".npz",), reads)
    if args.matches:
        check_output(args.matches, (".csv",), reads)
    if args.picture:
        check_output(args.picture, IMAGE_ENDINGS, reads)
    if args.clusters:
        check_cluster_folder(args.clusters)
    for option in ("picture", "clusters") if args.images else ():
        path, inside = getattr(args, option), os.path.join(os.path.realpath(args.images), "")
        if path and os.path.realpath(path).startswith(inside):
            raise ValueError(
                f"--{option} {path!r} would be among the images of {args.images!r}: write it elsewhere"
            )
    outputs = [os.path.realpath(path) for path in (args.output, args.gallery, args.matches) if path]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"{' and '.join(outputs)} are one file: give each output its own")


def open_gallery(args, items, encode) -> tuple[Gallery, bool]:
    """The images to answer from, and whether the gallery's file is to be written."""
    paths, cameras = [item[0] for item in items], [str(item[2]) for item in items]
    if not args.gallery:
        return Gallery(paths, encode(paths), cameras, np.empty(0)), False
    fingerprint = model_fingerprint(encode)
    before = read_gallery(args.gallery) if os.path.exists(args.gallery) else Gallery.empty(fingerprint)
    before.check_model(fingerprint, args.gallery)
    gallery = before.extended(paths, cameras, encode)
    if not gallery.paths:
        raise ValueError(f"--gallery {args.gallery!r} is not there: give --images to build it from")
    print(f"{args.gallery}: {len(gallery.paths)} images, {len(gallery.paths) - len(before.paths)} new")
    return gallery, gallery is not before


def find_threshold(args, cfg, items, gallery) -> float | None:
    """The cosine from which two images are one person; None where nobody asks."""
    if args.false_match_rate is None:
        return args.threshold
    options = ClusterOptions.from_cfg(cfg)
    threshold = estimate_threshold(gallery.features, args.false_match_rate, gallery.cameras, options)
    print(threshold)
    if not (args.images or args.gallery) and all(item[1] is not None for item in items):
        true = PairCounts.of(gallery.features, [str(item[1]) for item in items], gallery.cameras)
        print(
            f"with the labels: its false-match rate is {true.rate(threshold.similarity):.2g}, the true "
            f"threshold {true.similarity(args.false_match_rate):.4f}"
        )
    return threshold.similarity


def answer_queries(args, cfg, queries, features, gallery, threshold) -> None:
    """Print and write the nearest images of each query."""
    rerank = cfg.TEST.RERANK
    distance = (
        reranked_distance(features, gallery.features, rerank.K1, rerank.K2, rerank.LAMBDA)
        if args.rerank
        else None
    )
    found = search(
        queries, features, gallery.paths, gallery.features, args.neighbours,
        threshold=threshold, distance=distance,
    )  # fmt: skip
    words = {None: "", True: "same", False: "other"}
    rows = [
        (query, rank, f"{match.similarity:.4f}", words[match.same_person], match.image)
        for query, matches in zip(queries, found)
        for rank, match in enumerate(matches, start=1)
    ]
    if args.matches:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("query", "rank", "similarity", "person", "image"), *rows])
        data = text.getvalue().encode("utf-8", "surrogateescape")
        write_atomically(args.matches, lambda file: file.write(data))
    for row in rows:
        shown = row if len(queries) > 1 else row[1:]
        print(*(str(value) for value in shown if value != ""), sep="\t")
    if args.picture:
        picture = neighbors_picture(queries[0], *zip(*((m.image, m.similarity) for m in found[0])))
        form = Image.registered_extensions()[os.path.splitext(args.picture)[1].lower()]
        write_atomically(args.picture, lambda file: picture.save(file, form))
        print(f"{len(rows)} neighbours of {args.query} in {args.picture}")


@exit_status
def main() -> int:
    """Write what the command line asks for; the exit status."""
    args = parse_arguments()
    with checking(FloatingPointError):
        cfg = resolve(load_config(args.config_file, args.opts))
        cfg.freeze()
        items, queries = find_items(args, cfg), find_queries(args)
        check_files(args, cfg, items, queries)
        check_trained(cfg)
        if args.gallery and not args.images and not os.path.exists(args.gallery):
            raise FileNotFoundError(f"--gallery: no file {args.gallery!r}: give --images to build it from")
        model = load_trained(cfg)

        def encode(paths):
            return image_features(cfg, model, paths)

        gallery, new = open_gallery(args, items, encode)
        if new:  # first, as --output: features are the work
            gallery.write(args.gallery)
        if args.output:
            files = write_features(args.output, gallery.paths, gallery.features)
            dim = gallery.features.shape[1]
            print(f"{len(gallery.paths)} features of {dim} values in {' and '.join(files)}")
        threshold = find_threshold(args, cfg, items, gallery)
        if queries:
            answer_queries(args, cfg, queries, encode(queries), gallery, threshold)
        if args.clusters:
            cameras = gallery.cameras if cfg.SSKD.CLUSTER.CAMERA_STATISTICS else None
            found = pseudo_labels(gallery.features, ClusterOptions.from_cfg(cfg), cameras=cameras)
            write_clusters(args.clusters, gallery.paths, gallery.features, found.labels, copy=args.copy)
            print(f"{args.clusters}: {found.report}")
    return 0
