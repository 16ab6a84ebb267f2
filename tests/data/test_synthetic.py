"""The synthetic domains: determinism, variety, cameras, and data sets that survive crashes and races."""

import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from own_processes import HANG
from PIL import Image

from fastreid_sskd.data.synthetic import (
    DOMAINS,
    SOURCE,
    TARGET,
    Sizes,
    SyntheticSource,
    SyntheticTarget,
    domains,
    person_of,
    render,
)
from fastreid_sskd.data.synthetic.datasets import DATASET_REGISTRY, DRAWING_VERSION, plan_shots
from fastreid_sskd.data.synthetic.dice import Dice
from fastreid_sskd.data.synthetic.folder_cache import MANIFEST, ensure_folder, is_complete
from fastreid_sskd.data.synthetic.people import PALETTE, PATTERNS, Garment, View, cloth, draw_figure
from fastreid_sskd.data.synthetic.scenes import SCENES, Camera, expose, paint_scene

TINY = Sizes(
    train_people=3,
    train_shots=(1, 2),
    train_strangers=2,
    test_people=2,
    gallery_shots=(1, 1),
    gallery_strangers=3,
    absent=0.3,
)
GOLDEN_UNITS = [0.568718736, 0.228795379, 0.281783605]
GOLDEN_NOISE = [[1.5629228, -0.3653586], [0.27063599, -0.65629226]]
GOLDEN_BLOCKS = {  # (domain, identity, camera, shot): seed 0, 128 x 64, drawing version 1
    ("source", 1, 0, 0): [164, 185, 163, 174, 154, 157, 158, 160],
    ("source", 2, 3, 1): [176, 176, 170, 175, 147, 160, 186, 191],
    ("target", 1, 1, 3): [104, 100, 106, 104, 99, 83, 111, 96],
    ("target", 3, 2, 0): [81, 78, 80, 76, 87, 101, 88, 89],
    ("target", 7, 4, 2): [103, 93, 116, 113, 138, 141, 148, 142],
    ("target", 150, 3, 1): [101, 110, 86, 95, 83, 88, 67, 72],
}
BOTH = pytest.mark.parametrize("domain", [SOURCE, TARGET], ids=["source", "target"])


def pixels(domain, identity=1, camera=0, shot=0, seed=0, size=(128, 64)):
    image = render(domain, seed=seed, identity=identity, camera=camera, shot=shot, size=size)
    return np.asarray(image, dtype=np.float32)


# --- dice


def test_dice_depend_on_the_key_alone():
    alone = Dice(7, "b").unit()
    Dice(7, "a").unit()
    assert Dice(7, "b").unit() == alone
    keys = [(7, "b"), (8, "b"), (7, "c"), (7, "b", 0), ("7", "b"), (7, "b", 1)]
    assert len({Dice(*key).unit() for key in keys}) == 6


def test_dice_are_the_recorded_ones():
    # PCG64's raw stream is fixed by numpy; other numbers here would silently change everybody's data.
    dice = Dice(0, "golden")
    assert [round(dice.unit(), 9) for _ in range(3)] == GOLDEN_UNITS
    assert np.allclose(Dice(0, "golden").noise(2, 2), GOLDEN_NOISE, atol=1e-5)


def test_dice_distributions():
    dice = Dice(1)
    drawn = [dice.choice({"a": 3, "never": 0, "b": 1}) for _ in range(4000)]
    assert set(drawn) == {"a", "b"}
    assert abs(drawn.count("a") / 4000 - 0.75) < 0.03
    assert {dice.below(3) for _ in range(100)} == {0, 1, 2}
    assert sorted(dice.order(6)) == list(range(6))
    noise = dice.noise(101, 99)
    assert noise.shape == (101, 99) and noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03


# --- images


@BOTH
def test_same_image_twice_whatever_was_drawn_before(domain):
    first = render(domain, seed=3, identity=5, camera=1, shot=2).tobytes()
    render(domain, seed=3, identity=6, camera=0, shot=0)
    assert render(domain, seed=3, identity=5, camera=1, shot=2).tobytes() == first


# The drawing needs neither torch nor the host; loading it alone keeps these processes quick.
TWIN = """
import hashlib, logging, os, sys, time, types
from pathlib import Path
package = types.ModuleType("synthetic")
package.__path__ = [sys.argv[1]]
sys.modules["synthetic"] = package
from synthetic.domains import DOMAINS, render
from synthetic.folder_cache import ensure_folder
assert "torch" not in sys.modules and "fastreid" not in sys.modules
logging.basicConfig(level=logging.INFO)
root, me = Path(sys.argv[2]), sys.argv[3]

def fill(folder):
    print("filled")
    (folder / "train").mkdir()
    for shot in range(40):
        image = render(DOMAINS["target"], seed=0, identity=1, camera=1, shot=shot)
        image.save(folder / "train" / f"{shot}.png")

(root / f"ready{me}").touch()
while not (root / f"ready{1 - int(me)}").exists():
    time.sleep(0.01)
print(ensure_folder("set", {"a": 1}, fill, [root / "data"]))
for name in ("target", "source"):
    print(hashlib.sha256(render(DOMAINS[name], seed=3, identity=5, camera=2, shot=1).tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The root, and the output lines of two processes that ask for the same folder at the same time."""
    root = tmp_path_factory.mktemp("twins")
    command = [sys.executable, "-c", TWIN, str(Path(domains.__file__).parent), str(root)]
    processes = [
        subprocess.Popen([*command, me], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for me in "01"
    ]
    results = [process.communicate(timeout=HANG) for process in processes]
    assert all(process.returncode == 0 for process in processes), results
    return root, [out.split() for out, _ in results]


def test_same_image_in_another_process(twins):
    here = [
        render(DOMAINS[name], seed=3, identity=5, camera=2, shot=1).tobytes() for name in ("target", "source")
    ]
    for lines in twins[1]:
        assert lines[-2:] == [hashlib.sha256(image).hexdigest() for image in here]


@pytest.mark.parametrize("key, blocks", GOLDEN_BLOCKS.items())
def test_the_drawings_are_those_of_their_version(key, blocks):
    # Mean grey of 32 x 32 blocks: blind to the last bit of another Pillow, not to another picture.
    domain, identity, camera, shot = key
    grey = pixels(DOMAINS[domain], identity, camera, shot).mean(2).reshape(4, 32, 2, 32).mean((1, 3)).ravel()
    assert DRAWING_VERSION == 1 and np.abs(grey - blocks).max() < 1.5, (
        "the same parameters give other pictures, and folders drawn before would still be used: raise "
        f"DRAWING_VERSION, record {grey.round().tolist()} here and measure the documented tables again"
    )


@BOTH
def test_every_argument_matters(domain):
    base = pixels(domain)
    for change in ({"identity": 2}, {"camera": 1}, {"shot": 1}, {"seed": 1}):
        assert np.abs(base - pixels(domain, **change)).mean() > 3, change


@BOTH
@pytest.mark.parametrize("size", [(128, 64), (64, 32), (256, 128), (50, 31), (16, 8)])
def test_sizes(domain, size):
    image = render(domain, seed=0, identity=1, camera=0, shot=0, size=size)
    assert image.mode == "RGB" and image.size == size[::-1]


@BOTH
def test_people_are_in_the_middle_and_differ_there(domain):
    # Two images of a passage show the same scene: what changes with the person is in the middle columns.
    pairs = [(pixels(domain, identity=i), pixels(domain, identity=i, shot=1)) for i in range(12)]
    within = np.mean([np.abs(a - b).mean((0, 2)) for a, b in pairs], 0)
    between = np.mean([np.abs(a[0] - b[0]).mean((0, 2)) for a, b in itertools.pairwise(pairs)], 0)
    ratio = between / within
    assert ratio[26:38].mean() > 1.5 and ratio[26:38].mean() > ratio[:8].mean()


@BOTH
def test_cameras_differ_in_colour_or_light(domain):
    assert len(domain.cameras) >= 4
    # The mean colour of many people's crops is the camera's scene and light.
    means = np.stack(
        [
            np.mean([pixels(domain, identity=i, camera=c).mean((0, 1)) for i in range(6)], 0)
            for c in range(len(domain.cameras))
        ]
    )
    gaps = np.abs(means[:, None] - means[None]).max(2)[np.triu_indices(len(means), 1)]
    assert gaps.min() > 6


def test_shots_of_one_passage_are_closer_than_other_passages():
    near, far = [], []
    for identity in range(8):
        base = pixels(TARGET, identity=identity, camera=0)
        near.append(np.abs(base - pixels(TARGET, identity=identity, camera=0, shot=1)).mean())
        far.append(np.abs(base - pixels(TARGET, identity=identity, camera=3, shot=1)).mean())
    assert np.mean(near) < 0.8 * np.mean(far)


# --- people


@BOTH
def test_people_vary(domain):
    people = [person_of(domain, seed=0, identity=i) for i in range(300)]
    assert len(set(people)) == 300
    for attribute, least in [("hair_style", 6), ("hat", 3), ("bag", 4), ("hair", 5), ("skin", 5)]:
        assert len({getattr(person, attribute) for person in people}) >= least, attribute
    assert len({person.upper.kind for person in people}) >= 5
    assert len({person.lower.kind for person in people}) >= 4
    assert len({person.upper.pattern for person in people}) >= 5
    for weights in (domain.wardrobe.upper_colours, domain.wardrobe.lower_colours):
        assert len(weights) >= 9
    heights = [person.height for person in people]
    assert min(heights) < 0.9 and max(heights) > 1.05


def test_domains_dress_differently():
    def kinds(domain):
        return [person_of(domain, seed=0, identity=i).upper.kind for i in range(200)]

    warm = ("coat", "jacket", "hoodie", "vest")
    assert np.mean([kind in warm for kind in kinds(SOURCE)]) < 0.1
    assert np.mean([kind in warm for kind in kinds(TARGET)]) > 0.7
    assert person_of(SOURCE, seed=0, identity=1) != person_of(TARGET, seed=0, identity=1)
    assert {camera.scene for camera in SOURCE.cameras}.isdisjoint(camera.scene for camera in TARGET.cameras)


def test_clothes_show_in_the_picture():
    # Redden the coat alone: the crop's middle becomes redder, its edges stay.
    size = (64, 128)
    person = dataclasses.replace(
        person_of(TARGET, seed=0, identity=0),
        upper=Garment("coat", PALETTE["red"], PALETTE["white"], "plain", 0.05),
    )
    for facing in (0, 90, 180, 270):
        figure, mask = draw_figure(person, View(facing, 1.0, 0.8), size=size, centre=32, top=6, unit=116)
        colour = np.asarray(figure)[60, 28:36].reshape(-1, 3)
        inside = np.asarray(mask) > 0
        assert (colour == PALETTE["red"]).all(1).any(), facing
        assert 0.12 < inside.mean() < 0.6
        assert not inside[:4].any() and not inside[:, :3].any(), "the figure is not cut off"


@pytest.mark.parametrize("kind", [*SOURCE.wardrobe.upper_kinds, *TARGET.wardrobe.upper_kinds])
@pytest.mark.parametrize("bag", ["none", "backpack", "shoulder", "hand", "suitcase"])
def test_every_outfit_is_drawn_from_every_side(kind, bag):
    base = person_of(TARGET, seed=0, identity=0)
    masks = set()
    for number, lower in enumerate([*SOURCE.wardrobe.lower_kinds, *TARGET.wardrobe.lower_kinds]):
        styles, hats = ("bald", "short", "medium", "long", "bun", "tail"), ("none", "cap", "beanie", "brim")
        person = dataclasses.replace(
            base, upper=dataclasses.replace(base.upper, kind=kind),
            lower=dataclasses.replace(base.lower, kind=lower),
            bag=bag, hair_style=styles[number % 6], hat=hats[number % 4],
        )  # fmt: skip
        figure, mask = draw_figure(
            person, View(45 * number, 0.7, 1.0), size=(64, 128), centre=32, top=6, unit=116
        )
        assert figure.size == (64, 128)
        masks.add(mask.tobytes())
    assert len(masks) == 8


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern):
    garment = Garment("shirt", (200, 10, 10), (10, 10, 200), pattern, 0.06)
    image = np.asarray(cloth(garment, size=(64, 128), centre=32.0, top=6.0, unit=116.0))
    second = (image == (10, 10, 200)).all(2)
    assert ((image == (200, 10, 10)).all(2) | second).all()
    assert second.any() == (pattern not in ("plain", "logo"))
    assert not second.all()


def picture(camera, size=(32, 16)):
    return render(SOURCE, seed=0, identity=1, camera=camera, shot=0, size=size)


PAISLEY = Garment("shirt", (0, 0, 0), (1, 1, 1), "paisley", 0.05)


@pytest.mark.parametrize("draw, message", [
    (lambda: picture(0, (15, 8)), "16 x 8 pixels or more, got 15 x 8"),
    (lambda: picture(4), r"camera must be in 0\.\.3 for the source, got 4"),
    (lambda: picture(-1), "camera must be"),
    (lambda: cloth(PAISLEY, size=(4, 4), centre=2, top=0, unit=4), "pattern 'paisley'"),
    (lambda: paint_scene("moon", width=64, height=64, dice=Dice(0)), "scene 'moon'"),
    (lambda: plan_shots(TINY, domain="target", cameras=1, seed=0), "2 cameras or more, got 1"),
])  # fmt: skip
def test_what_cannot_be_drawn(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("kind", SCENES)
def test_scenes_have_structure(kind):
    image = np.asarray(paint_scene(kind, width=512, height=144, dice=Dice(0, kind)), dtype=np.float32)
    assert image.shape == (144, 512, 3)
    assert image.std((0, 1)).min() > 8


# --- cameras


def shot_of_grey(value=128, seed=0, size=(64, 128), **camera):
    plain = {"exposure": 0.0, "shadow": 0.0, "blur": (0, 0), "detail": (1, 1), "noise": 0.0}
    image = Image.new("RGB", size, (value, value, value))
    return np.asarray(expose(image, Camera("plaza", **{**plain, **camera}), Dice(seed)), dtype=np.float32)


def test_a_neutral_camera_changes_nothing():
    assert (shot_of_grey(77) == 77).all()
    image = render(SOURCE, seed=0, identity=1, camera=0, shot=0)
    neutral = Camera("plaza", exposure=0.0, shadow=0.0, blur=(0, 0), detail=(1, 1), noise=0.0)
    assert expose(image, neutral, Dice(0)).tobytes() == image.tobytes()


def test_camera_effects_by_hand():
    assert shot_of_grey(100, gain=(1.2, 1.0, 0.5))[0, 0].tolist() == [120, 100, 50]
    assert shot_of_grey(128, gamma=2.0)[0, 0].tolist() == [64, 64, 64]  # 255 (128 / 255)^2 = 64.3
    # 255 (0.5 + 0.5 (0.2 - 0.5)) = 89.25
    assert shot_of_grey(51, contrast=0.5)[0, 0].tolist() == [89, 89, 89]
    assert shot_of_grey(0, haze=0.2)[0, 0].tolist() == [51, 51, 51]
    assert shot_of_grey(250, gain=(2.0, 2.0, 2.0)).max() == 255
    assert abs(shot_of_grey(128, noise=8.0).std() - 8) < 0.5
    shaded = shot_of_grey(128, shadow=1.0)
    assert shaded.max() == 128 and shaded.min() < 100
    levels = {float(shot_of_grey(128, exposure=0.2, seed=seed).max()) for seed in range(20)}
    assert len(levels) > 10 and min(levels) >= 102 and max(levels) <= 154


def test_saturation_zero_is_grey():
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    camera = Camera("plaza", saturation=0.0, exposure=0.0, shadow=0.0, blur=(0, 0), detail=(1, 1), noise=0.0)
    assert len(set(np.asarray(expose(image, camera, Dice(0)))[0, 0].tolist())) == 1


@pytest.mark.parametrize("effect", [{"blur": (1.0, 1.0)}, {"detail": (0.4, 0.4)}, {"block": 60.0}])
def test_degradations_remove_detail_and_keep_the_mean(effect):
    neutral = {"exposure": 0.0, "shadow": 0.0, "blur": (0, 0), "detail": (1, 1), "noise": 0.0}
    sharp = render(SOURCE, seed=0, identity=1, camera=0, shot=0, size=(126, 62))
    taken = np.asarray(expose(sharp, Camera("plaza", **{**neutral, **effect}), Dice(0)), dtype=np.float32)
    sharp = np.asarray(sharp, dtype=np.float32)
    assert np.abs(np.diff(taken, axis=1)).mean() < 0.9 * np.abs(np.diff(sharp, axis=1)).mean()
    assert np.abs(taken.mean((0, 1)) - sharp.mean((0, 1))).max() < 3


# --- layout


def test_people_of_the_splits_are_disjoint():
    shots = plan_shots(TINY, domain="target", cameras=5, seed=0)
    train = {shot.identity for shot in shots if shot.split == "train"}
    test = {shot.identity for shot in shots if shot.split != "train"}
    assert train == set(range(1, 6)) and test == set(range(6, 11))
    assert len({shot[1:4] for shot in shots}) == len(shots), "no image twice"


@pytest.mark.parametrize("data_set", [SyntheticSource, SyntheticTarget])
def test_default_layout_is_a_re_id_protocol(data_set):
    cameras = len(data_set.domain.cameras)
    shots = plan_shots(data_set.sizes, domain=data_set.domain.name, cameras=cameras, seed=0)
    query = [shot for shot in shots if shot.split == "query"]
    gallery = [shot for shot in shots if shot.split == "gallery"]
    assert len({(shot.identity, shot.camera) for shot in query}) == len(query), (
        "one query for each person and camera"
    )
    for shot in query:
        assert any(other.identity == shot.identity and other.camera != shot.camera for other in gallery)
    assert not any(shot.stranger for shot in query)
    strangers = [shot for shot in gallery if shot.stranger]
    assert len({shot.identity for shot in strangers}) == len(strangers) == data_set.sizes.gallery_strangers
    train = [shot for shot in shots if shot.split == "train"]
    assert 1400 <= len(train) <= 1900
    assert len({shot.camera for shot in train}) == cameras


def test_target_is_uneven():
    shots = [
        s for s in plan_shots(SyntheticTarget.sizes, domain="target", cameras=5, seed=0) if s.split == "train"
    ]
    people = [s for s in shots if not s.stranger]
    images = {i: sum(s.identity == i for s in people) for i in {s.identity for s in people}}
    seen = {i: len({s.camera for s in people if s.identity == i}) for i in images}
    assert min(images.values()) < 0.6 * np.mean(list(images.values()))
    assert min(seen.values()) >= 2 and max(seen.values()) == 5
    assert 0.05 < np.mean([count < 5 for count in seen.values()]) < 0.9


def test_layout_is_sorted_and_depends_on_the_seed():
    plan = plan_shots(TINY, domain="target", cameras=4, seed=0)
    assert plan == plan_shots(TINY, domain="target", cameras=4, seed=0)
    assert plan != plan_shots(TINY, domain="target", cameras=4, seed=1)
    assert [s.split for s in plan] == sorted((s.split for s in plan), key=["train", "query", "gallery"].index)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_people": 1}, "need 2 people"),
        ({"test_people": 0}, "need 2 people"),
        ({"train_shots": (0, 2)}, "train_shots"),
        ({"gallery_shots": (3, 2)}, "gallery_shots"),
        ({"absent": 1.0}, "absent"),
        ({"gallery_strangers": -1}, "strangers"),
    ],
)
def test_impossible_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


# --- data sets


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return SyntheticTarget(root=str(tmp_path_factory.mktemp("data")), sizes=TINY, image_size=(32, 16))


def test_registered_once():
    assert DATASET_REGISTRY.get("SyntheticSource") is SyntheticSource
    assert DATASET_REGISTRY.get("SyntheticTarget") is SyntheticTarget
    with pytest.raises(AssertionError, match="already registered"):
        DATASET_REGISTRY.register(SyntheticSource)


def test_items_are_the_host_s(tiny):
    for path, identity, camera in tiny.train:
        assert Path(path).is_file()
        assert identity.startswith("synthetic_target_") and camera.startswith("synthetic_target_")
    for _, identity, camera in tiny.query + tiny.gallery:
        assert type(identity) is int and type(camera) is int
        assert 0 <= camera < 5
    assert 0 in {item[1] for item in tiny.gallery} and 0 not in {item[1] for item in tiny.query}
    trained = {int(item[1].rsplit("_", 1)[1]) for item in tiny.train}
    assert trained.isdisjoint(item[1] for item in tiny.query + tiny.gallery)
    for items in (tiny.train, tiny.query, tiny.gallery):
        paths = [item[0] for item in items]
        assert paths == sorted(paths) and len(set(paths)) == len(paths)
    tiny.show_train()
    tiny.show_test()


def test_combining_all_leaves_strangers_out(tiny):
    both = SyntheticTarget(
        root=str(Path(tiny.dataset_dir).parent), sizes=TINY, image_size=(32, 16), combineall=True
    )
    strangers = [item for item in tiny.gallery if item[1] == 0]
    assert len(both.train) == len(tiny.train) + len(tiny.query) + len(tiny.gallery) - len(strangers)


def test_files_hold_the_drawn_images(tiny):
    from fastreid.data.data_utils import read_image  # only after the package has mended the host

    path, identity, camera = tiny.query[0]
    expected = render(TARGET, seed=0, identity=identity, camera=camera, shot=0, size=(32, 16))
    assert read_image(path, format="RGB").tobytes() == expected.tobytes()


def test_manifest_says_what_made_the_folder(tiny):
    folder = Path(tiny.dataset_dir)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["description"]["seed"] == 0
    assert manifest["description"]["sizes"]["train_people"] == 3
    assert manifest["description"]["domain"]["cameras"][0]["scene"] == TARGET.cameras[0].scene
    images = tiny.train + tiny.query + tiny.gallery
    assert sorted(str(folder / name) for name in manifest["files"]) == sorted(item[0] for item in images)
    assert folder.name.startswith("sskd-synthetic-v1-target-")


def test_a_complete_folder_is_used_again(tiny, monkeypatch):
    monkeypatch.setattr(SyntheticTarget, "_draw", lambda *_: pytest.fail("drawn twice"))
    again = SyntheticTarget(root=str(Path(tiny.dataset_dir).parent), sizes=TINY, image_size=(32, 16))
    assert again.train == tiny.train and again.gallery == tiny.gallery


def test_other_parameters_are_other_folders(tiny, tmp_path):
    folders = {Path(tiny.dataset_dir).name}
    for change in (
        {"seed": 1},
        {"image_size": (16, 8)},
        {"sizes": dataclasses.replace(TINY, train_people=4)},
    ):
        settings = {"sizes": TINY, "image_size": (32, 16), **change}
        folders.add(Path(SyntheticTarget(root=str(tmp_path), **settings).dataset_dir).name)
    folders.add(Path(SyntheticSource(root=str(tmp_path), sizes=TINY, image_size=(32, 16)).dataset_dir).name)
    assert len(folders) == 5


@pytest.mark.parametrize(
    "damage", ["image missing", "image cut", "manifest missing", "manifest cut", "other contents"]
)
def test_torn_folders_are_rebuilt(tmp_path, damage):
    first = SyntheticSource(root=str(tmp_path), sizes=TINY, image_size=(16, 8))
    victim, manifest = Path(first.train[0][0]), Path(first.dataset_dir) / MANIFEST
    whole = victim.read_bytes()
    if damage == "image missing":
        victim.unlink()
    elif damage == "image cut":
        victim.write_bytes(whole[:20])
    elif damage == "manifest missing":
        manifest.unlink()
    elif damage == "manifest cut":
        manifest.write_text(manifest.read_text()[:200])
    else:
        manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 5'))
    again = SyntheticSource(root=str(tmp_path), sizes=TINY, image_size=(16, 8))
    assert victim.read_bytes() == whole
    assert is_complete(Path(again.dataset_dir), again.description())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [Path(again.dataset_dir).name]


def test_a_crash_while_drawing_leaves_nothing(tmp_path):
    def crash(folder: Path) -> None:
        (folder / "train").mkdir()
        (folder / "train" / "half.png").write_bytes(b"x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        ensure_folder("set", {"a": 1}, crash, [tmp_path])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    stale, stranger = tmp_path / ".set.0123.partial", tmp_path / ".other.0123.partial"
    stale.mkdir()
    stranger.mkdir()
    ensure_folder("set", {"a": 1}, lambda folder: (folder / "train").mkdir(), [tmp_path])
    assert not stale.exists() and stranger.exists() and (tmp_path / "set").is_dir()


def test_two_processes_at_once_draw_once(twins):
    root, results = twins
    assert [lines[-3] for lines in results] == [str(root / "data" / "set")] * 2
    assert sum("filled" in lines for lines in results) == 1
    assert is_complete(root / "data" / "set", {"a": 1})
    assert [path.name for path in (root / "data").iterdir() if path.is_dir()] == ["set"]


def test_without_locks_the_second_copy_is_thrown_away(tmp_path, monkeypatch):
    def no_lock(self, timeout=None):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fastreid_sskd.data.synthetic.folder_cache.FileLock.acquire", no_lock)

    def fill(folder: Path) -> None:
        (folder / "train").mkdir()
        (folder / "train" / "a").write_text("mine")
        other = tmp_path / "set"
        (other / "train").mkdir(parents=True)
        (other / "train" / "a").write_text("hers")
        (other / MANIFEST).write_text(json.dumps({"description": {"a": 1}, "files": {"train/a": 4}}))

    assert (ensure_folder("set", {"a": 1}, fill, [tmp_path]) / "train" / "a").read_text() == "hers"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["set"]


def test_falls_back_where_the_root_cannot_be_written(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING, logger="fastreid.sskd.data"):
        data = SyntheticSource(root=str(blocked / "datasets"), sizes=TINY, image_size=(16, 8))
    assert Path(data.dataset_dir).parent == tmp_path / "cache" / "fastreid-sskd"
    assert "cache" in caplog.text and str(blocked) in caplog.text


def test_no_folder_at_all(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(blocked))
    with pytest.raises(OSError, match="set FASTREID_DATASETS"):
        SyntheticSource(root=str(blocked), sizes=TINY, image_size=(16, 8))


@pytest.mark.skipif(not hasattr(os, "umask"), reason="needs a umask")
def test_others_may_read_the_folder(tmp_path):
    before = os.umask(0o022)
    try:
        folder = ensure_folder("set", {}, lambda folder: (folder / "train").mkdir(), [tmp_path])
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o055 == 0o055
