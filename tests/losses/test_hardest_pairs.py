"""Which pairs are mined: those of the distances themselves, also where all features are near each other."""

import torch

from fastreid_sskd.losses.soft_triplet_loss import distance_to, hardest_pairs


def near_copies():
    """40 images of 10 people (more than torch.cdist's own choice of products needs), around a point far from 0."""
    draw = torch.Generator().manual_seed(0)
    features = 100 + 0.01 * torch.randn(40, 32, generator=draw)
    return features, torch.arange(10).repeat_interleave(4)


def test_pairs_of_near_copies():
    features, labels = near_copies()
    exact = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    positive, negative, has_negative = hardest_pairs(features, labels)
    assert has_negative.all()
    assert torch.equal(positive, exact.masked_fill(~same, -1).argmax(dim=1))
    assert torch.equal(negative, exact.masked_fill(same, torch.inf).argmin(dim=1))
    by_products = torch.cdist(features, features, compute_mode="use_mm_for_euclid_dist")
    assert not torch.equal(negative, by_products.masked_fill(same, torch.inf).argmin(dim=1))  # what cancellation would do


def test_alone_and_copies():
    features, labels = near_copies()
    positive, _, has_negative = hardest_pairs(features[:1], labels[:1])
    assert positive.tolist() == [0] and has_negative.tolist() == [False]
    assert distance_to(features[:1], positive).tolist() == [torch.tensor(1e-6).item()]
