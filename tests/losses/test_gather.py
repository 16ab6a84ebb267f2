"""Losses of a batch that two processes share are those of one process, values and gradients."""

import dataclasses

import pytest
import torch
from fastreid.utils import comm
from own_processes import together

from fastreid_sskd.losses import PeerBatch, build_loss_set
from fastreid_sskd.losses.gather import gather_batch
from fastreid_sskd.processes import average_gradients

LOSSES = ("LabelSmoothCE", "SoftCE", "MultiSimilarity", "NuclearNorm", "SoftTriplet", "PeerSoftTriplet")


def whole_batch(dtype=torch.float32):
    """16 images of 4 identities in 6 classes, and linear maps for features and logits."""
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn(16, 5, generator=draw)
    maps = [torch.nn.Parameter(torch.randn(5, size, generator=draw)) for size in (7, 6)]
    teachers = {
        name: torch.randn(16, size, generator=draw)
        for name, size in (
            ("teacher_features", 7),
            ("teacher_logits", 6),
            ("peer_teacher_features", 7),
            ("peer_teacher_logits", 6),
        )
    }
    return inputs.to(dtype), maps, torch.arange(4).repeat_interleave(4), teachers


def losses_of(name, gather, share):
    inputs, maps, labels, teachers = whole_batch()
    batch = PeerBatch(
        features=inputs[share] @ maps[0],
        logits=inputs[share] @ maps[1],
        labels=labels[share],
        **{key: value[share] for key, value in teachers.items()},
    )
    (value,) = build_loss_set([(name, 2.0, None)], gather=gather)(batch).values()
    value.backward()
    return value.detach(), maps


def shared_losses():
    rank = comm.get_rank()
    for name in LOSSES:
        expected, whole = losses_of(name, False, slice(None))
        value, maps = losses_of(name, True, slice(8 * rank, 8 * rank + 8))
        average_gradients(maps)
        assert torch.allclose(value, expected, rtol=1e-5), (name, value, expected)
        for found, parameter in zip(maps, whole):
            # a loss without this input
            expected = torch.zeros_like(found) if parameter.grad is None else parameter.grad
            assert torch.allclose(found.grad, expected, rtol=1e-4, atol=1e-6), name


def losses_of_shares_differ():
    """What the gathering is for: without it these two are other losses."""
    rank = comm.get_rank()
    for name in ("MultiSimilarity", "NuclearNorm"):
        _, whole = losses_of(name, False, slice(None))
        _, maps = losses_of(name, False, slice(8 * rank, 8 * rank + 8))
        average_gradients(maps)
        used = [(a.grad, b.grad) for a, b in zip(maps, whole) if b.grad is not None]
        assert not any(torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in used), name


def gathered_rows():
    rank = comm.get_rank()
    labels = torch.tensor([2**40 + rank, rank])  # beyond what a float holds
    features = torch.randn(2, 3, dtype=torch.bfloat16).requires_grad_()
    teachers = {"teacher_features": features.detach(), "peer_teacher_logits": torch.full((2, 4), 5.0 + rank)}
    batch = PeerBatch(features=features, logits=torch.full((2, 4), float(rank)), labels=labels, **teachers)
    whole = gather_batch(batch, {"peer_teacher_logits", "peer_teacher_features"})
    assert whole.teacher_features is None and whole.peer_teacher_features is None  # not required; not there
    assert whole.peer_teacher_logits[:, 0].tolist() == [5, 5, 6, 6]
    assert whole.labels.tolist() == [2**40, 0, 2**40 + 1, 1] and whole.teacher_logits is None
    assert whole.features.dtype == torch.float32 and whole.logits[:, 0].tolist() == [0, 0, 1, 1]
    assert torch.equal(whole.features[2 * rank : 2 * rank + 2], features.float())


@pytest.mark.parametrize("function", [shared_losses, losses_of_shares_differ, gathered_rows])
def test_two_processes(function):
    assert together(function) == [0, 0]


def test_alone_nothing_is_gathered():
    batch = PeerBatch(
        features=torch.zeros(1, 2), logits=torch.zeros(1, 2), labels=torch.zeros(1, dtype=torch.long)
    )
    alone = gather_batch(batch, ())
    assert alone.features is batch.features and alone.logits is batch.logits and alone.labels is batch.labels
    unread = dataclasses.replace(batch, teacher_logits=torch.zeros(1, 2))
    assert gather_batch(unread, ()).teacher_logits is None  # as with several processes
