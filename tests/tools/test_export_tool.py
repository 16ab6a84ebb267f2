"""tools/export.py and tools/predict.py: what is refused before the work, and what stays as it was."""

import os
import re
import shutil

import pytest
import torch
from tiny_reid import CONFIGS, TINY, draw

from fastreid_sskd.engine import AdaptationTrainer, load_config


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    at = tmp_path_factory.mktemp("trained")
    cfg = load_config(str(CONFIGS / "sskd_d2m.yml"), [*TINY, "SSKD.NUM_PEERS", "2"])
    torch.manual_seed(0)
    torch.save({"model": AdaptationTrainer.build_model(cfg).state_dict()}, at / "model_final.pth")
    (at / "config.yaml").write_text(cfg.dump())
    (at / "crops").mkdir()
    for identity in range(3):
        draw(identity, 0, 0, seed=0).save(at / "crops" / f"{identity}.png")
    return at


@pytest.fixture
def run_folder(trained_once, tmp_path, monkeypatch):
    """A copy of a run with crops of three people, and the working directory; no model is loaded from it."""
    monkeypatch.chdir(shutil.copytree(trained_once, tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def no_work(monkeypatch):
    for tool in ("export", "predict"):
        monkeypatch.setattr(f"fastreid_sskd.tools.{tool}.load_trained", None)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


WEIGHTS = ("MODEL.WEIGHTS", "model_final.pth")


@pytest.mark.parametrize(
    "form, output, message",
    [
        ("fastreid", "model_final.pth", "is read by this command, which would overwrite it"),
        ("fastreid", "../run/./model_final.pth", "is read by this command"),
        ("fastreid", "crops/../model_best.pth", "no export"),
        ("fastreid", "config.pth", "'config.yml' is read by this command"),
        ("fastreid", "base.pth", "'base.yml' is there and is no export"),
        ("fastreid", "m.onnx", "has to end in .pth"),
        ("fastreid", "m", "has to end in .pth"),
        ("onnx", "m.pth", "has to end in .onnx"),
        ("onnx", "folder.onnx", "is a folder"),
        ("onnx", "config.yaml/m.onnx", "cannot be written"),
        ("onnx", "linked.onnx", "is read by this command"),
    ],
)
def test_exports_that_are_refused(run_tool, run_folder, no_work, form, output, message):
    shutil.copy("model_final.pth", "model_best.pth")
    for name in ("config.yml", "base.yml"):
        shutil.copy("config.yaml", name)
    os.mkdir("folder.onnx")
    os.symlink("model_final.pth", "linked.onnx")
    before = contents(run_folder)
    code, out, err = run_tool(
        "export", "--config-file", "config.yml", "--format", form, "--output", output, *WEIGHTS
    )
    assert code == 2 and not out and message in err and len(err.splitlines()) == 1
    assert contents(run_folder) == before


def test_an_export_over_an_older_one(run_tool, run_folder):
    arguments = ("--config-file", "config.yaml", "--format", "fastreid", "--output", "new/m.pth", "--peer")
    assert run_tool("export", *arguments, "0", *WEIGHTS)[0] == 0
    first = contents(run_folder / "new")
    code, out, _ = run_tool("export", *arguments, "1", *WEIGHTS)
    assert code == 0 and "fast-reid gives the same features" in out
    second = contents(run_folder / "new")
    assert [path.name for path in second] == ["m.pth", "m.yml"] and first != second
    code, _, err = run_tool("export", *arguments, "ensemble", *WEIGHTS)
    assert code == 2 and "ensemble is several networks" in err and contents(run_folder / "new") == second
    assert contents(run_folder)[run_folder / "model_final.pth"]
    # the exported pair is a model like others: what is exported of it may not take its place
    code, _, err = run_tool(
        "export", "--config-file", "new/m.yml", "--format", "fastreid", "--output", "new/m.pth"
    )
    assert code == 2 and "is read by this command" in err and contents(run_folder / "new") == second


@pytest.mark.parametrize(
    "args, message",
    [
        (("--output", "f.csv"), "end in one of .npy, .npz, .parquet"),
        (("--output", "crops"), "end in one of"),
        (("--output", "folder.npz"), "is a folder"),
        (("--output", "config.yaml/f.npz"), "cannot be written"),
        (("--output", "weights.npy"), "is read by this command"),  # its list of paths would be weights.txt
        (("--query", "q.png", "--picture", "q.png"), "is read by this command"),
        (("--query", "q.png", "--picture", "found.svg"), "end in one of"),
        (("--query", "q.png", "--picture", "folder.png"), "is a folder"),
        (("--query", "q.png", "--picture", "crops/0.png"), "would be among the images"),
        (("--query", "q.png", "--picture", "crops/sub/new.png"), "would be among the images"),
        (("--query", "nobody.png", "--picture", "p.png"), "no file 'nobody.png'"),
    ],
)
def test_predictions_that_are_refused(run_tool, run_folder, no_work, args, message):
    for folder in ("folder.npz", "folder.png"):
        os.mkdir(folder)
    shutil.copy("model_final.pth", "weights.txt")
    shutil.copy("crops/1.png", "q.png")
    before = contents(run_folder)
    code, out, err = run_tool(
        "predict", "--config-file", "config.yaml", "--images", "crops", *args, "MODEL.WEIGHTS", "weights.txt"
    )
    assert code == 2 and not out and message in err and len(err.splitlines()) == 1
    assert contents(run_folder) == before


def test_a_format_that_needs_a_package(run_tool, run_folder, no_work, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    code, _, err = run_tool(
        "predict", "--config-file", "config.yaml", "--images", "crops", "--output", "f.parquet", *WEIGHTS
    )
    assert code == 2 and "fastreid-sskd[parquet]" in err


def test_a_name_that_the_format_cannot_hold(run_tool, run_folder, no_work):
    shutil.copy("crops/1.png", b"crops/\xff.png")
    code, _, err = run_tool(
        "predict", "--config-file", "config.yaml", "--images", "crops", "--output", "f.parquet", *WEIGHTS
    )
    assert code == 2 and ".parquet holds names in UTF-8" in err


def test_features_that_are_not_finite(run_tool, run_folder):
    saved = torch.load("model_final.pth", weights_only=True)
    for name in ("weight", "bias"):  # finite, as weights have to be, and too large
        saved["model"][f"teachers.0.heads.bottleneck.0.{name}"][:] = 3e38
    torch.save(saved, "bad.pth")
    arguments = (
        "--config-file",
        "config.yaml",
        "--images",
        "crops",
        "--output",
        "f.npz",
        "MODEL.WEIGHTS",
        "bad.pth",
    )
    code, _, err = run_tool("predict", *arguments)
    assert code == 2 and not os.path.exists("f.npz")
    assert re.match(r"teacher 0 gives features that are not finite for [123] of 3 images: .*\n$", err)


@pytest.mark.parametrize(
    "output, message",
    [
        ("record.json", "may hold a run's results"), ("table.json", "may hold a run's results"),
        ("log.txt", "may hold"),
        ("config.yaml", "end in one of"), ("model_final.pth", "end in one of"), ("crops", "end in one of"),
        ("config.yaml/t.md", "cannot be written"), ("folder.md", "is a folder"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(run_tool, run_folder, output, message):
    """Before anything is evaluated or trained."""
    for name in ("record.json", "table.json", "log.txt"):
        (run_folder / name).write_text("[]")
    os.mkdir("folder.md")
    before = contents(run_folder)
    for command in (("table", "."), ("run", "--config-file", "config.yaml", "--output", "runs")):
        code, out, err = run_tool("benchmark", *command, "--output-file", output)
        assert code == 2 and not out and message in err and "Traceback" not in err
    code, _, err = run_tool("benchmark", "zoo", "--notes", "notes.md", "--output-file", output)
    assert code == 2 and message in err and contents(run_folder) == before


def test_the_zoo_is_not_written_over_its_notes(run_tool, run_folder):
    (run_folder / "notes.md").write_text("notes")
    code, _, err = run_tool("benchmark", "zoo", "--notes", "notes.md", "--output-file", "notes.md")
    assert code == 2 and "is read by this command" in err and (run_folder / "notes.md").read_text() == "notes"
