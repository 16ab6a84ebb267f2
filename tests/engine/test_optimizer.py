"""The host's optimiser over several networks, joined into few groups."""

import copy

import pytest
import torch
from fastreid.solver import build as host
from tiny_reid import tiny_adaptation

from fastreid_sskd.engine import train_step as optimizer_module
from fastreid_sskd.engine.train_step import build_optimizer, has_fused_kernel, reset_optimizer
from fastreid_sskd.modeling import build_peer


@pytest.fixture
def cfg(tmp_path):
    cfg = tiny_adaptation(tmp_path)
    cfg.defrost()
    return cfg


def options(optimizer):
    """{parameter: its options}, but for how torch computes the update."""
    return {
        p: {key: value for key, value in group.items() if key not in ("params", "fused")}
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": 0.1, "HEADS_LR_FACTOR": 10.0, "BIAS_LR_FACTOR": 2.0},
        {"OPT": "SGD", "HEADS_LR_FACTOR": 0.5},
    ],
)
def test_every_parameter_has_the_options_that_the_host_gives_it(cfg, changes):
    for key, value in changes.items():
        cfg.SOLVER[key] = value
    networks = [build_peer(cfg) for _ in range(3)]
    joined = build_optimizer(cfg, networks)
    found, expected = options(joined), {}
    for network in networks:
        expected.update(options(host.build_optimizer(cfg, network, contiguous=False)[0]))
    assert found == expected
    assert len(joined.param_groups) < 8


def test_equal_options_share_a_group(cfg):
    assert len(build_optimizer(cfg, [build_peer(cfg) for _ in range(2)]).param_groups) == 1


def test_joined_groups_step_as_the_hosts_do(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.HEADS_LR_FACTOR = 3.0
    results = []
    for make in (
        lambda n: build_optimizer(cfg, [n]),
        lambda n: host.build_optimizer(cfg, n, contiguous=False)[0],
    ):
        torch.manual_seed(0)
        network = build_peer(cfg)
        optimizer = make(network)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        results.append([p.detach().clone() for p in network.parameters()])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


class WithoutKernel(torch.optim.Optimizer):
    """An optimiser of somebody's own."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})


def test_the_fused_kernel_is_taken_where_torch_has_one(cfg):
    groups = build_optimizer(cfg, [build_peer(cfg)]).param_groups
    try:
        torch.optim.Adam([torch.zeros(1)], fused=True)
        expected = True
    except RuntimeError:  # torch < 2.4 on CPU
        expected = None
    assert [group.get("fused") for group in groups] == [expected] * len(groups)
    assert not has_fused_kernel(WithoutKernel, groups)


def test_reset(cfg):
    optimizer = build_optimizer(cfg, [build_peer(cfg)])
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert len(optimizer.state) == len(parameters)
    reset_optimizer(optimizer)
    assert not optimizer.state and optimizer.param_groups is groups
    assert all(p.grad is None for p in parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def stepped(cfg, peer, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in peer.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
    optimizer.step()


def test_resumed_in_another_memory_layout(cfg):
    """A fused kernel walks weights and moments side by side.

    Those of a checkpoint are laid as the weights are.
    """
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        first = build_peer(cfg)
        optimizer = build_optimizer(cfg, [first])
        stepped(cfg, first, optimizer, 1)
        second = build_peer(cfg).to(memory_format=layout)
        second.load_state_dict(first.state_dict())
        resumed = build_optimizer(cfg, [second])
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for parameter, state in resumed.state.items():
            assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
        stepped(cfg, second, resumed, 2)
        ends.append(second)
    assert any(not p.is_contiguous() for p in ends[1].parameters())
    for (name, one), other in zip(ends[0].named_parameters(), ends[1].parameters()):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8, msg=name)


def test_resumed_on_a_machine_without_the_kernel(cfg, monkeypatch):
    saved = build_optimizer(cfg, [build_peer(cfg)])
    for group in saved.param_groups:
        group["fused"] = True
    monkeypatch.setattr(optimizer_module, "has_fused_kernel", lambda *_: False)
    made = build_optimizer(cfg, [build_peer(cfg)])
    before = [group["fused"] for group in made.param_groups]
    made.load_state_dict(saved.state_dict())
    assert [group["fused"] for group in made.param_groups] == before == [None] * len(before)


def test_resumed_where_the_kernel_counts_its_steps(cfg, monkeypatch):
    """A checkpoint of a machine without the kernel leaves torch's count of steps on the CPU.

    The kernel wants it beside the weights.
    """
    monkeypatch.setattr(optimizer_module, "has_fused_kernel", lambda *_: False)
    peer = build_peer(cfg)
    saved = build_optimizer(cfg, [peer])
    stepped(cfg, peer, saved, 1)
    monkeypatch.setattr(optimizer_module, "has_fused_kernel", lambda *_: True)
    made = build_optimizer(cfg, [build_peer(cfg).to("meta")])
    made.load_state_dict(saved.state_dict())
    assert {value.device.type for state in made.state.values() for value in state.values()} == {"meta"}


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch 2.3")
def test_step_that_overflows_is_left_out(cfg):
    """The scaler leaves scale and overflow to the fused kernel, and waits for nothing; then nothing moves."""
    peer = build_peer(cfg)
    optimizer = build_optimizer(cfg, [peer])
    if not optimizer.param_groups[0]["fused"]:
        pytest.skip("no fused kernel here")
    assert optimizer._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (False, True, False):
        before = [p.detach().clone() for p in peer.parameters()]
        steps = [state["step"].clone() for state in optimizer.state.values()]
        loss = scaler.scale(sum((p * p).sum() for p in peer.parameters()))
        optimizer.zero_grad()
        loss.backward()
        if bad:
            next(peer.parameters()).grad.flatten()[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(p, old) for p, old in zip(peer.parameters(), before)]
        assert any(moved) is not bad
        if bad:
            assert [int(state["step"]) for state in optimizer.state.values()] == [int(step) for step in steps]
