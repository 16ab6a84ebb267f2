"""Gradients, statistics and models that are the same in all processes, and the check that says when they are not."""

import pytest
import torch
from fastreid.utils import comm
from own_processes import together
from torch import nn

from fastreid_sskd.processes import (
    DisagreementError,
    average_gradients,
    broadcast_buffers,
    broadcast_model,
    check_agreement,
    distributed,
)


def network(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].running_mean += torch.randn(4)
    return net


def test_alone():
    net = network(0)
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    average_gradients(net.parameters())
    broadcast_buffers(net), broadcast_model(net), check_agreement(net)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before))


@pytest.mark.parametrize("limit, expected", [(1, 5), (6, 3), (100, 2)])
def test_buckets(monkeypatch, limit, expected):
    """In order, of one type, none above the limit but for a single larger tensor."""
    monkeypatch.setattr(distributed, "_BUCKET", limit)
    parts = [torch.zeros(3), torch.zeros(2), torch.zeros(4), torch.zeros(1, dtype=torch.long), torch.zeros(5, dtype=torch.long)]
    buckets = list(distributed._buckets(parts))
    assert len(buckets) == expected
    assert [id(part) for bucket in buckets for part in bucket] == [id(part) for part in parts]
    assert all(len({part.dtype for part in bucket}) == 1 for bucket in buckets)


def gradients_of_shares():
    """Of the mean loss of a batch, each process with its half; a frozen parameter has none."""
    rank, world = comm.get_rank(), comm.get_world_size()
    distributed._BUCKET = 50  # several buckets
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def gradients(net, batch):
        net.eval()  # no statistics of the batch
        net[3].bias.requires_grad_(False)
        net(batch).pow(2).mean().backward()
        return [p.grad for p in net.parameters()]

    whole = gradients(network(0), images)
    net = network(0)
    gradients(net, images[rank * 4:(rank + 1) * 4])
    assert world == 2 and not torch.allclose(net[0].weight.grad, whole[0])
    average_gradients(net.parameters())
    for parameter, expected in zip(net.parameters(), whole):
        assert (parameter.grad is None) == (expected is None)
        if expected is not None:
            assert torch.allclose(parameter.grad, expected, atol=1e-6)


def models_of_ranks():
    rank = comm.get_rank()
    net, main = network(rank), network(0)
    with pytest.raises(DisagreementError, match=r"0\.weight differs between the main process and rank 1"):
        check_agreement(net)
    own = net[0].weight.clone()
    broadcast_buffers(net)
    assert torch.equal(net[1].running_mean, main[1].running_mean) and torch.equal(net[0].weight, own)
    broadcast_model(net)
    for value, expected in zip(net.state_dict().values(), main.state_dict().values()):
        assert torch.equal(value, expected)
    check_agreement(net)
    if rank == 1:
        with torch.no_grad():
            net[3].weight[0, 0] = torch.nextafter(net[3].weight[0, 0], torch.tensor(9.0))  # one bit
    with pytest.raises(DisagreementError, match=r"3\.weight"):
        check_agreement(net)


@pytest.mark.parametrize("function", [gradients_of_shares, models_of_ranks])
def test_two_processes(function):
    assert together(function) == [0, 0]
