"""What processes tell each other, and what keeps their models the same; with one process nothing happens."""

import os

import pytest
import torch
from fastreid.utils import comm
from own_processes import together
from torch import nn

from fastreid_sskd.processes import (
    DisagreementError,
    agree,
    all_rows,
    average_gradients,
    broadcast_buffers,
    broadcast_model,
    check_agreement,
    distributed,
    gather_rows,
    in_all,
    on_every,
    on_main,
    share_of,
)


def test_alone():
    rows = torch.randn(3, 2)
    assert on_main(lambda: 5) == 5 and on_every("x") == ["x"] and agree(True, False) == [True, False]
    assert gather_rows(rows) is rows and all_rows(rows) is rows and share_of([1, 2, 3]) == [1, 2, 3]
    assert in_all(lambda: 6) == 6
    for call in (on_main, in_all):
        with pytest.raises(ZeroDivisionError):
            call(lambda: 1 // 0)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_make_up_the_whole(monkeypatch, count, world):
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(share_of(list(range(count)))))
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class OwnError(ValueError):
    """Is told to the other processes."""


def fail_if(fails, rank):
    if fails:
        raise OwnError(f"of {rank}")


def members_talk():
    rank = comm.get_rank()
    assert comm.get_world_size() == 3 and comm.get_local_rank() == rank and comm.get_local_size() == 3

    called = []
    assert on_main(lambda: called.append(rank) or {"rank": rank}) == {"rank": 0}
    assert called == ([0] if rank == 0 else [])
    with pytest.raises(OwnError, match="of the main process"):
        on_main(lambda: (_ for _ in ()).throw(OwnError("of the main process")))
    assert on_every(rank * 10) == [0, 10, 20]
    assert in_all(lambda: rank + 1) == rank + 1
    for failing in ((2,), (1, 2), (0, 1, 2)):
        with pytest.raises(OwnError, match=f"of {failing[0]}"):
            in_all(lambda failing=failing: fail_if(rank in failing, rank))
    assert agree(rank == 2, False, True) == [True, False, True]

    for sizes in ((2, 3, 1), (0, 2, 0), (1, 0, 0), (0, 0, 0)):
        rows = torch.full((sizes[rank], 2), float(rank))
        whole = gather_rows(rows)
        expected = [[float(r)] * 2 for r, size in enumerate(sizes) for _ in range(size)]
        assert (whole.tolist() == expected) if rank == 0 else whole is None
        assert all_rows(rows).tolist() == expected
    strided = torch.arange(12.0).reshape(2, 6)[:, ::2] + 100 * rank
    whole = gather_rows(strided)
    assert rank or whole[4].tolist() == [200.0, 202.0, 204.0]
    assert all_rows(strided)[4].tolist() == [200.0, 202.0, 204.0]


def test_three_processes():
    assert together(members_talk, world=3) == [0, 0, 0]


def one_is_gone():
    if comm.get_rank() == 1:
        os._exit(3)
    on_every("still there")


def test_death_of_a_process_is_noticed():
    """By the others, at once: they end with an error of their own instead of waiting."""
    statuses = together(one_is_gone)
    assert statuses[1] == 3 and statuses[0] not in (0, None)


def network(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].running_mean += torch.randn(4)
    return net


def test_one_process_keeps_its_own():
    net = network(0)
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    average_gradients(net.parameters())
    broadcast_buffers(net), broadcast_model(net), check_agreement(net)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before))


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
    gradients(net, images[rank * 4 : (rank + 1) * 4])
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
