"""Number type and layout of the passes by device, in both stages."""

import logging
import os
import shutil

import pytest
import torch
from fastreid.engine import HookBase
from same_runs import assert_same_files

from fastreid_sskd import precision as module
from fastreid_sskd.data import training_items
from fastreid_sskd.engine import load_config, run
from fastreid_sskd.engine.pipeline import image_features, load_trained, source_config
from fastreid_sskd.evaluation.features import Encoder
from fastreid_sskd.precision import Precision

SHORT = ("SOLVER.MAX_EPOCH", "2", "SSKD.ITERS_PER_EPOCH", "3", "SOLVER.CHECKPOINT_PERIOD", "1")


def precision(device, name="float32", enabled=False):
    return Precision(
        load_config("", ["MODEL.DEVICE", device, "SSKD.PRECISION", name, "SOLVER.AMP.ENABLED", str(enabled)])
    )


def product(one):
    with one.autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.fixture
def units(monkeypatch):
    """Call it with whether the device shall have units for bfloat16."""
    return lambda has: monkeypatch.setattr(module, "has_bfloat16", lambda device: has)


# ---- what is chosen ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(
    "device, has, name, enabled, chosen, channels_last",
    [
        ("cpu", True, "float32", False, "float32", False),
        ("cpu", True, "auto", False, "bfloat16", True),
        ("cpu", False, "auto", False, "float32", False),
        ("cpu", True, "bfloat16", False, "bfloat16", False),
        ("cpu", False, "bfloat16", False, "bfloat16", False),  # in software
        ("cpu", True, "float32", True, "bfloat16", True),
        ("cpu", False, "float32", True, "float32", False),
        ("cuda", True, "auto", False, "bfloat16", True),
        ("cuda", True, "float16", True, "float16", False),
        ("cuda", False, "auto", False, "float32", False),
        ("cuda", False, "float32", True, "float16", False),
    ],
)
def test_choice(units, device, has, name, enabled, chosen, channels_last):
    """float16 alone needs its losses scaled; the scaler is made, and its state saved, without a device."""
    units(has)
    one = precision(device, name, enabled)
    assert (one.name, one.channels_last) == (chosen, channels_last)
    assert (one.scaler is not None) == (chosen == "float16")
    if one.scaler is not None:
        assert isinstance(one.scaler.state_dict(), dict)
    if device == "cpu":
        assert product(one) == getattr(torch, chosen)


@pytest.mark.parametrize(
    "device, has, name, offered",
    [
        ("cpu", True, "float16", "auto, float32 or bfloat16"),
        ("cuda", False, "bfloat16", "auto, float32 or float16"),
    ],
)
def test_what_the_device_lacks_is_refused(units, device, has, name, offered):
    units(has)
    with pytest.raises(ValueError, match=f"SSKD.PRECISION {name} .* {device} has: set it to {offered}"):
        precision(device, name)


@pytest.mark.parametrize(
    "flags, has", [("avx2 avx512_bf16", True), ("amx_bf16", True), ("avx2 avx512f", False)]
)
def test_units_of_the_cpu_are_read(monkeypatch, flags, has):
    """Nothing on a system without /proc; elsewhere every processor has some flags."""
    assert bool(module._cpu_flags()) == os.path.exists("/proc/cpuinfo")
    monkeypatch.setattr(module, "_cpu_flags", lambda: frozenset(flags.split()))
    assert module.has_bfloat16("cpu") is has


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_in_software_does_not_count(monkeypatch, in_hardware):
    """torch says yes for a GPU that computes it in software, unless it is asked not to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or in_hardware
    )
    assert module.has_bfloat16("cuda") is in_hardware
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: in_hardware)  # torch < 2.5
    assert module.has_bfloat16("cuda") is in_hardware


def test_the_key_before_is_warned_of(caplog):
    cfg = load_config("", ["SSKD.AMP_DTYPE", "float16"])
    assert "SSKD.AMP_DTYPE has no effect any more" in caplog.text and cfg.SSKD.PRECISION == "float32"


# ---- what is computed in it ----------------------------------------------------------------------


class Watch(HookBase):
    """Types that a student and a teacher compute in, and of the losses; not of the one image of `folded`."""

    def __init__(self):
        self.students, self.teachers, self.losses = set(), set(), set()

    def before_train(self):
        model = self.trainer.model
        for peers, found in ((model.students, self.students), (model.teachers, self.teachers)):
            peers[0].backbone.register_forward_hook(
                lambda _, args, out, found=found: found.add(out.dtype) if len(out) > 1 else None
            )
        model.register_forward_hook(
            lambda _, args, out: self.losses.update(v.dtype for v in out.values()) if model.training else None
        )


@pytest.mark.parametrize(
    "options", [(), ("SSKD.SOFT_LABELS.BN", "refresh", "SSKD.SOFT_LABELS.TEMPERATURE", "0")]
)
def test_every_pass(trainer, monkeypatch, units, caplog, options):
    """Steps, refresh and evaluation in bfloat16; losses, weights and features float32; one line says so."""
    units(True)
    features, each = set(), Encoder.each

    def watched(self, batch):
        found = each(self, batch)
        features.update(feature.dtype for feature in found)
        return found

    monkeypatch.setattr(Encoder, "each", watched)
    watch = Watch()
    with caplog.at_level(logging.INFO):
        made = trainer(*SHORT, *options, "SSKD.PRECISION", "auto", hooks=[watch])
        made.train()
    assert source_config(made.cfg, 0).SSKD.PRECISION == "auto"
    assert watch.students == watch.teachers == {torch.bfloat16}
    assert features == watch.losses == {torch.float32}
    assert caplog.text.count("passes are in bfloat16, channels last: cpu has units for bfloat16") == 1
    assert not {v.dtype for v in made.model.state_dict().values()} & {torch.bfloat16, torch.float16}
    assert made.model.students[0].backbone[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_resumed_equals_uninterrupted(adaptation, units, tmp_path):
    units(True)
    whole, resumed = (
        adaptation(*SHORT, "SSKD.PRECISION", "auto", output=tmp_path / name) for name in ("whole", "resumed")
    )
    run(whole)
    shutil.copytree(whole.OUTPUT_DIR, resumed.OUTPUT_DIR)
    os.remove(os.path.join(resumed.OUTPUT_DIR, "model_final.pth"))
    with open(os.path.join(resumed.OUTPUT_DIR, "last_checkpoint"), "w", encoding="utf-8") as file:
        file.write("model_0000.pth")
    run(resumed, resume=True)
    assert_same_files(resumed.OUTPUT_DIR, whole.OUTPUT_DIR)


def test_prediction(adaptation, finished, units, caplog, world):
    """Near float32's features, and not equal to them."""
    units(True)
    found = {}
    paths = [item[0] for item in training_items(("Market1501",))][:8]
    for name in ("float32", "auto"):
        cfg = adaptation("MODEL.WEIGHTS", str(finished.output / "model_final.pth"), "SSKD.PRECISION", name)
        found[name] = torch.from_numpy(image_features(cfg, load_trained(cfg), paths))
    assert found["auto"].dtype == torch.float32 and not torch.equal(found["auto"], found["float32"])
    torch.testing.assert_close(found["auto"], found["float32"], rtol=0, atol=0.05)
