"""Batch norm in convolutions: the same features, by a copy."""

import copy

import pytest
import torch
from fastreid.config import get_cfg
from torch import nn

from fastreid_sskd import add_sskd_config
from fastreid_sskd.evaluation.features import Encoder
from fastreid_sskd.evaluation.folding import folded
from fastreid_sskd.modeling import chunk_batch_norm
from fastreid_sskd.precision import Precision


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def random_statistics(network):
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for values in (module.running_mean, module.bias.data):
                values.normal_()
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.2, 3)
    return network.eval().requires_grad_(False)


def small(*middle):
    return random_statistics(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), *middle, nn.ReLU(inplace=True), nn.Flatten())
    )


class Twice(nn.Module):
    """Needs the output of its convolution beside that of batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return (x + self.norm(x)).flatten(1)


class Shared(Twice):
    """One convolution, two batch norms."""

    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.norm(self.conv(x)) + self.other(self.conv(x))).flatten(1)


class Several(Twice):
    """One batch norm, of two convolutions."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return (self.norm(self.conv(x)) + self.norm(self.other(x))).flatten(1)


class Repeated(nn.Module):
    """A convolution and its batch norm, called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x)))).flatten(1)


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def chunked():
    network = small(nn.BatchNorm2d(4))
    chunk_batch_norm(network, 2)
    return network


@pytest.mark.parametrize(
    "network, left",
    [
        (lambda: small(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)), 0),
        (chunked, 0),
        (lambda: small(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), 1),
        (lambda: small(nn.Identity()), 0),
        (lambda: small(Activated(4)), 1),
        (lambda: small(nn.InstanceNorm2d(4)), 0),
        (lambda: random_statistics(Twice()), 1),
        (lambda: random_statistics(Shared()), 2),
        (lambda: random_statistics(Several()), 1),
        (lambda: random_statistics(Repeated()), 0),
        (lambda: small(nn.BatchNorm2d(4, track_running_stats=False)), 1),
    ],
)
def test_same_features(network, left):
    """What cannot be folded stays, and nothing of the network itself changes."""
    network = network()
    images = torch.randn(3, 3, 9, 8)
    expected, before, count = network(images), copy.deepcopy(network.state_dict()), norms(network)
    made = folded(network, images[:1])
    assert norms(made) == left and norms(network) == count
    torch.testing.assert_close(made(images), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(network(images), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


class InPlace(nn.Module):
    """Normalises the images that it is given, as fast-reid's own models do before they are patched."""

    def __init__(self):
        super().__init__()
        self.rest = small(nn.BatchNorm2d(4))

    def forward(self, batch):
        return self.rest(batch["images"].sub_(0.5).div_(0.1))


def test_trying_leaves_the_images_alone():
    network, images = random_statistics(InPlace()), torch.rand(2, 3, 5, 5)
    batch = {"images": images.clone()}
    made = Encoder(network).folded(batch)
    assert torch.equal(batch["images"], images)
    assert norms(made) == 0  # and the second try is given what the first was
    (found,) = made.each({"images": images.clone()})
    torch.testing.assert_close(found, network({"images": images}), rtol=1e-5, atol=1e-5)


def test_nan_stays_to_be_found():
    network = small(nn.BatchNorm2d(4))
    network[0].weight[0] = float("nan")
    assert folded(network, torch.ones(1, 3, 5, 5)) is network


def test_a_compiled_network_folds_by_itself():
    network = small(nn.BatchNorm2d(4))
    network[0].compile()
    assert folded(network, torch.ones(1, 3, 5, 5)) is network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoder_for_many_images(model, dtype):
    """As `Encoder.each`; the convolutions have the type and layout, and the model's weights stay."""
    cfg = get_cfg()
    add_sskd_config(cfg)
    cfg.MODEL.DEVICE, cfg.SSKD.PRECISION = "cpu", str(dtype).removeprefix("torch.")
    random_statistics(model)
    encoder = Encoder(model, "ensemble", Precision(cfg))
    batch = {"images": torch.rand(4, 3, 32, 16) * 255}
    model.to(memory_format=torch.channels_last)
    made = encoder.folded(batch)
    assert made.networks[0].backbone[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert sum(map(norms, made.networks)) < sum(map(norms, encoder.networks))
    assert {conv.weight.dtype for conv in made.modules() if isinstance(conv, nn.Conv2d)} == {dtype}
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    for found, expected in zip(made.each(batch), encoder.each(batch), strict=True):
        assert found.dtype == torch.float32
        error = (found - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.02)
