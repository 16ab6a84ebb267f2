"""Seeds, batches of P identities x K images, random batches without labels, and how a batch can be split."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from fastreid.utils import comm

from fastreid_sskd.data.samplers import IdentityBatches, ShuffledBatches, check_batch, derive_seed, seeded

# ---- seeds ---------------------------------------------------------------------------------------


def numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_derive_seed():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    assert derive_seed(1, 2, 3) != derive_seed(1, 3, 2)
    found = {derive_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(found) == 400 and all(0 <= seed < 2**32 for seed in found)


def test_derive_seed_takes_numpy_integers():
    assert derive_seed(np.int64(5), np.uint32(7)) == derive_seed(5, 7)


def test_derive_seed_refuses_negative_numbers():
    with pytest.raises(ValueError):
        derive_seed(-1)


def test_seeded_gives_the_same_numbers():
    with seeded(5):
        first = numbers()
    with seeded(5):
        assert numbers() == first
    with seeded(6):
        other = numbers()
    assert all(a != b for a, b in zip(first, other))


@pytest.mark.parametrize("fails", [False, True])
def test_seeded_restores_the_generators(fails):
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(1)
    expected = numbers()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(1)
    try:
        with seeded(99):
            numbers()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert numbers() == expected


def test_seeded_nests():
    with seeded(1):
        first = numbers()
        second = numbers()
    with seeded(1):
        assert numbers() == first
        with seeded(2):
            numbers()
        assert numbers() == second


# ---- identities ----------------------------------------------------------------------------------


# identity 0: three cameras; 1: two cameras; 2: one camera; 3: a single image; -1: noise
LABELS = [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, -1, -1, -1]
CAMERAS = ["a", "a", "b", "b", "c", "a", "a", "b", "b", "a", "a", "a", "a", "a", "c", "a", "b", "c"]


def batches(labels=LABELS, cameras=CAMERAS, *, batch_size=16, num_instances=4, num_batches=50, seed=3):
    return IdentityBatches(
        labels,
        cameras,
        batch_size=batch_size,
        num_instances=num_instances,
        num_batches=num_batches,
        seed=seed,
    )


def groups(sampler):
    """(identity, its images) of every identity of every batch."""
    for batch in sampler:
        for start in range(0, len(batch), sampler.num_instances):
            group = batch[start : start + sampler.num_instances]
            assert len({draw.label for draw in group}) == 1
            yield group[0].label, [draw.index for draw in group]


def test_batch_is_p_identities_by_k_images():
    sampler = batches(batch_size=8, num_instances=4)
    found = list(sampler)
    assert len(found) == len(sampler) == 50
    for batch in found:
        labels = [draw.label for draw in batch]
        assert len(labels) == 8 and len(set(labels)) == 2
        assert labels == sorted(labels, key=labels.index)  # contiguous: SSKD.BN_CHUNK relies on it
        assert [LABELS[draw.index] for draw in batch] == labels


def test_noise_is_never_drawn_and_everything_else_is():
    drawn = {draw.index for batch in batches(num_batches=400) for draw in batch}
    assert drawn == {i for i, label in enumerate(LABELS) if label >= 0}


def test_others_come_from_other_cameras():
    checked = Counter()
    for identity, images in groups(batches(num_batches=300)):
        first, *others = images
        cameras = {CAMERAS[i] for i in others}
        if identity in (0, 1):
            assert CAMERAS[first] not in cameras
        else:  # there is no other camera
            assert cameras == {CAMERAS[first]}
        checked[identity] += 1
    assert set(checked) == {0, 1, 2, 3}


def test_replacement_only_where_there_are_too_few():
    seen_repeats = {0: False, 1: False}
    for identity, images in groups(batches(num_batches=300)):
        first, *others = images
        if identity == 0:
            available = 3 if CAMERAS[first] in "ab" else 4
            assert available >= 3 and len(set(others)) == 3
        elif identity == 1:  # two images under the other camera, three wanted
            assert set(others) <= {i for i in range(5, 9) if CAMERAS[i] != CAMERAS[first]}
            seen_repeats[1] |= len(set(others)) < 3
        elif identity == 2:  # one camera, five images: the other four, without the first
            assert first not in others and len(set(others)) == 3
        else:
            assert images == [14] * 4
    assert seen_repeats == {0: False, 1: True}


def test_one_camera_with_too_few_images_leaves_the_first_out():
    for _, (first, *others) in groups(batches([0, 0, 0], ["a"] * 3, batch_size=4)):
        assert set(others) <= {0, 1, 2} - {first}


# one cluster of two cameras: tracklets 0 (four images) and 1 (two) under "a", 2 (three) under "b"
TRACKLETS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])


def drawn(num_instances, tracklets=TRACKLETS, **options):
    cameras = ["a" if tracklet < 2 else "b" for tracklet in tracklets]
    sampler = IdentityBatches(
        [0] * len(tracklets), cameras, tracklets, batch_size=num_instances, num_instances=num_instances,
        num_batches=60, seed=0,
    )  # fmt: skip
    return [images for _, images in groups(sampler)]


def test_a_cluster_is_drawn_from_all_its_tracklets():
    for images in drawn(2):  # the second of another camera
        assert {TRACKLETS[image] == 2 for image in images} == {False, True}
    for images in drawn(3):
        assert sorted(TRACKLETS[images]) == [0, 1, 2]
    for images in drawn(6):  # everybody twice
        assert sorted(TRACKLETS[images]) == [0, 0, 1, 1, 2, 2] and len(set(images)) == 6
    assert {image for images in drawn(3) for image in images} == set(range(9))


def test_tracklets_of_too_few_images_begin_again():
    for images in drawn(12):
        assert set(images) == set(range(9)) and images[0] not in images[1:]
    assert drawn(4, np.array([0])) == [[0] * 4] * 60


def test_first_image_is_uniform():
    cameras = ["a", "a", "a", "a", "a", "a", "b", "c"]  # uniform over images, not over cameras
    firsts = Counter(
        images[0] for _, images in groups(batches([0] * 8, cameras, batch_size=4, num_batches=4000))
    )
    expected, deviation = 500, (4000 * 1 / 8 * 7 / 8) ** 0.5
    assert set(firsts) == set(range(8))
    assert all(abs(count - expected) < 4 * deviation for count in firsts.values()), firsts


def test_others_are_uniform():
    cameras = ["a", "b", "b", "b", "b", "b"]
    drawn = Counter()
    for _, (first, *others) in groups(batches([0] * 6, cameras, batch_size=4, num_batches=6000)):
        if first == 0:
            drawn.update(others)
    total = sum(drawn.values())
    assert total > 2000
    assert all(abs(count - total / 5) < 5 * (total * 1 / 5 * 4 / 5) ** 0.5 for count in drawn.values()), drawn


def test_permutations_and_the_dropped_rest():
    """5 identities, 2 a batch: two different batches, the fifth is dropped, a new permutation."""
    labels = np.repeat(np.arange(5), 4)
    found = [
        tuple(dict.fromkeys(draw.label for draw in batch))
        for batch in batches(labels, ["a"] * 20, batch_size=8, num_batches=400)
    ]
    dropped = Counter()
    for first, second in zip(found[::2], found[1::2]):
        assert len({*first, *second}) == 4
        dropped.update({0, 1, 2, 3, 4} - {*first, *second})
    assert all(20 < dropped[identity] < 60 for identity in range(5)), dropped  # 200 drops, expected 40 each


def test_identities_exactly_fill_a_batch():
    labels = np.repeat(np.arange(4), 4)
    for batch in batches(labels, ["a"] * 16, batch_size=16):
        assert {draw.label for draw in batch} == {0, 1, 2, 3}


def test_fewer_identities_than_p():
    """3 identities, 4 places: all of them, one twice; never more unevenly than permutations allow."""
    labels = np.repeat(np.arange(3), 4)
    twice = Counter()
    for batch in batches(labels, ["a", "b"] * 6, batch_size=16, num_batches=100):
        places = Counter(draw.label for draw in batch)
        assert sorted(places.values()) == [4, 4, 8]
        twice[max(places, key=places.get)] += 1
    assert set(twice) == {0, 1, 2}


def test_one_identity_and_one_image():
    (batch,) = batches([7, -1], ["a", "b"], num_batches=1)
    assert [(draw.index, draw.label) for draw in batch] == [(0, 7)] * 16
    assert len({draw.seed for draw in batch}) == 16  # the same image, augmented differently


def test_one_instance():
    for _, images in groups(batches(batch_size=4, num_instances=1)):
        assert len(images) == 1


def test_same_seed_same_batches_whatever_the_global_generators():
    sampler = batches()
    np.random.seed(0)
    torch.manual_seed(0)
    first = list(sampler)
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    again = list(sampler)
    assert first == again == list(batches())
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_other_seed_other_batches():
    """What an epoch's seed is for: same labels, other order, other images, other augmentation."""
    one, other = (list(batches(seed=derive_seed(1, epoch))) for epoch in (0, 1))
    assert [d.label for b in one for d in b] != [d.label for b in other for d in b]
    assert {d.seed for b in one for d in b}.isdisjoint(d.seed for b in other for d in b)


def test_every_place_has_its_own_seed():
    seeds = [draw.seed for batch in batches() for draw in batch]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("labels", [np.array(LABELS), torch.tensor(LABELS), tuple(LABELS)])
def test_labels_of_any_kind(labels):
    assert list(batches(labels)) == list(batches())


def test_input_is_not_changed():
    labels, cameras = np.array(LABELS), list(CAMERAS)
    list(batches(labels, cameras))
    assert labels.tolist() == LABELS and cameras == CAMERAS


@pytest.mark.parametrize("batch_size, num_instances", [(10, 4), (2, 4), (0, 4), (8, 0), (8, -1)])
def test_batch_that_cannot_hold_p_by_k(batch_size, num_instances):
    message = (
        f"IMS_PER_BATCH = {batch_size} .*NUM_INSTANCE = {num_instances} .*(multiple of 4|1 image or more)"
    )
    with pytest.raises(ValueError, match=message):
        batches(batch_size=batch_size, num_instances=num_instances)
    with pytest.raises(ValueError, match=message):
        check_batch(batch_size, num_instances)


def test_all_noise():
    with pytest.raises(ValueError, match="all pseudo-labels are noise"):
        batches([-1, -1], ["a", "b"])


def test_labels_and_cameras_of_different_length():
    with pytest.raises(ValueError, match="3 labels for 2 cameras"):
        batches([0, 0, 1], ["a", "b"])


def shuffled(num_images, batch_size=4, num_batches=6, seed=0):
    return ShuffledBatches(num_images, batch_size=batch_size, num_batches=num_batches, seed=seed)


def test_shuffled_batches_are_permutations():
    sampler = shuffled(6)
    found = [draw.index for batch in sampler for draw in batch]
    assert len(list(sampler)) == len(sampler) == 6
    assert [sorted(found[i : i + 6]) for i in range(0, 24, 6)] == [list(range(6))] * 4
    assert found[:6] != found[6:12]


def test_shuffled_batches_have_no_labels_and_own_seeds():
    draws = [draw for batch in shuffled(6) for draw in batch]
    assert {draw.label for draw in draws} == {-1}
    assert len({draw.seed for draw in draws}) == len(draws)


def test_shuffled_batches_of_fewer_images_than_a_batch():
    assert [sorted(draw.index for draw in batch) for batch in shuffled(2)] == [[0, 0, 1, 1]] * 6


def test_shuffled_batches_by_seed():
    assert list(shuffled(6)) == list(shuffled(6))
    assert list(shuffled(6)) != list(shuffled(6, seed=1))


def test_shuffled_batches_of_nothing():
    with pytest.raises(ValueError, match="no images"):
        shuffled(0)


# ---- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [batches(batch_size=8), shuffled(6)], ids=["identities", "shuffled"])
def test_ranks_have_contiguous_shards_of_the_same_batches(sampler, monkeypatch):
    whole = list(sampler)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shards = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shards.append(list(sampler))
    assert [first + second for first, second in zip(*shards)] == whole
    assert all(len(first) == len(second) for first, second in zip(*shards))


@pytest.mark.parametrize(
    "split, message",
    [
        (
            (16, 4, 3),
            "16 images cannot be shared by 3 processes in whole .*NUM_INSTANCE = 4 .*multiple of 12",
        ),
        ((16, 1, 3), "16 images cannot be shared by 3 processes: make it a multiple of 3"),
        ((16, 4, 2, 7), "8 images in chunks of SSKD.BN_CHUNK = 7 ends with a chunk of one image"),
        ((1, 1, 1, 0), "1 images in chunks of SSKD.BN_CHUNK = 1 ends with a chunk of one image"),
    ],
)
def test_batch_that_cannot_be_split(split, message):
    with pytest.raises(ValueError, match=message):
        check_batch(*split)


@pytest.mark.parametrize("split", [(16, 4), (16, 4, 4), (16, 4, 2, 3), (16, 4, 2, 100), (1, 1)])
def test_batch_that_can_be_split(split):
    check_batch(*split)
