"""Losses that are read together are those that would have been read one by one."""

import pytest
import torch
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from own_processes import together

from fastreid_sskd.engine.train_step import LossRecord


def of(*values):
    return {f"loss_{name}": torch.tensor(value) for name, value in zip(("id_peer0", "id_peer1"), values)}


def test_every_step_is_put_under_its_own_number():
    record = LossRecord()
    with EventStorage(7) as storage:
        record.read()  # nothing kept, nothing put
        assert not storage.histories() and len(record) == 0
        for step in (3, 4, 5):
            record.add(step, of(step, 2.0 * step), data_time=0.5 * step)
        assert not storage.histories() and len(record) == 3
        record.read()
        assert storage.iter == 7 and len(record) == 0
        assert storage.history("loss_id_peer1").values() == [(6.0, 3), (8.0, 4), (10.0, 5)]
        assert storage.history("total_loss").values() == [(9.0, 3), (12.0, 4), (15.0, 5)]
        assert storage.history("data_time").values() == [(1.5, 3), (2.0, 4), (2.5, 5)]
        assert storage.latest()["total_loss"] == (15.0, 5)
        record.read()
        assert len(storage.history("total_loss").values()) == 3


def test_a_single_loss_is_the_total():
    """As in the host, where it has no scalar of its own."""
    record = LossRecord()
    with EventStorage(0) as storage:
        record.add(0, of(1.0), 0.0)
        record.read()
        assert set(storage.histories()) == {"data_time", "total_loss"}


def test_steps_may_have_other_losses():
    record = LossRecord()
    with EventStorage(0) as storage:
        record.add(0, of(1.0, 2.0), 0.0)
        record.add(
            1, {"loss_a": torch.tensor(5.0), "loss_b": torch.tensor(6.0), "loss_c": torch.tensor(7.0)}, 0.0
        )
        record.read()
        assert storage.history("loss_b").values() == [(6.0, 1)] and storage.history(
            "loss_id_peer0"
        ).values() == [(1.0, 0)]


def test_graph_is_not_kept():
    record, loss = LossRecord(), torch.tensor(1.0, requires_grad=True) * 2
    record.add(0, {"loss_a": loss}, 0.0)
    assert not record._steps[0][2].requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_first_step_that_is_not_finite_is_named(value):
    record = LossRecord()
    with EventStorage(0) as storage:
        for step, second in ((10, 1.0), (11, value), (12, float("nan"))):
            record.add(step, of(1.0, second), 0.0)
        with pytest.raises(
            FloatingPointError,
            match=rf"step 11: loss_id of peer 1 is {value}. Training has diverged.*BASE_LR",
        ):
            record.read()
        assert not storage.histories()


def means():
    rank, record = comm.get_rank(), LossRecord()
    with EventStorage(0) as storage:
        for step in range(2):
            record.add(step, of(1.0 + step + rank, 4.0 * rank), data_time=float(rank))
        record.read()
        if rank == 0:
            assert storage.history("loss_id_peer0").values() == [(1.5, 0), (2.5, 1)]
            assert storage.history("total_loss").values() == [(3.5, 0), (4.5, 1)]
            # of the one that waited longest
            assert storage.history("data_time").values() == [(1.0, 0), (1.0, 1)]
        else:
            assert not storage.histories()


def test_two_processes():
    assert together(means) == [0, 0]
