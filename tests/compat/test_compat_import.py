"""The host's import in fresh processes: with and without faiss, with a missing, incomplete or broken host."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from own_processes import HANG
from PIL import Image

from fastreid_sskd import compat

ROOT = Path(__file__).resolve().parents[2]
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(script, *first_on_path):
    """Run a script (text or file) in a fresh interpreter that finds this repository and the given folders."""
    path = os.pathsep.join(filter(None, [*map(str, first_on_path), os.environ.get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run(
        [sys.executable, *([script] if isinstance(script, Path) else ["-c", script])],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error::UserWarning,error::FutureWarning"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def last_line(script, *first_on_path):
    """Last line that a failing script writes."""
    done = run(script, *first_on_path)
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()[-1]


CLEAN = """
import collections, sys
import numpy, torch
before = set(dir(collections)), torch.load, "bool" in vars(numpy), hasattr(torch, "_six")
from fastreid_sskd import compat
names = compat.apply()
assert names == compat.apply(), "not idempotent"
after = set(dir(collections)), torch.load, "bool" in vars(numpy), hasattr(torch, "_six")
assert before == after
assert "torch._six" not in sys.modules
import fastreid.engine
from fastreid.config import get_cfg
from fastreid.data import build_reid_train_loader
print(fastreid.__file__, fastreid.__version__, *names)
"""


def test_clean_import_leaves_no_trace_and_no_warning():
    done = run(CLEAN)
    assert done.returncode == 0, done.stderr
    _, version, *names = done.stdout.split()
    assert version.startswith("1.")
    assert set(names) <= {patch.name for patch in compat.PATCHES}
    assert {"cython-warning", "optimizer", "data-loader"} <= set(names)
    assert "collections-mapping" in names


def test_an_installed_host_gives_its_distribution_version():
    import fastreid

    version = compat.host_version()
    if "site-packages" in fastreid.__file__:
        assert version == "1.4.0"
    assert fastreid.__version__ == version


def test_without_faiss():
    done = run(
        BLOCK.format(name="faiss")
        + CLEAN
        + textwrap.dedent("""
        assert "faiss" not in sys.modules
        from fastreid.utils.faiss_utils import index_init_cpu
        try:
            index_init_cpu(8)
        except ImportError as error:
            print(error)
    """)
    )
    assert done.returncode == 0, done.stderr
    assert "missing-faiss" in done.stdout
    assert "pip install faiss-cpu" in done.stdout.splitlines()[-1]


def test_missing_host_is_one_sentence():
    script = BLOCK.format(name="fastreid") + "from fastreid_sskd import compat; compat.apply()"
    assert last_line(script) == (
        "ImportError: fast-reid is not installed: run `pip install --no-deps fastreid==1.4.0` (or `make`)"
    )


@pytest.mark.parametrize(("name", "distribution"), [("yacs", "yacs"), ("sklearn", "scikit-learn")])
def test_missing_need_of_the_host_names_its_distribution(name, distribution):
    line = last_line(BLOCK.format(name=name) + "from fastreid_sskd import compat; compat.apply()")
    assert line == (
        f"ImportError: fast-reid is installed without its need {name!r}: run `pip install {distribution}`"
    )


def test_broken_host_is_one_sentence_with_the_cause(tmp_path):
    (tmp_path / "fastreid" / "config").mkdir(parents=True)
    (tmp_path / "fastreid" / "__init__.py").write_text("__version__ = '0'\n")
    (tmp_path / "fastreid" / "config" / "__init__.py").write_text("raise RuntimeError('two\\nlines')\n")
    line = last_line("from fastreid_sskd import compat; compat.apply()", tmp_path)
    assert "fastreid.config cannot be imported (RuntimeError: two lines): run `pip install" in line


def test_git_checkout(tmp_path):
    """FASTREID_GIT may name one. Else the installed host stands in, without metadata and with git's one
    difference.
    """
    checkout = Path(os.environ.get("FASTREID_GIT") or tmp_path).resolve()
    if checkout == tmp_path.resolve():
        import fastreid

        shutil.copytree(
            Path(fastreid.__file__).parent, checkout / "fastreid", ignore=shutil.ignore_patterns("*.pyc")
        )
        build = checkout / "fastreid" / "data" / "build.py"
        build.write_text(
            build.read_text().replace("from torch._six import string_classes", "string_classes = str")
        )
    done = run(CLEAN, checkout)
    assert done.returncode == 0, done.stderr
    file, version, *_ = done.stdout.split()
    assert Path(file).resolve().is_relative_to(checkout)
    assert version == "1.3+source"


@pytest.mark.slow
def test_spawned_workers_can_load_data(tmp_path):
    """A spawned process imports the main script, and so the package, before it unpickles the data set."""
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png")
    (tmp_path / "spawning.py").write_text(
        textwrap.dedent(f"""
        from fastreid_sskd import compat
        compat.apply()
        from fastreid.data import CommDataset
        from fastreid.data.build import fast_batch_collator
        from fastreid.data.transforms import ToTensor
        if __name__ == "__main__":
            items = [({str(tmp_path / "a.png")!r}, 0, 0)] * 4
            loader = compat.HostDataLoader(
                0, dataset=CommDataset(items, ToTensor()), batch_size=2, num_workers=1,
                collate_fn=fast_batch_collator, multiprocessing_context="spawn",
            )
            print([tuple(batch["images"].shape) for batch in loader])
    """)
    )
    done = run(tmp_path / "spawning.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[(2, 3, 8, 4), (2, 3, 8, 4)]"
