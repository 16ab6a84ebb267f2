"""Combined features: the mean of features is the method's, the concatenation combines distances."""

import pytest
import torch
import torch.nn.functional as F

from fastreid_sskd.modeling import concatenated_feature, ensemble_feature
from fastreid_sskd.modeling.sskd import COMBINATIONS


def spaces(*sizes, n=5):
    torch.manual_seed(0)
    return [torch.randn(n, size) * (k + 1) for k, size in enumerate(sizes)]


def test_cosine_is_the_mean_of_the_cosines():
    features = spaces(3, 8, 5)
    rows = concatenated_feature(features)
    assert rows.shape == (5, 16)
    for i in range(5):
        for j in range(5):
            cosines = [F.cosine_similarity(f[i], f[j], dim=0) for f in features]
            assert torch.allclose(rows[i] @ rows[j], sum(cosines) / 3, atol=1e-6)


def test_squared_distance_is_the_mean_of_the_squared_distances():
    features = spaces(4, 7)
    rows = concatenated_feature(features)
    distances = [torch.cdist(F.normalize(f), F.normalize(f)).square() for f in features]
    assert torch.allclose(torch.cdist(rows, rows).square(), sum(distances) / 2, atol=1e-5)


@pytest.mark.parametrize("combine", COMBINATIONS.values(), ids=list(COMBINATIONS))
def test_unit_length_and_input_unchanged(combine):
    features = spaces(6, 6)
    before = [f.clone() for f in features]
    assert torch.allclose(combine(features).norm(dim=1), torch.ones(5))
    assert all(torch.equal(f, b) for f, b in zip(features, before))
    assert combine([f.half() for f in features]).dtype == torch.float32


@pytest.mark.parametrize("combine", COMBINATIONS.values(), ids=list(COMBINATIONS))
def test_one_peer_and_no_image(combine):
    (features,) = spaces(6)
    assert torch.allclose(combine([features]), F.normalize(features))
    assert combine([torch.zeros(0, 6)] * 2).shape[0] == 0


def test_a_rotated_space_changes_the_mean_only():
    """What makes peers of different spaces comparable: their distances do not depend on the coordinates."""
    one, other = spaces(6, 6)
    turned = other @ torch.linalg.qr(torch.randn(6, 6))[0]
    cosines = [rows @ rows.T for rows in map(concatenated_feature, ([one, other], [one, turned]))]
    assert torch.allclose(*cosines, atol=1e-6)
    means = [rows @ rows.T for rows in map(ensemble_feature, ([one, other], [one, turned]))]
    assert not torch.allclose(*means, atol=1e-2)
