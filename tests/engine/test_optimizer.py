"""The host's optimiser over several networks, joined into few groups."""

import pytest
import torch
from fastreid.solver import build as host
from tiny_reid import tiny_adaptation

from fastreid_sskd.engine.optimizer import build_optimizer, has_fused_kernel, reset_optimizer
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
    for make in (lambda n: build_optimizer(cfg, [n]), lambda n: host.build_optimizer(cfg, n, contiguous=False)[0]):
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
