"""setup.py lists what the package, the host and the tests import; the version is the same everywhere."""

import ast
import importlib.metadata
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastreid_sskd"

# modules whose name differs from that of their distribution
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def distribution_name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()


def imported_modules(files) -> dict[str, Path]:
    """Top-level names of all absolute imports in the files, with one file that has each."""
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in names:
                found[name.split(".")[0]] = file
    return found


def test_version_is_one_and_the_same(metadata):
    version = metadata["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", version)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_installed_version_is_that_of_the_source(metadata):
    try:
        installed = importlib.metadata.version("fastreid-sskd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastreid-sskd is not installed here, only importable: `make setup` installs it")
    assert installed == metadata["version"]


def test_version_is_missing_from_the_source(tmp_path):
    (tmp_path / "fastreid_sskd").mkdir()
    (tmp_path / "fastreid_sskd" / "__init__.py").write_text("import nothing_of_the_kind\n")
    shutil.copy(ROOT / "setup.py", tmp_path)
    fake = "class S: setup = find_packages = staticmethod(dict)\nimport sys; sys.modules['setuptools'] = S\n"
    code = fake + "import runpy; runpy.run_path('setup.py')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "must hold a line __version__" in done.stderr


def test_host_is_not_a_requirement(metadata):
    """It may be a git checkout on PYTHONPATH, and pip cannot resolve the wheel's pins."""
    for requirements in (metadata["install_requires"], *metadata["extras_require"].values()):
        assert "fastreid" not in [distribution_name(requirement) for requirement in requirements]


def test_one_faiss_an_extra(metadata):
    extras = metadata["extras_require"]
    faiss = {name: [r for r in wanted if r.startswith("faiss")] for name, wanted in extras.items()}
    assert [distribution_name(r) for r in faiss["cpu"]] == ["faiss-cpu"]
    assert [distribution_name(r) for r in faiss["gpu"]] == ["faiss-gpu"]
    assert not any(r.startswith("faiss") for r in metadata["install_requires"])
    assert not faiss["test"] and not faiss["host"]


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_lock_pins_every_requirement(metadata, minor):
    """One version of each, inside setup.py's range, from no place that only one machine knows. `make lock`
    makes it.
    """
    lines = (ROOT / "constraints" / f"py3{minor}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines if not line.startswith("#"))
    locked = dict(pins)
    assert len(locked) == len(pins) > 50
    extras = itertools.chain.from_iterable(metadata["extras_require"].values())
    for requirement in map(Requirement, ["pip", "setuptools>=64", *metadata["install_requires"], *extras]):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": f"3.{minor}"}):
            found = locked.get(requirement.name, "")
            assert found and requirement.specifier.contains(found), (
                f"{requirement} is not in the lock: run `make lock`"
            )
    assert ("infomap" in locked) == (minor > 10)


def test_every_import_of_the_package_is_declared(metadata):
    known = set(sys.stdlib_module_names) | {"fastreid", "fastreid_sskd"}
    extras = metadata["extras_require"]  # some are imported where they are used
    declared = {
        distribution_name(r)
        for r in (
            *metadata["install_requires"],
            *extras["cpu"],
            *extras["onnx"],
            *extras["openvino"],
            *extras["parquet"],
            *extras["infomap"],
            *extras["report"],
            *extras["timm"],
        )
    }
    modules = imported_modules(PACKAGE.rglob("*.py"))
    assert "torch" in modules, "no source was read"
    missing = {
        name: str(file.relative_to(ROOT))
        for name, file in modules.items()
        if name not in known and DISTRIBUTIONS.get(name, name).lower() not in declared
    }
    assert not missing, f"add to install_requires in setup.py: {missing}"


def test_every_import_of_the_tests_and_tools_is_declared(metadata):
    known = set(sys.stdlib_module_names) | {"fastreid", "fastreid_sskd", "setuptools"}
    files = [file for folder in ("tests", "tools", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    files.remove(ROOT / "tests" / "clients" / "check_clients.py")  # it runs in an environment of its own
    known |= {file.stem for file in files}
    extras = metadata["extras_require"]
    declared = {distribution_name(r) for r in metadata["install_requires"] + extras["cpu"] + extras["test"]}
    declared.add("packaging")  # required by pytest
    modules = imported_modules(files)
    assert "pytest" in modules, "no source was read"
    missing = {
        name: str(file.relative_to(ROOT))
        for name, file in modules.items()
        if name not in known and DISTRIBUTIONS.get(name, name).lower() not in declared
    }
    assert not missing, f"add to the extra test in setup.py: {missing}"


def test_what_the_host_imports_at_the_top_is_declared(metadata):
    spec = importlib.util.find_spec("fastreid")
    if spec is None:
        pytest.skip("fast-reid is not installed")
    host = Path(spec.submodule_search_locations[0])
    parts = ("config", "data", "engine", "evaluation", "layers", "modeling", "solver")
    found = {}
    for file in (file for part in parts for file in (host / part).rglob("*.py")):
        if "rank_cylib" in file.parts:  # the Cython extension, which is not used
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found.update({name.split(".")[0]: file.name for name in names})
    assert {"torch", "yacs"} <= set(found), "no source of the host was read"
    extras = metadata["extras_require"]  # some are imported where they are used
    declared = {
        distribution_name(r)
        for r in (
            *metadata["install_requires"],
            *extras["cpu"],
            *extras["onnx"],
            *extras["openvino"],
            *extras["parquet"],
            *extras["infomap"],
            *extras["report"],
            *extras["timm"],
        )
    }
    known = set(sys.stdlib_module_names) | {"fastreid"}
    missing = {
        n: f for n, f in found.items() if n not in known and DISTRIBUTIONS.get(n, n).lower() not in declared
    }
    assert not missing, f"the host needs more than setup.py lists: {missing}"


def test_every_folder_of_the_package_is_a_package():
    """find_packages leaves out folders without __init__.py; an editable installation would not show it."""
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert folders, "no source was found"
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_every_file_of_the_package_is_packed(metadata):
    """setuptools leaves out what is no Python; an editable installation would not show it."""
    packed = {
        file
        for package, patterns in metadata["package_data"].items()
        for pattern in patterns
        for file in (ROOT / metadata["package_dir"].get(package, package.replace(".", "/"))).glob(pattern)
    }
    others = {
        file
        for file in [*PACKAGE.rglob("*"), *(ROOT / "configs").rglob("*")]
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert PACKAGE / "report" / "template.html" in others and not others - packed


def test_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0" in text and "END OF TERMS AND CONDITIONS" in text
