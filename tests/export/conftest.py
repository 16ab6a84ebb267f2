"""A small SSKD model as a run would leave it: a config and a checkpoint."""

import pytest
import torch
from tiny_reid import CONFIGS, TINY

from fastreid_sskd.engine import AdaptationTrainer, load_config

# a backbone that fast-reid knows
OSNET = [
    "MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25", "MODEL.BACKBONE.FEAT_DIM",
    "128", "INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]",
]  # fmt: skip


@pytest.fixture
def make_trained(tmp_path):
    """Makes (cfg, model): all weights random, teacher 1 the best, a checkpoint in MODEL.WEIGHTS."""

    def make(*opts, network=OSNET):
        overrides = [*TINY, "SSKD.NUM_PEERS", "2", "OUTPUT_DIR", str(tmp_path / "run"), *network, *opts]
        cfg = load_config(str(CONFIGS / "sskd_d2m.yml"), overrides)
        torch.manual_seed(0)
        model = AdaptationTrainer.build_model(cfg)
        with torch.no_grad():
            for teacher in model.teachers:
                for parameter in teacher.parameters():
                    parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2.0)
        model.reset_classifiers(torch.randn(7, model.centroid_size))
        model.best_peer.fill_(1)
        cfg.MODEL.WEIGHTS = str(tmp_path / "trained.pth")
        torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
        (tmp_path / "config.yaml").write_text(cfg.dump())
        cfg.freeze()
        return cfg, model.eval()

    return make
