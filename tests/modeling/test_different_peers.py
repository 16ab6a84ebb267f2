"""Peers that differ: their configs, their spaces, one step and back from a checkpoint."""

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.modeling import build_model

from fastreid_sskd import add_sskd_config
from fastreid_sskd.clustering import cluster_centroids
from fastreid_sskd.engine import load_config
from fastreid_sskd.engine.train_step import build_optimizer
from fastreid_sskd.modeling import build_peer, load_source_weights, peer_config
from fastreid_sskd.modeling.peer import PixelNormalisation

HEAD = "HEADS: {WITH_BNNECK: True, POOL_LAYER: GlobalAvgPool"
RESNET, OSNET = (
    f"NAME: build_{name}_backbone, DEPTH: {depth}, FEAT_DIM: {size}"
    for name, depth, size in (("resnet", "18x", 512), ("osnet", "x0_25", 128))
)
PIXELS = "PIXEL_MEAN: [127.5, 120.0, 110.0], PIXEL_STD: [127.5, 60.0, 50.0]"
FILES = {
    "resnet.yml": f"MODEL: {{BACKBONE: {{{RESNET}, PRETRAIN: True}}, {HEAD}}}}}",
    "osnet.yml": f"MODEL: {{BACKBONE: {{{OSNET}}}, {HEAD}}}}}",
    "narrow.yml": f"MODEL: {{BACKBONE: {{{RESNET}, WITH_IBN: True}}, "
    f"{HEAD}, EMBEDDING_DIM: 32, NECK_FEAT: after}}, {PIXELS}}}",
}


@pytest.fixture
def files(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text + "\n")
    return [str(tmp_path / name) for name in FILES]


@pytest.fixture
def mixed(files):
    """A config of three different peers, frozen."""

    def make(*opts):
        cfg = load_config("", [
            "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "SSKD", "MODEL.HEADS.NECK_FEAT", "before",
            "MODEL.BACKBONE.PRETRAIN", "False", "INPUT.SIZE_TRAIN", "[32, 16]",
            "SSKD.PEERS", str(files), *opts,
        ])  # fmt: skip
        cfg.freeze()
        return cfg

    return make


@pytest.fixture
def model(mixed):
    torch.manual_seed(0)
    return build_model(mixed())


# ---- configs -------------------------------------------------------------------------------------


def test_the_file_decides_the_network_and_the_run_the_rest(mixed):
    cfg = mixed("SSKD.BN_CHUNK", "4")
    first, last = peer_config(cfg, 0), peer_config(cfg, 2)
    assert (
        first.MODEL.BACKBONE.FEAT_DIM == 512
        and not first.MODEL.BACKBONE.WITH_IBN
        and last.MODEL.BACKBONE.WITH_IBN
    )
    assert last.MODEL.PIXEL_MEAN == [127.5, 120.0, 110.0] and last.MODEL.HEADS.EMBEDDING_DIM == 32
    assert last.MODEL.HEADS.NECK_FEAT == "before"  # what the losses see is the method's
    assert last.SSKD.BN_CHUNK == 4 and last.INPUT.SIZE_TRAIN == [32, 16]
    assert cfg.is_frozen() and cfg.MODEL.BACKBONE.FEAT_DIM == 2048


def test_without_files_every_peer_is_the_runs(cfg):
    assert peer_config(cfg, 7) == cfg and peer_config(cfg, 0) is not cfg


def test_number_of_peers_follows_the_files(mixed, files):
    assert mixed().SSKD.NUM_PEERS == 3
    cfg = mixed().clone()
    cfg.defrost()
    cfg.SSKD.NUM_PEERS = 2
    with pytest.raises(ValueError, match="SSKD.PEERS describes 3 peers, and SSKD.NUM_PEERS is 2"):
        build_model(cfg)
    with pytest.raises(ValueError, match="there is no peer 3"):
        peer_config(cfg, 3)


def test_paths_are_beside_the_file_that_names_them(files, tmp_path):
    (tmp_path / "run.yml").write_text("SSKD: {PEERS: [osnet.yml, resnet.yml]}\n")
    assert load_config(str(tmp_path / "run.yml")).SSKD.PEERS == [files[1], files[0]]


def test_missing_file(mixed):
    with pytest.raises(FileNotFoundError, match="SSKD.PEERS: config file .*none.yml"):
        peer_config(mixed("SSKD.PEERS", "['none.yml']"), 0)


def test_a_file_may_be_a_run_of_this_package(mixed, tmp_path):
    cfg = get_cfg()
    add_sskd_config(cfg)
    cfg.MODEL.BACKBONE.FEAT_DIM = 77
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert (
        peer_config(mixed("SSKD.PEERS", str([str(tmp_path / "config.yaml")])), 0).MODEL.BACKBONE.FEAT_DIM
        == 77
    )


# ---- the model -----------------------------------------------------------------------------------


def test_features_of_their_own_sizes(model):
    assert (
        model.feature_sizes == [512, 128, 32]
        and model.centroid_size == 672
        and model.combination == "distances"
    )
    model.eval()
    batch = {"images": torch.rand(4, 3, 32, 16) * 255}
    with torch.no_grad():
        features = model.teacher_features(batch)
        model.eval_with = "ensemble"
        assert [f.shape for f in features] == [(4, 512), (4, 128), (4, 32)]
        assert torch.equal(model(batch), model.combine(features))
        model.eval_with = "1"
        assert torch.equal(model(batch), features[1])


def test_pixels_are_normalised_by_each_peers_own_values(model, mixed):
    images = torch.rand(2, 3, 32, 16) * 255
    own = peer_config(mixed(), 2)
    alone = build_peer(own)
    alone.load_state_dict(model.teachers[2].state_dict())
    with torch.no_grad():
        expected = alone.eval()(PixelNormalisation(own.MODEL.PIXEL_MEAN, own.MODEL.PIXEL_STD)(images))
        assert torch.allclose(model.eval().teacher_features({"images": images})[2], expected, atol=1e-5)
    assert model.teachers[0].own_pixels is None and not any("pixels" in key for key in model.state_dict())


def test_a_peers_centroids_are_those_of_its_own_features(model):
    features = [torch.randn(30, size) * 3 for size in model.feature_sizes]
    labels = torch.arange(30) % 5
    labels[:4] = -1
    centroids = cluster_centroids(model.combine(features), labels)
    model.reset_classifiers(centroids)
    for k, own in enumerate(features):
        for c in range(5):
            slow = F.normalize(F.normalize(own)[labels == c].mean(0), dim=0)
            assert torch.allclose(model.students[k].heads.weight[c], slow, atol=1e-5)
            assert torch.equal(model.students[k].heads.weight, model.teachers[k].heads.weight)


def test_centroids_of_another_width(model):
    with pytest.raises(ValueError, match=r"\(C, 672\), got \(5, 512\)"):
        model.reset_classifiers(torch.zeros(5, 512))


def step(cfg, model):
    torch.manual_seed(1)
    model.train().reset_classifiers(F.normalize(torch.randn(3, model.centroid_size), dim=1))
    optimizer = build_optimizer(cfg, list(model.students))
    losses = model({"images": torch.rand(6, 3, 3, 32, 16) * 255, "targets": torch.tensor([0, 0, 1, 1, 2, 2])})
    sum(losses.values()).backward()
    optimizer.step()
    model.update_teachers(0, 0.99)
    return losses


@pytest.mark.parametrize(
    "extra", [(), ("SSKD.LOSSES.PeerSoftTriplet.WEIGHT", "0.5", "SSKD.LOSSES.SoftTriplet.WEIGHT", "0.5")]
)
def test_one_step_and_a_checkpoint(mixed, extra, tmp_path):
    cfg = mixed(*extra)
    torch.manual_seed(0)
    model = build_model(cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = step(cfg, model)
    assert len(losses) == 3 * (4 + len(extra) // 2) and all(torch.isfinite(loss) for loss in losses.values())
    for k in range(3):
        assert losses[f"loss_soft_peer{k}"] > 0  # from the next peer, whatever its size
        weights = [
            key for key in before if key.startswith(f"students.{k}.backbone.") and key.endswith("weight")
        ]
        assert any(not torch.equal(model.state_dict()[key], before[key]) for key in weights)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    again = build_model(cfg)
    again.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    batch = {"images": torch.rand(2, 3, 32, 16) * 255}
    with torch.no_grad():
        for mine, theirs in zip(model.eval().teacher_features(batch), again.eval().teacher_features(batch)):
            assert torch.equal(mine, theirs)


def test_one_peer(mixed, files):
    cfg = mixed("SSKD.PEERS", str(files[:1]), "SSKD.LOSSES.PeerSoftTriplet.WEIGHT", "0.1")
    model = build_model(cfg)
    torch.manual_seed(1)
    model.train().reset_classifiers(torch.randn(2, 512))
    losses = model({"images": torch.rand(4, 1, 3, 32, 16) * 255, "targets": torch.tensor([0, 0, 1, 1])})
    assert len(losses) == 5 and all(torch.isfinite(loss) for loss in losses.values())


def test_source_weights_of_each(mixed, tmp_path):
    cfg = mixed()
    torch.manual_seed(5)
    peers = [build_peer(without) for without in (peer_config(cfg, k) for k in (1, 2))]
    first = peer_config(cfg, 0)
    first.MODEL.BACKBONE.PRETRAIN = False
    peers.insert(0, build_peer(first))
    paths = [str(tmp_path / f"{k}.pth") for k in range(3)]
    for peer, path in zip(peers, paths):
        torch.save({"model": peer.state_dict()}, path)
    model = build_model(cfg)
    load_source_weights(model, paths)
    for peer, teacher in zip(peers, model.teachers):
        assert torch.equal(next(peer.parameters()), next(teacher.parameters()))
    with pytest.raises(ValueError, match="0.pth.*another network"):
        load_source_weights(model, paths[:1])
    with pytest.raises(ValueError, match="another network"):
        load_source_weights(model, [paths[1], paths[0], paths[2]])


# ---- how features are combined -------------------------------------------------------------------


def test_equal_peers_keep_the_methods_mean(cfg):
    assert build_model(cfg).combination == "features"
    cfg.SSKD.COMBINE = "distances"
    model = build_model(cfg)
    assert model.combination == "distances" and model.centroid_size == 3 * 8


def test_mean_of_unequal_features(mixed):
    with pytest.raises(ValueError, match="512, 128, 32 values.*SSKD.COMBINE to distances"):
        build_model(mixed("SSKD.COMBINE", "features"))
    with pytest.raises(
        ValueError, match="SSKD.COMBINE must be auto or one of features, distances; got 'mean'"
    ):
        build_model(mixed("SSKD.COMBINE", "mean"))
