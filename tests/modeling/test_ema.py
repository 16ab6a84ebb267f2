"""The teachers' moving average against recorded values, its schedule, and what it must leave alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastreid_sskd.modeling import ema_decay, ema_momentum, update_teacher

GOLDEN = Path(__file__).parents[1] / "golden" / "ema.npz"


class Scalar(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value), dtype=torch.float64))


def test_recorded_twelve_steps():
    with np.load(GOLDEN) as recorded:
        golden = {name: recorded[name] for name in recorded.files}
    assert len(golden["student"]) == 12
    teacher = Scalar(golden["initial"])
    for step, (value, expected) in enumerate(zip(golden["student"], golden["teacher"])):
        update_teacher(teacher, Scalar(value), ema_decay(step, float(golden["alpha"])))
        assert teacher.value.item() == pytest.approx(expected, rel=1e-12), step


def test_schedule():
    assert [ema_decay(step, 0.999) for step in (0, 1, 3, 9)] == pytest.approx([0.0, 0.5, 0.75, 0.9])
    assert ema_decay(998, 0.999) == pytest.approx(1 - 1 / 999) and ema_decay(998, 0.999) < 0.999
    # 1 - 1/1000 is the cap itself; from then on it binds
    assert [ema_decay(step, 0.999) for step in (999, 1000, 10**6)] == [0.999] * 3
    assert ema_decay(10**6, 1.0) == pytest.approx(1 - 1e-6, rel=1e-9)
    assert ema_decay(5, 0.0) == 0.0


@pytest.mark.parametrize("step", [998, 999, 1000, 5000])
def test_cap_in_a_step(step):
    teacher = Scalar(2.0)
    update_teacher(teacher, Scalar(-1.0), ema_decay(step, 0.999))
    alpha = min(1 - 1 / (step + 1), 0.999)
    assert teacher.value.item() == pytest.approx(alpha * 2.0 - (1 - alpha), rel=1e-12)


def test_first_step_copies_the_student_bit_by_bit(make_peer):
    teacher, student = make_peer(0), make_peer(1)
    update_teacher(teacher, student, ema_decay(0, 0.999))
    for own, other in zip(teacher.parameters(), student.parameters()):
        assert torch.equal(own, other) and own.data_ptr() != other.data_ptr()


def test_every_parameter_moves_and_no_buffer_does(make_peer, copy_state):
    teacher, student = make_peer(0), make_peer(1)
    teacher.requires_grad_(False)
    before, of_student = copy_state(teacher), copy_state(student)
    update_teacher(teacher, student, 0.75)
    parameters = {name for name, _ in teacher.named_parameters()}
    for name, value in teacher.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * of_student[name] if name in parameters else before[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        if name.endswith("running_mean"):
            assert not torch.allclose(value, of_student[name])
    assert all(torch.equal(value, of_student[name]) for name, value in student.state_dict().items())


def test_statistics_can_move_along(make_peer, copy_state):
    teacher, student = make_peer(0), make_peer(1)
    before, of_student = copy_state(teacher), copy_state(student)
    update_teacher(teacher, student, 0.75, statistics=True)
    for name, value in teacher.state_dict().items():
        moves = not name.endswith("num_batches_tracked")
        expected = 0.75 * before[name] + 0.25 * of_student[name] if moves else before[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7, msg=name)


def test_window_of_a_run():
    assert ema_momentum(0.999, 0.0, 180) == 0.999
    assert ema_momentum(0.999, 0.125, 8000) == pytest.approx(0.999, abs=1e-12)  # the method's
    assert ema_momentum(0.999, 0.125, 400) == pytest.approx(1 - 1 / 50)
    assert ema_momentum(0.999, 0.5, 1) == ema_momentum(0.999, 1.0, 1) == 0.0  # a window of a step or less: the student itself


def test_no_graph_and_no_gradient(make_peer):
    teacher, student = make_peer(0), make_peer(1)
    update_teacher(teacher, student, 0.5)
    for parameter in (*teacher.parameters(), *student.parameters()):
        assert parameter.is_leaf and parameter.grad is None


def test_bad_arguments(make_peer):
    with pytest.raises(ValueError, match="step.*>= 0, got -1"):
        ema_decay(-1, 0.999)
    for momentum in (-0.1, 1.001, float("nan")):
        with pytest.raises(ValueError, match="SSKD.EMA.MOMENTUM"):
            ema_decay(0, momentum)
    with pytest.raises(RuntimeError):
        update_teacher(make_peer(0, num_classes=4), make_peer(0, num_classes=5), 0.5)
