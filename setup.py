"""Metadata and requirements of fastreid_sskd.

fast-reid itself is missing from the requirements on purpose. Its wheel pins torch 1.13, so that pip cannot
resolve it beside torch 2, and it may just as well be a git checkout on PYTHONPATH. What the host needs at run
time is listed here in its stead; `make` installs the host with `pip install --no-deps fastreid==1.4.0`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Version of the package, read from its source: importing it would need torch and the host."""
    source = (ROOT / "fastreid_sskd" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", source, re.MULTILINE)
    if match is None:
        raise ValueError('fastreid_sskd/__init__.py must hold a line __version__ = "X.Y.Z"; add it')
    return match.group(1)


def read_readme() -> str:
    """The README, or nothing in a tree that was packed without it."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


INSTALL_REQUIRES = [
    # torch before 2.3 was built against numpy 1: beside it, install "numpy<2" (pip cannot express that).
    "torch>=2.1",
    "torchvision>=0.16",
    "numpy>=1.26",
    "scipy>=1.11",
    "scikit-learn>=1.3",
    "numba>=0.58",
    "pillow>=9.4",
    # one run at a time in an output folder; torch requires it too, and before 4.0 forked workers kept a
    # killed run's lock
    "filelock>=4.0",
    # the report of a run; torch requires the first, which requires the second
    "jinja2>=3.0",
    "markupsafe>=2.0",
    # imported by the host
    "yacs>=0.1.8",
    "pyyaml>=6.0",
    "tabulate>=0.9",
    "termcolor>=2.0",
    "tensorboard>=2.11",
]

EXTRAS_REQUIRE = {
    # cpu and gpu both install the module `faiss`: choose one of them.
    "cpu": ["faiss-cpu>=1.8"],
    # Linux x86-64 and CUDA 12 runtime libraries, which it brings along; torch may be of another CUDA version.
    "gpu": ["faiss-gpu>=1.14.3"],
    # tools/export.py: ONNX, and its check of what it wrote; OpenVINO, which is made from ONNX
    "onnx": ["onnx>=1.15", "onnxruntime>=1.16", "onnxscript>=0.1"],
    "openvino": ["openvino>=2024.0"],
    # tools/report.py
    "report": ["matplotlib>=3.8"],
    # tools/predict.py --output FILE.parquet
    "parquet": ["pyarrow>=14"],
    # SSKD.CLUSTER.METHOD infomap. GPL-3.0, so nothing but the tests requires it; no wheels for Python 3.10
    "infomap": ["infomap>=2.9; python_version >= '3.11'"],
    # ruff is held to one minor version: its default rules change between them
    "test": ["pytest>=7.3", "pytest-xdist>=3.5", "pytorch-metric-learning>=2.3", "ruff>=0.17,<0.18"],
    # MODEL.BACKBONE.NAME build_timm_backbone; safetensors, which it requires, reads such files of weights
    "timm": ["timm>=1.0", "safetensors>=0.4"],
    # tools/crops_from_tracks.py --frames VIDEO
    "video": ["opencv-python-headless>=4.8"],
    # the map in the report of a run by UMAP, not PCA
    "umap": ["umap-learn>=0.5.4"],
    # what some parts of the host import when they are used: weights from the network, CUHK03, its visualiser
    "host": ["gdown", "h5py", "imageio", "matplotlib", "tqdm"],
}
# Every extra has a test.
EXTRAS_REQUIRE["test"] += [
    requirement
    for extra in ("onnx", "openvino", "report", "parquet", "infomap", "umap", "timm", "video", "host")
    for requirement in EXTRAS_REQUIRE[extra]
]

setup(
    name="fastreid-sskd",
    version=read_version(),
    description="SSKD (arXiv 2009.05972): unsupervised domain adaptation of person re-ID, for fast-reid",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # configs/ of a clone is a folder of the installed package
    packages=[*find_packages(include=["fastreid_sskd*"]), "fastreid_sskd.configs"],
    package_dir={"fastreid_sskd.configs": "configs"},
    package_data={
        "fastreid_sskd.benchmark": ["*.yml"],
        "fastreid_sskd.configs": ["*.yml", "*/*.yml"],
        "fastreid_sskd.report": ["*.html"],
    },
    entry_points={"console_scripts": ["fastreid-sskd = fastreid_sskd.tools:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    zip_safe=False,
)
