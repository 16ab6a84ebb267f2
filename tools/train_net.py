#!/usr/bin/env python3
r"""Train, adapt, resume, evaluate or predict: SSKD configs and plain fast-reid ones.

    tools/train_net.py --config-file configs/sskd_m2d.yml
    tools/train_net.py --config-file configs/sskd_m2d.yml --resume
    tools/train_net.py --config-file configs/sskd_m2d.yml SSKD.SOURCE.WEIGHTS "['a.pth', 'b.pth', 'c.pth']"
    tools/train_net.py --config-file configs/sskd_m2d.yml --eval-only MODEL.WEIGHTS runs/sskd_m2d/model_final.pth
    tools/train_net.py --config-file configs/sskd_m2d.yml --predict CROPS --features crops.npz \
        MODEL.WEIGHTS runs/sskd_m2d/model_final.pth

Exit status: 0 done, 3 stopped because the pseudo-labels cannot be trained on (checkpoints are kept).
"""
import os
import sys

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine import default_argument_parser, evaluate, predict, run, setup


def main(args) -> int:
    if args.num_gpus * args.num_machines > 1:
        raise SystemExit(f"this version trains in one process: got --num-gpus {args.num_gpus}, "
                         f"--num-machines {args.num_machines}; leave both at 1")
    cfg = setup(args)
    try:
        if args.predict:
            paths, features = predict(cfg, args.predict)
            np.savez(args.features, paths=np.array(paths), features=features)
            print(f"{len(paths)} features of {features.shape[1]} values in {args.features}")
        elif args.eval_only:
            evaluate(cfg)
        else:
            run(cfg, resume=args.resume)
    except PseudoLabelError as error:
        print(f"training stopped, its checkpoints are kept in {cfg.OUTPUT_DIR}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--predict", metavar="FOLDER", help="write the features of a folder's images, do not train")
    parser.add_argument("--features", metavar="FILE.npz", default="features.npz", help="where --predict writes")
    sys.exit(main(parser.parse_args()))
