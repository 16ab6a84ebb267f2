"""A wheel, installed into an environment of its own, does the main job outside of the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tiny_reid import draw, overrides

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("setup.py", "pyproject.toml", "README.md", "fastreid_sskd", "configs")
SMALL = overrides(
    "MODEL.DEVICE cpu", "MODEL.BACKBONE.NAME build_osnet_backbone", "MODEL.BACKBONE.DEPTH x0_25",
    "MODEL.BACKBONE.FEAT_DIM 128", "MODEL.BACKBONE.PRETRAIN False", "SSKD.SOURCE.SKIP True",
    "INPUT.SIZE_TRAIN [32, 16]", "INPUT.SIZE_TEST [32, 16]", "DATALOADER.NUM_WORKERS 0",
    "SOLVER.IMS_PER_BATCH 8", "SOLVER.MAX_EPOCH 1", "SSKD.ITERS_PER_EPOCH 2", "SSKD.NUM_PEERS 2",
    "SSKD.CLUSTER.K1 6", "SSKD.CLUSTER.K2 2", "SSKD.CLUSTER.PAIRS_PER_IMAGE 2.0",
)  # fmt: skip

pytestmark = pytest.mark.slow


def run(*command, cwd) -> str:
    """The output of a command that must succeed; nothing of this repository is on its path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=inherited, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The console script of a fresh environment, which has the running one's packages besides."""
    at = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    (at / "source").mkdir()
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, at / "source" / name)
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", at, at / "source", cwd=at)
    (wheel,) = at.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", at / "env", cwd=at)
    python = at / "env" / "bin" / "python"
    offline = ("--no-deps", "--no-index", "--ignore-installed")
    run(*pip, "--python", python, "install", *offline, wheel, cwd=at)
    here = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=at).strip()
    Path(here, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return at / "env" / "bin" / "fastreid-sskd"


def test_train_and_predict(command, tmp_path):
    (tmp_path / "crops").mkdir()
    for identity in range(6):
        for shot in range(8):
            draw(identity, shot % 2, shot, seed=3).save(tmp_path / "crops" / f"{identity}_{shot}.png")
    crops = ("SSKD.FOLDERS.CropFolder.TRAIN", tmp_path / "crops")
    run(
        command, "train", "--config-file", "sskd_crops.yml", *crops, *SMALL, "OUTPUT_DIR", "out", cwd=tmp_path
    )
    model = ("--config-file", "out/config.yaml", "--images", "crops", "--output", "f.npy")
    out = run(command, "predict", *model, "MODEL.WEIGHTS", "out/model_final.pth", cwd=tmp_path)
    assert "48 features of 128 values" in out and np.load(tmp_path / "f.npy").shape == (48, 128)


def test_what_a_wheel_has(command, tmp_path):
    """Every config, a grid, and the published figures; and the code is the environment's."""
    code = (
        "import os, fastreid_sskd\nfrom fastreid_sskd import config_values as values\n"
        "from fastreid_sskd.benchmark import load_grid\n"
        "from fastreid_sskd.engine import load_config\n"
        "print(os.path.dirname(fastreid_sskd.__file__))\n"
        "assert os.path.isfile(load_config('sskd_m2d.yml').SSKD.SOURCE.CONFIG)\n"
        "assert os.path.isfile(load_grid('comparison/grid.yml').config)\n"
        "print(*sorted(values._shipped()))\n"
    )
    *_, package, names = run(command.with_name("python"), "-c", code, cwd=tmp_path).splitlines()
    assert Path(package).is_relative_to(command.parents[1])
    configs = ROOT / "configs"
    assert names.split() == sorted(str(path.relative_to(configs)) for path in configs.rglob("*.yml"))
    assert "| MMT" in run(
        command, "benchmark", "table", "--published", "Market1501 -> DukeMTMC", "--format", "markdown",
        cwd=tmp_path,
    )  # fmt: skip
