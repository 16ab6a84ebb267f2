"""What is written in a file or on a command line becomes what the key takes, or is refused."""

import numpy as np
import pytest
import yaml
from fastreid.config import get_cfg
from tiny_reid import CONFIGS

from fastreid_sskd import add_sskd_config
from fastreid_sskd.benchmark import load_grid
from fastreid_sskd.engine import load_config
from fastreid_sskd.refusals import UnknownNameError


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def as_yaml(key, text):
    *sections, leaf = key.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    return "\n".join([*lines, f"{'  ' * len(sections)}{leaf}: {text}"]) + "\n"


# a key, what is written, and what it becomes; in a file as on a command line
WRITTEN = [
    ("SSKD.CLUSTER.PAIRS_PER_IMAGE", "8", 8.0),
    ("SOLVER.BASE_LR", "1e-3", 1e-3),  # text in YAML 1.1
    ("SOLVER.BASE_LR", "3.5e-4", 3.5e-4),
    ("SOLVER.BASE_LR", "1", 1.0),
    ("SOLVER.MAX_EPOCH", "3", 3),
    ("SOLVER.MAX_EPOCH", "1e2", 100),
    ("SOLVER.MAX_EPOCH", "3.0", 3),
    ("SOLVER.AMP.ENABLED", "True", True),
    ("SOLVER.AMP.ENABLED", "true", True),
    ("SOLVER.AMP.ENABLED", "yes", True),
    ("SOLVER.AMP.ENABLED", "off", False),
    ("OUTPUT_DIR", "2024_05_01", "2024_05_01"),  # a number in YAML and in Python
    ("OUTPUT_DIR", "20240501", "20240501"),
    ("OUTPUT_DIR", "2024-05-01", "2024-05-01"),  # a date in YAML
    ("OUTPUT_DIR", "0123", "0123"),
    ("OUTPUT_DIR", "'1.0'", "1.0"),
    ("OUTPUT_DIR", "no", "no"),
    ("MODEL.WEIGHTS", "123", "123"),
    ("MODEL.WEIGHTS", "null", ""),
    ("MODEL.WEIGHTS", "", ""),
    ("MODEL.BACKBONE.DEPTH", "50", "50"),
    ("SSKD.EVAL_WITH", "1", "1"),
    ("SSKD.FOLDERS.CropFolder.CAMERA", r"([0-9])_", r"([0-9])_"),
    ("SSKD.FOLDERS.CropFolder.CAMERA", "^([^/]+)/", "^([^/]+)/"),
    ("DATASETS.NAMES", "DukeMTMC", ("DukeMTMC",)),
    ("DATASETS.NAMES", "('DukeMTMC')", ("DukeMTMC",)),
    ("DATASETS.NAMES", "('DukeMTMC',)", ("DukeMTMC",)),
    ("DATASETS.NAMES", "[DukeMTMC, Market1501]", ("DukeMTMC", "Market1501")),
    ("DATASETS.NAMES", "DukeMTMC, Market1501", ("DukeMTMC", "Market1501")),
    ("DATASETS.TESTS", "()", ()),
    ("DATASETS.TESTS", "[]", ()),
    ("SOLVER.STEPS", "30", [30]),
    ("SOLVER.STEPS", "(30, 5e1)", [30, 50]),
    ("SSKD.SOURCE.WEIGHTS", "a.pth", ["a.pth"]),
    ("SSKD.SOURCE.WEIGHTS", "[/runs/a-1.pth, 2024_05]", ["/runs/a-1.pth", "2024_05"]),
    ("SSKD.SOURCE.WEIGHTS", "['a, b.pth', 'c.pth']", ["a, b.pth", "c.pth"]),
    ("MODEL.PIXEL_MEAN", "[0, 0.5, 1]", [0.0, 0.5, 1.0]),
    ("SSKD.ERASING.AREA", "[0, 1]", (0.0, 1.0)),
]


@pytest.mark.parametrize("key, written, expected", WRITTEN, ids=lambda part: str(part))
def test_written(tmp_path, key, written, expected):
    path = tmp_path / "own.yml"
    path.write_text(as_yaml(key, written))
    for cfg in (load_config("", [key, written]), load_config(str(path))):
        found = value(cfg, key)
        assert found == expected and type(found) is type(expected)
        if isinstance(found, (list, tuple)):
            assert [type(element) for element in found] == [type(element) for element in expected]


@pytest.mark.parametrize("key, written, expected", WRITTEN, ids=lambda part: str(part))
def test_a_config_that_a_run_has_written_says_the_same(tmp_path, key, written, expected):
    cfg = load_config("", [key, written])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_config(str(tmp_path / "config.yaml")) == cfg


@pytest.mark.parametrize(
    "key, given, expected",
    [("SEED", np.int64(3), 3), ("SOLVER.BASE_LR", 1, 1.0), ("OUTPUT_DIR", 2024, "2024"),
     ("SOLVER.STEPS", (1, 2), [1, 2]),
     ("DATASETS.NAMES", ["A"], ("A",)), ("MODEL.WEIGHTS", None, ""), ("SOLVER.AMP.ENABLED", True, True)],
)  # fmt: skip
def test_values_of_python(key, given, expected):
    found = value(load_config("", [key, given]), key)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "key, written, rule",
    [
        ("SOLVER.MAX_EPOCH", "2.5", "a whole number"),
        ("SOLVER.MAX_EPOCH", "True", "a whole number"),
        ("SOLVER.MAX_EPOCH", "[3]", "a whole number"),
        ("SOLVER.MAX_EPOCH", "", "a whole number"),
        ("SOLVER.BASE_LR", "True", "a number"),
        ("SOLVER.BASE_LR", "nan", "a number"),
        ("SOLVER.BASE_LR", "inf", "a number"),
        ("SOLVER.BASE_LR", "fast", "a number"),
        ("SOLVER.AMP.ENABLED", "1", "True or False"),
        ("SOLVER.AMP.ENABLED", "float16", "True or False"),
        ("MODEL.WEIGHTS", "['a.pth']", "text"),
        ("SOLVER.STEPS", "[30, soon]", "a list, each a whole number"),
        ("SOLVER.STEPS", "[30.5]", "a list, each a whole number"),
        ("SOLVER.STEPS", "[True]", "a list, each a whole number"),
        ("INPUT.SIZE_TRAIN", "256x128", "a list, each a whole number"),
    ],
)
def test_refused(tmp_path, key, written, rule):
    with pytest.raises(ValueError, match=f"^{key} takes {rule}, and its default is .*; got ") as raised:
        load_config("", [key, written])
    assert raised.value.exit_status == 2
    path = tmp_path / "own.yml"
    path.write_text(as_yaml(key, written))
    with pytest.raises(ValueError, match=f"own.yml': {key} takes {rule}"):
        load_config(str(path))


def test_a_truth_value_of_python_is_no_number():
    for key in ("SOLVER.MAX_EPOCH", "SOLVER.BASE_LR"):
        with pytest.raises(ValueError, match=f"{key} takes a"):
            load_config("", [key, True])


@pytest.mark.parametrize(
    "text, error, said",
    [
        ("", ValueError, "is empty"),
        ("# nothing yet\n", ValueError, "is empty"),
        ("- SEED\n", ValueError, "has no keys"),
        ("SEED\n", ValueError, "has no keys"),
        ("SEED: 1\nMODEL: {\n", ValueError, "is no YAML, line 3"),
        (
            "SOLVER: {MAX_EPOCH: 1}\nSOLVER: {BASE_LR: 1}\n",
            ValueError,
            "line 2: the key SOLVER is there twice",
        ),
        ("_BASE_: own.yml\n", ValueError, "leads back to it"),
        ("_BASE_:\nSEED: 1\n", ValueError, "own.yml': _BASE_ takes the path of one file; got ''"),
        ("_BASE_: [a.yml, b.yml]\n", ValueError, "own.yml': _BASE_ takes the path of one file"),
        ("_BASE_: other.yml\n", FileNotFoundError, "other.yml' not found .the _BASE_ of .*own.yml"),
        ("MODEL: 3\n", ValueError, "own.yml': MODEL is a section, not a value: it has DEVICE, "),
        ("SEED: {A: 3}\n", ValueError, "own.yml': SEED is a value, not a section"),
        ("solver: {max_epohc: 3}\n", UnknownNameError, "own.yml': there is no key solver"),
        (
            "SOLVER: {MAX_EPOHC: 3}\n",
            UnknownNameError,
            "no key SOLVER.MAX_EPOHC; the nearest that there is: SOLVER.MAX_EPOCH",
        ),
        (
            "SSKD: {FOLDERS: {Mine: {TRIAN: a}}}\n",
            UnknownNameError,
            "nearest that there is: SSKD.FOLDERS.Mine.TRAIN",
        ),
    ],
)
def test_files_that_are_no_config(tmp_path, text, error, said):
    path = tmp_path / "own.yml"
    path.write_text(text)
    with pytest.raises(error, match=said) as raised:
        load_config(str(path))
    assert raised.value.exit_status == 2 and "\n" not in str(raised.value)


def test_a_checkpoint_or_a_folder_as_a_config(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04\x00\x00\x08\x08\x80\xff")
    with pytest.raises(
        ValueError, match=r"model\.pth' is no text: a config is YAML, and weights are given by MODEL\.WEIGHTS"
    ):
        load_config(str(tmp_path / "model.pth"))
    (tmp_path / "control.yml").write_bytes(b"SEED: \x00\x01\n")  # text in every byte, and no YAML
    with pytest.raises(ValueError, match="is no text"):
        load_config(str(tmp_path / "control.yml"))
    with pytest.raises(FileNotFoundError, match="is a folder: name a file in it"):
        load_config(str(tmp_path))


def test_sections_without_keys_and_byte_order_marks(tmp_path):
    (tmp_path / "own.yml").write_bytes(
        b"\xef\xbb\xbfMODEL:\nSOLVER:\n  MAX_EPOCH: 7\nSSKD: {CLUSTER: null}\n"
    )
    assert load_config(str(tmp_path / "own.yml")).SOLVER.MAX_EPOCH == 7


def test_a_key_of_an_earlier_version_is_named_and_changes_nothing(tmp_path, caplog):
    path = tmp_path / "config.yaml"
    path.write_text("SSKD:\n  AUGMENT_ON: device\n  NUM_PEERS: 5\n")
    cfg = load_config(str(path), ["SSKD.AUGMENT_ON", "worker"])
    assert cfg.SSKD.NUM_PEERS == 5 and "AUGMENT_ON" not in cfg.SSKD
    assert (
        caplog.text.count(
            "SSKD.AUGMENT_ON has no effect any more: views are always made by the loader's workers"
        )
        == 2
    )


def test_a_base_in_another_folder(tmp_path):
    """A file's own values go first; what a base names is beside the base."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yml").write_text(
        "SSKD: {SOURCE: {CONFIG: source.yml}, PEERS: [a.yml, b.yml]}\nSOLVER: {STEPS: [1, 2], MAX_EPOCH: 5}\n"
    )
    (tmp_path / "deep" / "own.yml").write_text("_BASE_: ../base.yml\nSOLVER: {STEPS: [9]}\n")
    cfg = load_config(str(tmp_path / "deep" / "own.yml"))
    assert cfg.SOLVER.STEPS == [9] and cfg.SOLVER.MAX_EPOCH == 5
    assert cfg.SSKD.SOURCE.CONFIG == str(tmp_path / "source.yml")
    assert cfg.SSKD.PEERS == [str(tmp_path / "a.yml"), str(tmp_path / "b.yml")] and cfg.SSKD.NUM_PEERS == 2


def test_a_list_that_a_base_has_emptied_keeps_the_type_of_its_elements(tmp_path):
    """Numbers of the host, text of ours; and a message tells the default, not what the base says."""
    (tmp_path / "own.yml").write_text("SOLVER: {STEPS: []}\nMODEL: {PIXEL_MEAN: []}\nDATASETS: {NAMES: ()}\n")
    opts = ["SOLVER.STEPS", "[1]", "MODEL.PIXEL_MEAN", "[1, 2, 3]", "DATASETS.NAMES", "2024"]
    cfg = load_config(str(tmp_path / "own.yml"), ["SOLVER.STEPS", "[]", *opts])
    assert (cfg.SOLVER.STEPS, cfg.MODEL.PIXEL_MEAN, cfg.DATASETS.NAMES) == ([1], [1.0, 2.0, 3.0], ("2024",))
    with pytest.raises(
        ValueError, match=r"SOLVER.STEPS takes a list, each a whole number, and its default is \[30, 55\]"
    ):
        load_config(str(tmp_path / "own.yml"), ["SOLVER.STEPS", "[soon]"])


def test_anchors_and_dotted_keys(tmp_path):
    (tmp_path / "own.yml").write_text(
        "SOLVER: &rates {BASE_LR: 0.5}\nSSKD.CLUSTER.EPS: 0.25\nINPUT.FLIP: {PROB: 1}\n"
    )
    cfg = load_config(str(tmp_path / "own.yml"))
    assert (cfg.SOLVER.BASE_LR, cfg.SSKD.CLUSTER.EPS, cfg.INPUT.FLIP.PROB) == (0.5, 0.25, 1.0)


def test_a_users_folder_of_crops(tmp_path):
    """By a file, then by overrides.

    What is not given stays absent, as in the configs of earlier checkpoints.
    """
    (tmp_path / "own.yml").write_text("SSKD: {FOLDERS: {Mine: {TRAIN: 2024_05}}}\n")
    cfg = load_config(
        str(tmp_path / "own.yml"), ["SSKD.FOLDERS.Mine.IDENTITY", r"(\d+)", "SSKD.FOLDERS.Other.TRAIN", "7"]
    )
    assert dict(cfg.SSKD.FOLDERS.Mine) == {"TRAIN": "2024_05", "IDENTITY": r"(\d+)"}
    assert dict(cfg.SSKD.FOLDERS.Other) == {"TRAIN": "7"}
    assert set(cfg.SSKD.FOLDERS.CropFolder.values()) == {""}


@pytest.mark.parametrize(
    "opts, said",
    [
        (["runs/a/model_final.pth"], "'runs/a/model_final.pth' stands where a key .* --resume takes no file"),
        (["runs/a/model_final.pth", "SEED", "1"], "stands where a key .* --resume takes no file"),
        (["SSKD.CLUSTER.EPS"], "these are of odd length: SSKD.CLUSTER.EPS"),
    ],
)
def test_overrides_that_are_no_pairs(opts, said):
    with pytest.raises(ValueError, match=said):
        load_config("", opts)


def test_overrides_of_stage_1_are_read_alike():
    cfg = load_config(
        "", ["SSKD.SOURCE.OPTS", "['SOLVER.STEPS', [30, 55], 'DATASETS.TESTS', (), 'SOLVER.BASE_LR', 1e-3]"]
    )
    source = load_config("", cfg.SSKD.SOURCE.OPTS)
    assert (source.SOLVER.STEPS, source.DATASETS.TESTS, source.SOLVER.BASE_LR) == ([30, 55], (), 1e-3)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yml")))
def test_shipped_files_say_what_the_hosts_reader_takes_them_to_say(name):
    """But for paths, which become absolute, and the period of an evaluation of nothing."""
    theirs, ours = get_cfg(), load_config(str(CONFIGS / name))
    add_sskd_config(theirs)
    theirs.merge_from_file(str(CONFIGS / name))
    theirs, ours = (yaml.safe_load(cfg.dump()) for cfg in (theirs, ours))
    for cfg in (theirs, ours):
        cfg["SSKD"]["SOURCE"]["CONFIG"] = cfg["SSKD"]["PEERS"] = cfg["TEST"]["EVAL_PERIOD"] = cfg["SSKD"][
            "NUM_PEERS"
        ] = None
    assert ours == theirs


# ---- configs by name -----------------------------------------------------------------------------


def test_names_of_shipped_configs(tmp_path, monkeypatch):
    """From any folder, as a _BASE_ and in a key too; a file goes before a name."""
    monkeypatch.chdir(tmp_path)
    assert load_config("peers/r50.yml") == load_config(str(CONFIGS / "peers" / "r50.yml"))
    (tmp_path / "own.yml").write_text("_BASE_: sskd_d2m.yml\nSSKD: {SOURCE: {CONFIG: source_m2d.yml}}\n")
    source = str(CONFIGS / "source_m2d.yml")
    assert load_config("own.yml").SSKD.SOURCE.CONFIG == source
    assert load_config("sskd_d2m.yml", ["SSKD.SOURCE.CONFIG", "source_m2d.yml"]).SSKD.SOURCE.CONFIG == source
    assert load_grid("comparison/grid.yml").config == str(CONFIGS / "comparison" / ".." / "demo.yml")
    (tmp_path / "sskd_d2m.yml").write_text("SEED: 77\n")
    assert load_config("sskd_d2m.yml").SEED == load_config("own.yml").SEED == 77


@pytest.mark.parametrize("given", ["configs/sskd_m2d.yml", "sskd_m2e.yml"])
def test_the_name_that_may_be_meant(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="not found; the nearest that there is: sskd_m2"):
        load_config(given)
