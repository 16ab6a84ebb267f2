"""The same-person threshold: counted against a slow loop, and its false-match rate against the truth."""

import numpy as np
import pytest
from tiny_reid import CONFIGS, MARKET, write_data_set

import fastreid_sskd.answers.threshold as module
from fastreid_sskd.answers import PairCounts, estimate_threshold, exported_threshold
from fastreid_sskd.data.items import unseen_items
from fastreid_sskd.engine import load_config


def people(count=60, images=8, spread=0.9, seed=0, cameras=2):
    """Features of images of people who look alike in part, their names and cameras."""
    random = np.random.default_rng(seed)
    who = np.repeat(np.arange(count), images)
    features = random.normal(size=(count, 24))[who] + spread * random.normal(size=(len(who), 24))
    return features.astype(np.float32), who, np.arange(len(who)) % cameras


@pytest.mark.parametrize("cameras", [None, [0] * 30, list("abc") * 10])
def test_counts_are_those_of_a_slow_loop(cameras):
    features, who, _ = people(5, 6)
    before = features.copy()
    counts = PairCounts.of(features, who, cameras)
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    known = cameras is not None and len(set(cameras)) > 1
    slow = [
        unit[i] @ unit[j]
        for i in range(30)
        for j in range(i)
        if who[i] != who[j] and not (known and cameras[i] == cameras[j])
    ]
    assert counts.pairs == len(slow) and counts.across_cameras == known
    for threshold in (-1, 0.1234, 0.4, 1):
        assert counts.rate(threshold) == pytest.approx(
            np.mean(np.array(slow) >= threshold), abs=1.5 / len(slow)
        )
    found = counts.similarity(0.1)
    assert np.mean(np.array(slow) >= found) <= 0.1 < np.mean(np.array(slow) >= found - 0.03)
    assert np.array_equal(features, before)


def test_names_of_another_number_of_images():
    features, who, _ = people()
    with pytest.raises(ValueError, match="one for each of 480 images"):
        PairCounts.of(features, who[:5])


def test_of_many_images_some_rows_stand_for_all(monkeypatch):
    features, who, cameras = people()
    whole = PairCounts.of(features, who, cameras)
    monkeypatch.setattr(module, "MOST_PAIRS", 100 * len(features))
    some = PairCounts.of(features, who, cameras)
    assert some.pairs < whole.pairs
    assert some.similarity(0.01) == pytest.approx(whole.similarity(0.01), abs=0.05)


@pytest.mark.parametrize("spread", [0.7, 0.9])
@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_the_rate_is_within_a_factor_of_two(spread, rate):
    features, who, cameras = people(100, spread=spread)
    threshold = estimate_threshold(features, rate, cameras)
    true = PairCounts.of(features, who, cameras)
    assert rate / 2 <= true.rate(threshold.similarity) <= rate * 2
    assert threshold.lowest <= threshold.similarity <= threshold.highest and threshold.across_cameras
    assert f"false-match rate {rate:g} of pairs across cameras" in str(threshold)


@pytest.mark.parametrize(
    "rate, changed, message",
    [
        (0.0, {}, r"lies in \(0, 1\)"),
        (float("nan"), {}, r"lies in \(0, 1\)"),
        (1e-7, {}, "needs 100,000,000 pairs of different people"),
        (0.1, {"features": np.ones((480, 4)), "cameras": None}, "form 1 clusters"),
        (0.1, {"cameras": [0, 1]}, "got 2 for 480 images"),
        (0.1, {"features": np.full((480, 4), np.nan)}, "not finite"),
    ],
)
def test_what_cannot_be_estimated_is_refused(rate, changed, message):
    features, _, cameras = people()
    with pytest.raises(ValueError, match=message):
        estimate_threshold(**{"features": features, "cameras": cameras, **changed}, false_match_rate=rate)


def test_the_exported_network_is_asked_as_it_is_exported(monkeypatch):
    features, _, cameras = people()
    items = [(f"{i}.png", None, camera) for i, camera in enumerate(cameras)]
    asked = []
    monkeypatch.setattr(module, "unseen_items", lambda cfg: items)
    monkeypatch.setattr(
        module, "image_features", lambda *args, **kwargs: asked.append((args, kwargs)) or features
    )
    cfg = load_config(str(CONFIGS / "sskd_d2m.yml"))
    threshold = exported_threshold(cfg, "model", "ensemble", 0.01)
    assert asked == [((cfg, "model", [item[0] for item in items], "ensemble"), {"flip": False})]
    assert threshold == estimate_threshold(features, 0.01, cameras)


def test_unseen_images_are_the_test_set_or_else_the_target(tmp_path, monkeypatch, caplog):
    write_data_set(tmp_path / MARKET, seed=1)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    cfg = load_config(str(CONFIGS / "sskd_d2m.yml"))
    folders = {path.rsplit("/", 2)[-2] for path, _, _ in unseen_items(cfg)}
    assert folders == {"query", "bounding_box_test"} and not caplog.records
    cfg.DATASETS.TESTS = ()
    assert {path.rsplit("/", 2)[-2] for path, _, _ in unseen_items(cfg)} == {"bounding_box_train"}
    assert "no test set" in caplog.text
