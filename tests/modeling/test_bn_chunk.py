"""Batch norm in chunks against plain batch norm called once a chunk."""

import copy

import pytest
import torch
from fastreid.layers.batch_norm import IBN, get_norm
from torch import nn

from fastreid_sskd.data.samplers import check_batch
from fastreid_sskd.modeling import build_peer, chunk_batch_norm
from fastreid_sskd.modeling.bn_chunk import ChunkedBatchNorm1d, ChunkedBatchNorm2d

LAYERS = {
    "2d": (lambda: nn.BatchNorm2d(5), (10, 5, 3, 2)),
    "2d, one pixel": (lambda: nn.BatchNorm2d(5), (10, 5, 1, 1)),
    "1d": (lambda: nn.BatchNorm1d(5), (10, 5)),
    "1d, sequence": (lambda: nn.BatchNorm1d(5), (10, 5, 3)),
    "no affine": (lambda: nn.BatchNorm2d(5, affine=False), (10, 5, 3, 2)),
    "cumulative statistics": (lambda: nn.BatchNorm2d(5, momentum=None), (10, 5, 3, 2)),
    "no statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (10, 5, 3, 2)),
    "host": (lambda: get_norm("BN", 5, bias_freeze=True), (10, 5, 3, 2)),
    "host's IBN": (lambda: IBN(10, "BN"), (10, 10, 3, 2)),
}


@pytest.fixture(params=list(LAYERS))
def layers(request):
    """A plain layer, its copy in chunks of 4, and an input of 10 images whose chunks differ."""
    build, shape = LAYERS[request.param]
    torch.manual_seed(0)
    plain = nn.Sequential(build()).double()
    for parameter in plain.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    chunked = copy.deepcopy(plain)
    assert chunk_batch_norm(chunked, 4) == 1
    x = torch.randn(shape, dtype=torch.float64) * torch.arange(1, 11).view(-1, *[1] * (len(shape) - 1)) + 3
    return plain, chunked, x


def by_chunks(plain, x, chunk=4):
    """Outputs and gradients of one pass a chunk, from a fresh copy for each chunk but the first."""
    out = [plain(part) if k == 0 else copy.deepcopy(plain)(part) for k, part in enumerate(x.split(chunk))]
    return torch.cat(out)


def test_outputs_and_running_statistics_of_the_first_chunk(layers, assert_same_state):
    plain, chunked, x = layers
    out = chunked(x)
    torch.testing.assert_close(out, by_chunks(plain, x), rtol=1e-12, atol=1e-12)
    assert_same_state(chunked.state_dict(), plain.state_dict(), rtol=1e-12, atol=0)
    whole = copy.deepcopy(plain)(x)
    assert (out - whole).abs().max() > 0.05


def test_gradients(layers):
    plain, chunked, x = layers
    upstream = torch.randn_like(x)
    x_chunked, x_plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    (chunked(x_chunked) * upstream).sum().backward()

    total = {}
    for part, up in zip(x_plain.split(4), upstream.split(4)):
        layer = copy.deepcopy(plain)
        (layer(part) * up).sum().backward()
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad:
                total[name] = total.get(name, 0) + parameter.grad
    torch.testing.assert_close(x_chunked.grad, x_plain.grad, rtol=1e-10, atol=1e-12)
    own = {name: p.grad for name, p in chunked.named_parameters() if p.requires_grad}
    assert own.keys() == total.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, total[name], rtol=1e-10, atol=1e-12)


def test_evaluation_is_plain(layers):
    plain, chunked, x = layers
    assert torch.equal(chunked.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("size", [2, 4])
def test_a_batch_within_one_chunk_is_plain(layers, size, assert_same_state):
    plain, chunked, x = layers
    assert torch.equal(chunked(x[:size]), plain(x[:size]))
    assert_same_state(chunked.state_dict(), plain.state_dict())


def test_state_dict_and_parameters_stay(layers, assert_same_state):
    plain, chunked, _ = layers
    assert_same_state(chunked.state_dict(), plain.state_dict())
    plain.load_state_dict(chunked.state_dict(), strict=True)
    chunked.load_state_dict(plain.state_dict(), strict=True)
    assert [p.requires_grad for p in chunked.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert "chunk=4" in repr(chunked)


def test_the_parameters_are_the_same_objects():
    model = nn.Sequential(nn.BatchNorm2d(3))
    parameters = list(model.parameters())
    chunk_batch_norm(model, 2)
    assert all(a is b for a, b in zip(model.parameters(), parameters))


def test_two_steps_follow_the_first_chunks():
    plain, chunked = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    chunk_batch_norm(chunked, 4)
    assert isinstance(chunked, ChunkedBatchNorm1d)
    for _ in range(2):
        x = torch.randn(8, 3, dtype=torch.float64)
        chunked(x)
        plain(x[:4])
    torch.testing.assert_close(chunked.running_var, plain.running_var)
    assert chunked.num_batches_tracked.item() == 2


def test_a_model_is_changed_once_and_a_copy_stays_changed():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    )
    assert chunk_batch_norm(model, 2) == 2
    assert chunk_batch_norm(model, 2) == 0
    assert type(model[1]) is ChunkedBatchNorm2d and type(model[2][1]) is nn.GroupNorm
    assert type(copy.deepcopy(model)[2][0]) is ChunkedBatchNorm2d and copy.deepcopy(model)[1].chunk == 2


def test_zero_leaves_the_model_alone():
    model = nn.Sequential(nn.BatchNorm2d(4))
    assert chunk_batch_norm(model, 0) == 0 and type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("chunk", [1, -1, -16])
def test_impossible_chunks(chunk):
    with pytest.raises(ValueError, match=f"SSKD.BN_CHUNK.*got {chunk}"):
        chunk_batch_norm(nn.BatchNorm2d(4), chunk)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: get_norm("GhostBN", 4),
        lambda: nn.SyncBatchNorm(4),
        lambda: get_norm("syncBN", 4),
        lambda: nn.BatchNorm3d(4),
    ],
    ids=["GhostBN", "SyncBatchNorm", "host's syncBN", "BatchNorm3d"],
)
def test_other_norms_are_refused_and_nothing_is_changed(layer):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(layer()))
    with pytest.raises(TypeError, match=r"SSKD.BN_CHUNK.*1\.0 is a .*NORM"):
        chunk_batch_norm(model, 4)
    assert type(model[0]) is nn.BatchNorm2d


def test_norms_without_batch_statistics_stay():
    model = nn.Sequential(get_norm("FrozenBN", 4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(4))
    assert chunk_batch_norm(model, 4) == 0


def resnet18(cfg, chunk, with_ibn=False):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.DEPTH = "18x"
    cfg.MODEL.BACKBONE.FEAT_DIM = 512
    cfg.MODEL.BACKBONE.WITH_IBN = with_ibn
    cfg.SSKD.BN_CHUNK = chunk
    torch.manual_seed(0)
    return build_peer(cfg).double().train()


@pytest.mark.parametrize(
    "with_ibn, chunk, size", [(False, 16, (16, 16)), (True, 4, (32, 16))], ids=["plain", "IBN"]
)
def test_four_chunks_through_resnet18_are_four_passes(cfg, with_ibn, chunk, size):
    chunked, plain = resnet18(cfg, chunk, with_ibn), resnet18(cfg, 0, with_ibn)
    norms = [m for m in chunked.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 21 and all(isinstance(m, ChunkedBatchNorm2d) and m.chunk == chunk for m in norms)
    assert chunked.heads.bottleneck[-1] is norms[-1]

    images, labels = (
        torch.randn(4 * chunk, 3, *size, dtype=torch.float64),
        torch.zeros(4 * chunk, dtype=torch.int64),
    )
    with torch.no_grad():
        out = chunked(images, labels)
        parts = [copy.deepcopy(plain)(part, labels[:chunk]) for part in images.split(chunk)]
        plain(images[:chunk], labels[:chunk])
        whole = resnet18(cfg, 0, with_ibn)(images, labels)
    for name in ("features", "pred_class_logits"):
        torch.testing.assert_close(out[name], torch.cat([part[name] for part in parts]), rtol=1e-9, atol=1e-9)
        assert (out[name] - whole[name]).abs().max() > 0.01
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(chunked.state_dict()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("images, chunk", [(9, 4), (1, 0), (65, 16)])
def test_a_chunk_of_one_image_is_refused(images, chunk):
    for more in (1, 3):
        check_batch(images + more, bn_chunk=chunk)
    with pytest.raises(ValueError, match=f"a batch of {images} images .*ends with a chunk of one image"):
        check_batch(images, bn_chunk=chunk)
