"""Precision, and running without waiting for the device, of all losses."""

import pytest
import torch

from fastreid_sskd import losses

CALLS = {
    "label_smooth_cross_entropy": ("logits", "labels"),
    "soft_cross_entropy": ("logits", "teacher_logits"),
    "multi_similarity": ("features", "labels"),
    "nuclear_norm": ("logits",),
    "soft_triplet": ("features", "labels"),
    "peer_soft_triplet": ("features", "teacher_features", "labels"),
}


@pytest.fixture(params=CALLS)
def call(request, batch):
    """A loss, and a function that gives its arguments after converting the floating-point ones."""

    def arguments(convert):
        tensors = [batch[name] for name in CALLS[request.param]]
        return [convert(tensor) if tensor.is_floating_point() else tensor for tensor in tensors]

    return getattr(losses, request.param), arguments


def test_float64_stays_and_float32_is_close(call):
    function, arguments = call
    double, single = function(*arguments(torch.Tensor.double)), function(*arguments(torch.Tensor.float))
    assert double.dtype == torch.float64 and single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(call, half):
    function, arguments = call
    rounded = function(*arguments(lambda tensor: tensor.to(half)))
    expected = function(*arguments(lambda tensor: tensor.to(half).float()))
    assert rounded.dtype == torch.float32 and torch.equal(rounded, expected)


def test_autocast_changes_nothing(call):
    function, arguments = call
    expected = function(*arguments(torch.Tensor.float))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = function(*arguments(torch.Tensor.float))
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16, "autocast must be on again"
    assert value.dtype == torch.float32 and torch.equal(value, expected)


def test_gradient_comes_back_in_the_input_precision(call):
    function, arguments = call
    inputs = arguments(torch.Tensor.bfloat16)
    inputs[0].requires_grad_()
    function(*inputs).backward()
    assert inputs[0].grad.dtype == torch.bfloat16 and inputs[0].grad.isfinite().all()


def test_no_step_reads_a_value_back(call):
    # A meta tensor has no values: .item(), boolean indexing and nonzero() raise on it, as they would stall a
    # stream on an accelerator.
    function, arguments = call
    with torch.device("meta"):
        value = function(*(tensor.to("meta") for tensor in arguments(torch.Tensor.float)))
    assert value.is_meta and value.shape == ()
