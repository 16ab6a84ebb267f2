r"""Cut the crops of a tracker's results out of its frames, as a folder of images that SSKD can adapt to.

    tools/crops_from_tracks.py --mot results.txt --frames VIDEO.mp4 --camera gate --output crops/monday

The names give camera, track and frame: gate_t000012_f000451.jpg. To train on them:
    SSKD.FOLDERS.CropFolder.CAMERA '([^/_]+)_t\d+_f\d+'
    SSKD.FOLDERS.CropFolder.TRACK '^(?:(?P<clip>.*)/)?[^/]*_t(\d+)_f(?P<frame>\d+)'
"""

import argparse

from fastreid_sskd.data.mot import cut_crops, read_boxes
from fastreid_sskd.refusals import checking, exit_status


@exit_status
@checking()
def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mot", required=True, help="results: frame,id,left,top,width,height,... a row")
    parser.add_argument(
        "--frames", required=True, help="folder of images named by the frame's number, or a video (from 1)"
    )
    parser.add_argument("--camera", required=True, help="name of the camera: letters, digits, '-'")
    parser.add_argument("--output", required=True, help="folder to make, one for each recording")
    parser.add_argument(
        "--every", type=int, default=10, help="frames from one crop of a track to its next, at least"
    )
    args = parser.parse_args()
    done = cut_crops(read_boxes(args.mot), args.frames, args.camera, args.output, args.every)
    outside = f"; {done['outside']} boxes without a pixel in their frame left out" if done["outside"] else ""
    print(f"{done['crops']} crops of {done['tracklets']} tracklets in {args.output}{outside}")
    return 0
