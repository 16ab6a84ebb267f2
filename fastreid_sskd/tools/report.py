"""The report of a run: one HTML file that needs nothing else, no network included.

    tools/report.py runs/demo/sskd/seed1                      # writes runs/demo/sskd/seed1/report.html
    tools/report.py runs/sskd_m2d --no-images --output m2d.html

A report with images of real people is personal data: keep and share it only as the data set itself may be, or
use --no-images. The ranked lists take the test images through the models of before and after: the time of two
evaluations. It needs matplotlib, the extra `report`.
"""

import argparse
import os

from fastreid_sskd.refusals import checking, exit_status
from fastreid_sskd.report import Options, write_report


@exit_status
def main() -> int:
    """Write the report that the command line asks for."""
    defaults = Options()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN_DIR", help="a run folder, with config.yaml and metrics.json")
    parser.add_argument("--output", default="", help="the HTML file; default: report.html in the run folder")
    parser.add_argument("--no-images", action="store_true", help="words in place of pictures of people")
    parser.add_argument("--no-features", action="store_true", help="run no model: no ranked lists, no map")
    parser.add_argument("--queries", type=int, default=defaults.queries, help="ranked lists to show")
    parser.add_argument("--clusters", type=int, default=defaults.clusters, help="example clusters to show")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the random samples")
    args = parser.parse_args()
    options = Options(
        images=not args.no_images,
        features=not args.no_features,
        queries=args.queries,
        clusters=args.clusters,
        seed=args.seed,
    )
    with checking():
        path = write_report(args.run, args.output, options)
    print(f"wrote {path} ({os.path.getsize(path) / 1e6:.1f} MB)")
    return 0
