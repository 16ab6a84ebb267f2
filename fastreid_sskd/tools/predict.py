r"""Features of the images of a folder, and the nearest of them to a query image as one picture.

    tools/predict.py --config-file runs/sskd_m2d/config.yaml --images CROPS --output features.parquet \
        MODEL.WEIGHTS runs/sskd_m2d/model_final.pth SSKD.EVAL_WITH ensemble
    tools/predict.py --config-file runs/sskd_m2d/config.yaml --images CROPS --query person.jpg \
        --picture found.png MODEL.WEIGHTS runs/sskd_m2d/model_final.pth

--output writes .npy (the paths go into a .txt beside it), .npz or .parquet (pip install
"fastreid-sskd[parquet]"). Works with SSKD, source and plain fast-reid configs. Exit status 2: refused,
nothing is written.
"""

import argparse
import os

from PIL import Image

from fastreid_sskd.data.datasets import IMAGE_ENDINGS, image_paths
from fastreid_sskd.engine import load_config, resolve
from fastreid_sskd.engine.files import check_output, write_atomically
from fastreid_sskd.engine.pipeline import image_features, load_trained
from fastreid_sskd.export.feature_files import check_feature_file, nearest, neighbors_picture, write_features
from fastreid_sskd.refusals import checking, exit_status


def show_neighbors(args, query, paths, features) -> None:
    """Write the picture and print the list; the query itself, where it is among the images, is left out."""
    others = [i for i, path in enumerate(paths) if os.path.realpath(path) != os.path.realpath(args.query)]
    if not others:
        raise ValueError(f"{args.images!r} holds no image but the query")
    order, similarities = nearest(features[others], query, args.neighbours)
    found = [paths[others[i]] for i in order]
    picture = neighbors_picture(args.query, found, similarities)
    form = Image.registered_extensions()[os.path.splitext(args.picture)[1].lower()]
    write_atomically(args.picture, lambda file: picture.save(file, form))
    for rank, (path, similarity) in enumerate(zip(found, similarities), start=1):
        print(f"{rank}\t{similarity:.4f}\t{path}")
    print(f"{len(found)} neighbours of {args.query} in {args.picture}")


def check_files(args, weights: str) -> list:
    """The images of the folder, if everything can be read and written that is asked for."""
    reads = [args.config_file, weights, *([args.query] if args.query else [])]
    if args.output:
        check_feature_file(args.output, reads=reads)
    if args.query:
        if not os.path.isfile(args.query):
            raise FileNotFoundError(f"--query: no file {args.query!r}")
        check_output(args.picture, IMAGE_ENDINGS, reads)
        if os.path.realpath(args.picture).startswith(os.path.join(os.path.realpath(args.images), "")):
            raise ValueError(
                f"--picture {args.picture!r} would be one of the images of {args.images!r}: write it "
                "elsewhere"
            )
    paths = image_paths(args.images)
    if args.output:
        check_feature_file(args.output, paths)
    return paths


@exit_status
def main() -> int:
    """Write what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, help="of the model: config.yaml in the output folder of its run"
    )
    parser.add_argument("--images", required=True, metavar="FOLDER", help="searched with its sub-folders")
    parser.add_argument("--output", metavar="FILE", help="features: .npy, .npz or .parquet")
    parser.add_argument("--query", metavar="IMAGE", help="find the images that are nearest to this one")
    parser.add_argument("--neighbours", type=int, default=10, metavar="N", help="how many (default 10)")
    parser.add_argument(
        "--picture", default="neighbours.png", metavar="FILE", help="where the picture of them goes"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=[], help="overrides: MODEL.WEIGHTS FILE, KEY value ..."
    )
    args = parser.parse_args()
    if not (args.output or args.query):
        parser.error("nothing to do: give --output, --query, or both")
    if args.neighbours < 1:
        parser.error(f"--neighbours must be at least 1, got {args.neighbours}")
    with checking(FloatingPointError):
        cfg = resolve(load_config(args.config_file, args.opts))
        cfg.freeze()
        paths = check_files(args, cfg.MODEL.WEIGHTS)
        wanted = [args.query, *paths] if args.query else paths
        features = image_features(cfg, load_trained(cfg), wanted)
        if args.query:
            show_neighbors(args, features[0], paths, features[1:])
            features = features[1:]
        if args.output:
            files = write_features(args.output, paths, features)
            print(f"{len(paths)} features of {features.shape[1]} values in {' and '.join(files)}")
    return 0
