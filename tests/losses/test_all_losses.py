"""What all losses share: recorded values, derivatives, examples, precision, no wait for the device."""

import doctest

import pytest
import torch

from fastreid_sskd import losses

# The fields of the batch that a loss takes, and the name of its recorded values.
CALLS = {
    "label_smooth_cross_entropy": (("logits", "labels"), "ce_label_smooth"),
    "soft_cross_entropy": (("logits", "teacher_logits"), "soft_entropy"),
    "multi_similarity": (("features", "labels"), "multi_similarity"),
    "nuclear_norm": (("logits",), "nuclear_norm"),
    "soft_triplet": (("features", "labels"), "soft_triplet_margin0"),
    "peer_soft_triplet": (("features", "teacher_features", "labels"), "soft_triplet_teacher"),
    "cluster_contrast": (("features", "memory", "labels"), None),
}


@pytest.fixture(params=CALLS)
def call(request, batch):
    """A loss, and a function that gives its arguments after converting the floating-point ones."""
    fields, _ = CALLS[request.param]

    def arguments(convert=torch.Tensor.clone):
        return [convert(batch[name]) if batch[name].is_floating_point() else batch[name] for name in fields]

    return getattr(losses, request.param), arguments


@pytest.mark.parametrize("name", [name for name, (_, recorded) in CALLS.items() if recorded])
def test_recorded_values(name, golden, gradient_of, assert_gradient):
    fields, recorded = CALLS[name]
    value, gradient = gradient_of(getattr(losses, name), *(golden[field] for field in fields))
    assert value.item() == pytest.approx(golden[recorded].item(), rel=1e-5)
    assert_gradient(gradient, golden[f"{recorded}_grad"])


@pytest.mark.parametrize("name", CALLS)
def test_example(name):
    (example,) = doctest.DocTestFinder().find(
        getattr(losses, name), name, globs={"torch": torch, **vars(losses)}
    )
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


def test_gradient_is_the_derivative_and_reaches_the_first_input_only(call):
    function, arguments = call
    rows, *others = arguments()
    assert function(rows, *others) != 0
    assert torch.autograd.gradcheck(lambda rows: function(rows, *others), (rows.requires_grad_(),))
    teachers = [tensor.requires_grad_() for tensor in others if tensor.is_floating_point()]
    function(rows, *others).backward()
    assert rows.grad.abs().sum() > 0 and all(teacher.grad is None for teacher in teachers)


def test_inputs_unchanged(call, batch):
    function, arguments = call
    before = {name: tensor.clone() for name, tensor in batch.items()}
    function(*arguments(lambda tensor: tensor))
    assert all(torch.equal(tensor, before[name]) for name, tensor in batch.items())


def test_empty_batch_is_a_zero_on_the_graph(call, gradient_of, batch):
    function, arguments = call
    empty = [tensor if tensor.shape == batch["memory"].shape else tensor[:0] for tensor in arguments()]
    value, gradient = gradient_of(function, *empty)
    assert value == 0 and gradient.shape == empty[0].shape


def test_nan_is_not_hidden(call):
    function, arguments = call
    rows, *others = arguments()
    rows[2, 1] = float("nan")
    assert function(rows, *others).isnan()


def test_wrong_inputs(call):
    function, arguments = call
    rows, *others = arguments()
    for wrong, match in [
        (rows[0], r"must be \(batch, columns\)"),
        (rows[:, :0], "at least one column"),
        (rows.long(), "floating point"),
    ]:
        with pytest.raises(ValueError, match=match):
            function(wrong, *others)
    if others and not others[-1].is_floating_point():
        *others, labels = others
        for wrong, match in [
            (labels - 1, "unlabelled"),
            (labels[:3], "one a row"),
            (labels.bool(), "integers"),
        ]:
            with pytest.raises(ValueError, match=match):
                function(rows, *others, wrong)


# ---- precision -----------------------------------------------------------------------------------


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
