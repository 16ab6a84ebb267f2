"""The table of patches, and the failure of a patch whose target is gone."""

import re
import types
from pathlib import Path

import numpy as np
import pytest

from fastreid_sskd import compat
from fastreid_sskd.compat.patch import ModuleProxy, swap, target

BY_NAME = {patch.name: patch for patch in compat.PATCHES}


def test_names_are_unique_and_the_table_lists_all():
    assert len(BY_NAME) == len(compat.PATCHES)
    lines = compat.table().splitlines()
    assert len(lines) == len(compat.PATCHES) + 2
    for patch, line in zip(compat.PATCHES, lines[2:], strict=True):
        assert line.startswith(f"| {patch.name} | {patch.where} |")
        assert line.count("|") == 4


@pytest.mark.parametrize("patch", compat.PATCHES, ids=lambda patch: patch.name)
def test_places_exist_in_the_host(patch):
    import fastreid

    root = Path(fastreid.__file__).parent
    folder = root
    for name, line in re.findall(r"([\w/*]+\.py)(?::(\d+))?", patch.where):
        if (root / name).parent != root or name == "__init__.py":
            folder = (root / name).parent  # "a/b.py:1, c.py:2" names a/c.py
        files = sorted(folder.glob(Path(name).name))
        assert files, f"{patch.name}: no {name} in {folder}"
        if line:
            assert int(line) <= len(files[0].read_text(encoding="utf-8").splitlines())


def test_apply_is_idempotent(host):
    import fastreid.solver

    before = fastreid.solver.build_optimizer
    assert compat.apply() == host
    assert fastreid.solver.build_optimizer is before


@pytest.mark.parametrize(
    ("name", "module", "attribute"),
    [
        ("data-loader", "fastreid.data.data_utils", "DataLoaderX"),
        ("collate", "fastreid.data.build", "fast_batch_collator"),
        ("read-image", "fastreid.data.data_utils", "read_image"),
        ("to-tensor", "fastreid.data.transforms.functional", "to_tensor"),
        ("random-affine", "fastreid.data.transforms.build", "T"),
        ("dataset-root", "fastreid.data.build", "_root"),
        ("image-names", "fastreid.data.datasets", "Market1501"),
        ("image-lists", "fastreid.data.datasets", "MSMT17"),
        ("balanced-sampler", "fastreid.data.samplers.triplet_sampler", "BalancedIdentitySampler"),
        ("naive-sampler", "fastreid.data.samplers.triplet_sampler", "NaiveIdentitySampler"),
        ("no-compiler", "fastreid.evaluation.reid_evaluation", "ReidEvaluator"),
        ("inference", "fastreid.evaluation.evaluator", "inference_on_dataset"),
        ("evaluate-rank", "fastreid.evaluation.rank", "evaluate_rank"),
        ("numpy-bool", "fastreid.evaluation.rank", "np"),
        ("rerank", "fastreid.utils.compute_dist", "compute_jaccard_distance"),
        ("euclidean", "fastreid.utils.compute_dist", "compute_euclidean_distance"),
        ("batch-device", "fastreid.modeling.meta_arch.baseline", "Baseline"),
        ("preprocess-image", "fastreid.modeling.meta_arch.mgn", "MGN"),
        ("one-class", "fastreid.modeling.losses.cross_entroy_loss", "cross_entropy_loss"),
        ("pretrain-path", "fastreid.modeling.backbones.resnet", "torch"),
        ("pretrained-backbone", "fastreid.modeling.backbones.build", "build_backbone"),
        ("checkpoint-load", "fastreid.utils.checkpoint", "Checkpointer"),
        ("regnet-config", "fastreid.modeling.backbones.regnet.effnet", "effnet_cfg"),
        ("optimizer", "fastreid.solver.build", "build_optimizer"),
        ("flat-buffer-check", "fastreid.utils.params", "ContiguousParams"),
        ("host-version", "fastreid", "__version__"),
    ],
)
def test_a_missing_target_is_an_error_that_says_what_to_run(monkeypatch, host, name, module, attribute):
    monkeypatch.delattr(f"{module}.{attribute}")
    with pytest.raises(
        compat.CompatError, match=r"fast-reid 1\.4\.0.*pip install --no-deps fastreid==1\.4\.0"
    ):
        BY_NAME[name].action()


def test_every_lasting_patch_is_tried_without_its_target():
    tried = test_a_missing_target_is_an_error_that_says_what_to_run.pytestmark[0].args[1]
    assert {name for name, *_ in tried} == {patch.name for patch in compat.PATCHES if not patch.at_import}


def test_swap_reaches_every_copy_in_the_host_and_nothing_else(monkeypatch, host):
    import sys

    def old(): ...

    def new(): ...

    here, copy, elsewhere = (
        types.ModuleType(name) for name in ("fastreid.here", "fastreid.copy", "fastreid_other")
    )
    for module in (here, copy, elsewhere):
        module.function = old
        monkeypatch.setitem(sys.modules, module.__name__, module)
    swap("fastreid.here", "function", lambda found: new)
    assert (here.function, copy.function, elsewhere.function) == (new, new, old)


def test_proxy_overrides_and_passes_on():
    proxy = ModuleProxy(np, bool=bool)
    assert proxy.bool is bool
    assert proxy.float32 is np.float32
    with pytest.raises(AttributeError):
        proxy.no_such_name  # noqa: B018


def test_target_of_a_module_that_does_not_exist(host):
    with pytest.raises(compat.CompatError, match=r"fastreid\.nowhere\.thing"):
        target("fastreid.nowhere", "thing")
