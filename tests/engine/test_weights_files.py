"""A user's file of weights, at every place that takes one.

Loaded whole, or refused by name before any work.
"""

import numpy as np
import pytest
import torch
import yaml
from tiny_reid import TINY, build_tiny_reid_backbone, tiny_adaptation, tiny_baseline, tiny_source

from fastreid_sskd import benchmark
from fastreid_sskd.engine import SourceTrainer, Trainer, evaluate, predict, run
from fastreid_sskd.engine.pipeline import check_run, load_trained
from fastreid_sskd.modeling.weights import read_state_dict


def network(cfg, features=16):
    """A state dict of the tiny network as any fast-reid checkpoint has it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FEAT_DIM = features
    torch.manual_seed(5)
    state = {f"backbone.{key}": value for key, value in build_tiny_reid_backbone(cfg).state_dict().items()}
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.5), ("running_var", 2.0)):
        state[f"heads.bottleneck.0.{name}"] = torch.full((features,), value)
    return state


def nan(cfg):
    state = network(cfg)
    state["backbone.3.weight"][0] = float("nan")
    return state


FILES = {
    "text": (lambda cfg: None, "w.pth' is a text file"),
    "other names": (
        lambda cfg: {"a": torch.zeros(2)},
        r"w.pth' holds weights of another network.* 0 of \d+ ",
    ),
    "another width": (
        lambda cfg: {"model": network(cfg, 24)},
        r"w.pth' holds weights of another network.* \d+ of \d+ ",
    ),
    "nan": (
        lambda cfg: {"state_dict": nan(cfg)},
        "w.pth' has values that are not finite in its tensor backbone.3.weight",
    ),
}


@pytest.fixture(params=FILES)
def bad_file(request, tmp_path):
    """A file that no entry point may take, and what is said of it."""
    content, said = FILES[request.param]
    content = content(tiny_baseline(tmp_path / "any"))
    path = tmp_path / "w.pth"
    path.write_text("hello\n") if content is None else torch.save(content, path)
    return str(path), said


def config_file(tmp_path, cfg):
    (tmp_path / "c.yml").write_text(cfg.dump())
    return str(tmp_path / "c.yml")


START = {  # where a run starts
    "plain": lambda path, out: Trainer(tiny_baseline(out, "MODEL.WEIGHTS", path)).resume_or_load(
        resume=False
    ),
    "stage 1": lambda path, out: SourceTrainer(tiny_source(out, "MODEL.WEIGHTS", path)).resume_or_load(
        resume=False
    ),
    "peers": lambda path, out: run(tiny_adaptation(out, "MODEL.WEIGHTS", path)),
    "source weights": lambda path, out: run(tiny_adaptation(out, "SSKD.SOURCE.WEIGHTS", str([path] * 2))),
}
USE = {  # where a trained model is used
    "evaluation": lambda path, out: evaluate(tiny_baseline(out, "MODEL.WEIGHTS", path)),
    "evaluation of stage 1": lambda path, out: evaluate(tiny_source(out, "MODEL.WEIGHTS", path)),
    "prediction": lambda path, out: predict(
        tiny_baseline(out, "MODEL.WEIGHTS", path), str(out.parent / "images")
    ),
    "table": lambda path, out: benchmark.evaluate_pair(config_file(out.parent, tiny_baseline(out)), path),
}


@pytest.fixture
def images(tmp_path, world):
    (tmp_path / "images").symlink_to(world / "Market-1501-v15.09.15" / "query")


@pytest.mark.parametrize("entry", [*START, *USE])
def test_a_bad_file_is_refused(entry, bad_file, images, tmp_path):
    path, said = bad_file
    with pytest.raises(ValueError, match=said) as error:
        {**START, **USE}[entry](path, tmp_path / "out")
    assert len(str(error.value)) < 900


@pytest.mark.parametrize("make, key", [
    (tiny_baseline, "MODEL.WEIGHTS"), (tiny_source, "MODEL.WEIGHTS"), (tiny_adaptation, "MODEL.WEIGHTS"),
    (tiny_adaptation, "SSKD.SOURCE.WEIGHTS"),
])  # fmt: skip
def test_no_file_of_weights_is_found_before_anything_is_written(make, key, data_sets, tmp_path):
    (tmp_path / "w.pth").write_text("hello\n")
    with pytest.raises(ValueError, match=f"{key}: '.*w.pth' is a text file") as raised:
        check_run(make(tmp_path / "out", key, str(tmp_path / "w.pth")))
    assert raised.value.exit_status == 2 and not (tmp_path / "out").exists()


RESNET = (
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x"),
    *("MODEL.BACKBONE.FEAT_DIM", "512", "MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH"),
)
BARE = ("SSKD.SOURCE.SKIP", "True", "SSKD.SOURCE.CONFIG", "")


@pytest.mark.parametrize("make, opts", [(tiny_baseline, ()), (tiny_source, ()), (tiny_adaptation, BARE)])
@pytest.mark.parametrize("kind", ["text", "other names"])
def test_a_bad_backbone_is_found_before_anything_is_written(make, opts, kind, data_sets, tmp_path):
    path = tmp_path / "w.pth"
    path.write_text("hello\n") if kind == "text" else torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=f"MODEL.BACKBONE.PRETRAIN_PATH: .*{FILES[kind][1]}") as raised:
        check_run(make(tmp_path / "out", *opts, *RESNET, str(path)))
    assert raised.value.exit_status == 2 and not (tmp_path / "out").exists()


def test_a_backbone_is_not_looked_for_where_other_weights_are_loaded(data_sets, tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"a": torch.zeros(2)}, path)
    check_run(tiny_baseline(tmp_path / "out", *RESNET, "gone.pth", "MODEL.WEIGHTS", path))


def test_weights_of_any_age_can_be_checked(data_sets, tmp_path):
    """A file of the format before torch 1.6 cannot be left on the disk."""
    cfg = tiny_baseline(tmp_path / "out", "MODEL.WEIGHTS", str(tmp_path / "w.pth"))
    torch.save(network(cfg), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    check_run(cfg)
    assert all(
        torch.equal(value, network(cfg)[key])
        for key, value in read_state_dict(str(tmp_path / "w.pth"), mmap=True).items()
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.qint8])
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_weights_are_named(dtype, data_sets, tmp_path):
    cfg = tiny_baseline(tmp_path / "out", "MODEL.WEIGHTS", str(tmp_path / "w.pth"))
    state = network(cfg)
    for key in ("backbone.0.weight", "backbone.3.weight"):
        state[key] = (
            state[key].to(dtype)
            if dtype is torch.int8
            else torch.quantize_per_tensor(state[key], 0.1, 0, dtype)
        )
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        ValueError,
        match="2 quantised to 8 bits or fewer: 0.weight, 3.weight\n  Probably a quantised.*give the float",
    ) as raised:
        load_trained(cfg)
    assert "shape" not in str(raised.value)


@pytest.mark.parametrize("tool", ["export", "predict"])
def test_tools_refuse_it(tool, bad_file, images, tmp_path, run_tool):
    path, said = bad_file
    what = {
        "export": ("--format", "fastreid", "--output", tmp_path / "out.pth"),
        "predict": ("--images", tmp_path / "images", "--output", tmp_path / "out.npz"),
    }[tool]
    status, out, err = run_tool(
        tool, "--config-file", config_file(tmp_path, tiny_baseline(tmp_path)), *what, "MODEL.WEIGHTS", path
    )
    assert status and not out and "Traceback" not in err
    assert said.split("'")[1].split(".*")[0] in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    lambda state: {"net": state, "epoch": 3},
    lambda state: {
        key.replace("backbone.", "base."): value for key, value in state.items()
        if key.startswith("backbone.")
    },
    lambda state: {
        "state_dict": {key.replace("backbone.", "module.encoder_q."): value for key, value in state.items()},
        "arch": "resnet",
    },
])  # fmt: skip
@pytest.mark.parametrize("entry", [*START, *USE])
def test_any_layout_is_taken(entry, wrap, images, tmp_path, monkeypatch):
    """Where the run starts, and where the model is used."""
    state = network(tiny_baseline(tmp_path / "any"))
    torch.save(wrap(state), tmp_path / "w.pth")
    loaded = []
    load_state_dict = torch.nn.Module.load_state_dict
    monkeypatch.setattr(
        torch.nn.Module,
        "load_state_dict",
        lambda self, *a, **k: loaded.append(self) or load_state_dict(self, *a, **k),
    )
    monkeypatch.setattr(Trainer, "train", lambda self: {})
    {**START, **USE}[entry](str(tmp_path / "w.pth"), tmp_path / "out")
    assert loaded
    for network_loaded in loaded:
        for name, value in network_loaded.backbone.state_dict().items():
            assert torch.equal(value, state[f"backbone.{name}"]), name


def test_a_table_reads_the_epochs_of_a_file_with_numpy_values(data_sets, tmp_path):
    cfg = tiny_baseline(tmp_path / "out")
    path = str(tmp_path / "n.pth")
    torch.save({"model": network(cfg), "epoch": 4, "best_mAP": np.float64(0.5)}, path)
    (result,) = benchmark.evaluate_pair(config_file(tmp_path, cfg), path)
    assert result.epochs == 5 and result.metrics["mAP"] > 0


# ---- peers with files of their own ---------------------------------------------------------------


@pytest.fixture
def peer_files(tmp_path):
    """Ymls of two peers of the tiny network, the first with the weights given."""

    def write(weights):
        keys = dict(zip(TINY[::2], TINY[1::2]))
        files = []
        for k, path in enumerate((weights, "")):
            backbone = {"NAME": keys["MODEL.BACKBONE.NAME"], "FEAT_DIM": 16, "PRETRAIN": False}
            heads = {"WITH_BNNECK": True, "POOL_LAYER": "GlobalAvgPool"}
            files.append(tmp_path / f"peer{k}.yml")
            files[-1].write_text(
                yaml.safe_dump({"MODEL": {"BACKBONE": backbone, "HEADS": heads, "WEIGHTS": path}})
            )
        return str([str(file) for file in files])

    return write


def test_without_a_source_the_weights_of_a_peers_file_count(peer_files, tmp_path):
    state = network(tiny_baseline(tmp_path / "any"))
    torch.save(state, tmp_path / "w.pth")
    cfg = tiny_adaptation(
        tmp_path / "out",
        "SSKD.PEERS",
        peer_files(str(tmp_path / "w.pth")),
        "SSKD.SOURCE.SKIP True",
        "SSKD.SOURCE.CONFIG",
        "",
        "SOLVER.BASE_LR 0.0",
        "SOLVER.WEIGHT_DECAY 0.0",
        "SOLVER.MAX_EPOCH 1",
        "TEST.EVAL_PERIOD 0",
        "SSKD.CLUSTER.METHOD kmeans",
        "SSKD.CLUSTER.NUM_CLUSTERS 4",
    )
    run(cfg)
    saved = read_state_dict(f"{cfg.OUTPUT_DIR}/model_final.pth")
    for k, same in ((0, True), (1, False)):
        for part in ("students", "teachers"):
            assert (
                torch.equal(saved[f"model.{part}.{k}.backbone.0.weight"], state["backbone.0.weight"]) == same
            ), (part, k)


def test_a_peers_file_is_tried_before_the_others_are_trained(peer_files, bad_file, tmp_path, monkeypatch):
    path, said = bad_file
    monkeypatch.setattr("fastreid_sskd.engine.pipeline._pretrain", lambda cfg, k: pytest.fail("hours go by"))
    with pytest.raises(ValueError, match=said):
        run(tiny_adaptation(tmp_path / "out", "SSKD.PEERS", peer_files(path)))


def test_model_of_a_pretrained_config_is_loaded_without_its_backbone(tmp_path):
    """PRETRAIN_PATH of the training need not be there any more."""
    cfg = tiny_baseline(tmp_path / "out")
    torch.save(network(cfg), tmp_path / "w.pth")
    gone = (
        "MODEL.BACKBONE.PRETRAIN True",
        "MODEL.BACKBONE.PRETRAIN_PATH gone.pth",
        "MODEL.WEIGHTS",
        str(tmp_path / "w.pth"),
    )
    assert load_trained(tiny_baseline(tmp_path / "out", *gone)).training is False
