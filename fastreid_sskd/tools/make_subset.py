r"""Make a Market-1501-style data set of the first N training identities, by links to the original images.

    tools/make_subset.py --source DATASETS/Market-1501-v15.09.15 --output SUBSET/Market-1501-v15.09.15 \
        --identities 200

Query and gallery are linked whole. Use it with FASTREID_DATASETS=SUBSET.
"""

import argparse
import os

from fastreid_sskd.data.datasets import find_images
from fastreid_sskd.engine.files import make_folder
from fastreid_sskd.refusals import exit_status

SPLITS = ("bounding_box_train", "query", "bounding_box_test")


def images_of(folder: str) -> list:
    """Names of the images in a folder, without its sub-folders."""
    return [os.path.basename(path) for path in find_images(folder) if os.path.dirname(path) == folder]


def identity(name: str) -> str:
    """Identity of an image, the part of its name before the first underscore."""
    return name.split("_")[0]


@exit_status
def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="folder with " + ", ".join(SPLITS))
    parser.add_argument("--output", required=True, help="folder to make; must not exist")
    parser.add_argument("--identities", type=int, required=True, help="training identities to keep, in order")
    args = parser.parse_args()
    for split in SPLITS:
        if not os.path.isdir(os.path.join(args.source, split)):
            parser.error(f"--source needs the folders {', '.join(SPLITS)}; {args.source!r} has no {split}")
    source, output = (os.path.realpath(folder) for folder in (args.source, args.output))
    if os.path.commonpath([source, output]) == source:
        parser.error(
            f"--output {args.output!r} is inside --source, whose images it would add to: give a folder "
            "elsewhere"
        )
    if os.path.exists(args.output):
        parser.error(f"{args.output!r} is there already: give another --output, or remove it")
    names = {split: images_of(os.path.join(args.source, split)) for split in SPLITS}
    identities = sorted({identity(name) for name in names["bounding_box_train"]} - {"-1"})
    if not 1 <= args.identities <= len(identities):
        parser.error(f"--identities must be 1 to {len(identities)}, got {args.identities}")
    kept = set(identities[: args.identities])
    names["bounding_box_train"] = [name for name in names["bounding_box_train"] if identity(name) in kept]
    for split in SPLITS:
        folder = os.path.join(args.output, split)
        make_folder(folder, "--output")
        for name in names[split]:
            os.symlink(os.path.abspath(os.path.join(args.source, split, name)), os.path.join(folder, name))
        print(f"{split}: {len(names[split])} images")
    return 0
