#!/usr/bin/env python3
"""Train, adapt, resume or evaluate: SSKD configs and plain fast-reid ones.

    tools/train_net.py --config-file configs/sskd_m2d.yml
    tools/train_net.py --config-file configs/sskd_m2d.yml --resume
    tools/train_net.py --config-file configs/sskd_m2d.yml --eval-only MODEL.WEIGHTS runs/sskd_m2d/model_final.pth
    tools/train_net.py --config-file configs/sskd_m2d.yml SSKD.SOURCE.WEIGHTS "['a.pth', 'b.pth', 'c.pth']"
"""
import os
import sys

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fastreid_sskd.clustering import PseudoLabelError  # noqa: E402
from fastreid_sskd.engine import evaluate, run, setup  # noqa: E402
from fastreid.engine import default_argument_parser  # noqa: E402


def main(args) -> int:
    cfg = setup(args)
    try:
        evaluate(cfg) if args.eval_only else run(cfg, resume=args.resume)
    except PseudoLabelError as error:
        print(f"training stopped, its checkpoints are kept in {cfg.OUTPUT_DIR}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(default_argument_parser().parse_args()))
