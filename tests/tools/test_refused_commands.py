"""Every tool refuses what cannot work with status 2 and one message."""

import pytest
from tiny_reid import CONFIGS

CONFIG = str(CONFIGS / "demo.yml")
WRONG_VALUES = [
    (("MODEL.BACKBONE.DEPTH", "19x"), "MODEL.BACKBONE.DEPTH must be one of 18x, 34x, 50x, 101x"),
    (("MODEL.HEADS.POOL_LAYER", "GlobalAvg"), "nearest that there is: GlobalAvgPool"),
    (("SSKD.CLUSTER.EPSS", "1"), "nearest that there is: SSKD.CLUSTER.EPS"),
    (("SSKD.NUM_PEERS", "two"), "SSKD.NUM_PEERS takes a whole number"),
]
WRONG_FILES = [("empty.yml", "is empty"), ("model.pth", "is no text"), ("missing.yml", "not found")]


def command(tool, folder, config, *opts):
    """The command line of a tool that would use this config."""
    weights = ["MODEL.WEIGHTS", str(folder / "model.pth")]
    return {
        "train_net": ("train_net", "--config-file", config, *opts, "OUTPUT_DIR", folder / "out"),
        "evaluate": (
            "train_net",
            "--eval-only",
            "--config-file",
            config,
            *opts,
            *weights,
            "OUTPUT_DIR",
            folder / "out",
        ),
        "compare": ("compare", "--config-file", config, "--output", folder / "out", *opts),
        "grid": (
            "benchmark",
            "run",
            "--config-file",
            config,
            "--output",
            folder / "out",
            *(["--opts", *opts] if opts else []),
        ),
        "table": (
            "benchmark",
            "table",
            f"{config}:{folder / 'model.pth'}",
            "--records",
            "",
            *(["--opts", *opts] if opts else []),
        ),
        "export": (
            "export",
            "--config-file",
            config,
            "--format",
            "fastreid",
            "--output",
            folder / "x.pth",
            *opts,
            *weights,
        ),
        "predict": (
            "predict",
            "--config-file",
            config,
            "--images",
            folder,
            "--output",
            folder / "f.npz",
            *opts,
            *weights,
        ),
    }[tool]


TOOLS = ("train_net", "evaluate", "compare", "grid", "table", "export", "predict")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yml").touch()
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04\x80\xff")
    (tmp_path / "person.jpg").touch()
    (tmp_path / "broken.yml").write_text("cells: [1\n")
    return tmp_path


def refused(run_tool, said, *line):
    status, _, err = run_tool(*line)
    assert status == 2 and said in err and "Traceback" not in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize(
    "opts, said", WRONG_VALUES, ids=lambda part: part[0] if isinstance(part, tuple) else ""
)
@pytest.mark.parametrize("tool", TOOLS)
def test_values(run_tool, folder, tool, opts, said):
    refused(run_tool, said, *command(tool, folder, CONFIG, *opts))


@pytest.mark.parametrize("name, said", WRONG_FILES)
@pytest.mark.parametrize("tool", TOOLS)
def test_config_files(run_tool, folder, tool, name, said):
    refused(run_tool, said, *command(tool, folder, str(folder / name)))


@pytest.mark.parametrize(
    "line, said",
    [
        (("benchmark", "zoo", "--notes", "missing.md"), "no file of notes 'missing.md'"),
        (
            ("benchmark", "table", "--published", "Market1501 -> DukeMTCM"),
            "nearest that there is: Market1501 -> DukeMTMC",
        ),
        (("benchmark", "grid", "broken.yml", "--output", "out"), "grid 'broken.yml' is no YAML"),
        (("benchmark", "run", "--config-file", CONFIG, "--output", "person.jpg"), "give another --output"),
        (("train_net", "--config-file", CONFIG, "--predict", ".", "--features", "f.npz"), "tools/predict.py"),
        (("report", "missing_run"), "missing_run"),
        (("report", "."), "config.yaml"),
        (
            ("train_net", "--config-file", CONFIG, "--resume", "runs/a/model_final.pth"),
            "--resume takes no file",
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
def test_other_arguments(run_tool, folder, line, said):
    refused(run_tool, said, *line)
