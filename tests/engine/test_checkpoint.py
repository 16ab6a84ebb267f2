"""Checkpoints that are whole or not there, that load safely and strictly, and of which the last few are
kept.
"""

import os
from collections import Counter, OrderedDict

import pytest
import torch
from tiny_reid import load_checkpoint, tiny_baseline
from torch import nn

from fastreid_sskd.engine import AdaptationTrainer, Checkpointer, Trainer
from fastreid_sskd.engine.checkpoint import damage, last_checkpoint


class State:
    """Something with a state."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return self.value

    def load_state_dict(self, state):
        self.value = state


def checkpointer(folder, **checkpointables):
    return Checkpointer(nn.Linear(2, 2), str(folder), **checkpointables)


def test_round_trip(tmp_path):
    state = {"numbers": [1, 2.5, None], "tensor": torch.arange(3), "nested": {"a": (1, 2)}}
    one = checkpointer(tmp_path / "new" / "folder", extra=State(state))
    one.save("model_0003", epoch=3)
    other = checkpointer(tmp_path, extra=State(None))
    rest = other.load(str(tmp_path / "new" / "folder" / "model_0003.pth"))
    assert rest == {"epoch": 3}
    assert torch.equal(other.model.weight, one.model.weight)
    found = other.checkpointables["extra"].value
    assert found["numbers"] == [1, 2.5, None] and found["nested"] == {"a": (1, 2)}
    assert torch.equal(found["tensor"], torch.arange(3))


def test_files_are_plain_tensors(tmp_path):
    """torch.load(weights_only=True) refuses a scheduler's Counter, which the host's files hold."""
    parameters = [nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.Adam(parameters)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 5])
    assert any(isinstance(value, Counter) for value in scheduler.state_dict().values())
    checkpointer(tmp_path, lr_sched=scheduler, optimizer=optimizer).save("model")
    saved = load_checkpoint(tmp_path / "model.pth")
    assert saved["lr_sched"]["milestones"] == {2: 1, 5: 2}
    assert isinstance(scheduler.milestones, Counter)  # the scheduler's own is left alone


def test_scheduler_goes_on_from_a_file(tmp_path):
    def parts():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.1)

    def rates(optimizer, scheduler, steps):
        found = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    whole = rates(*parts(), 6)
    optimizer, scheduler = parts()
    first = rates(optimizer, scheduler, 3)
    checkpointer(tmp_path, lr_sched=scheduler, optimizer=optimizer).save("model")
    optimizer, scheduler = parts()
    checkpointer(tmp_path, lr_sched=scheduler, optimizer=optimizer).load(str(tmp_path / "model.pth"))
    assert first + rates(optimizer, scheduler, 3) == pytest.approx(whole)


def test_kinds_of_containers_stay(tmp_path):
    state = {"ordered": OrderedDict(a=1), "tuple": (1, [2]), "counter": Counter("aab")}
    checkpointer(tmp_path, extra=State(state)).save("model")
    saved = load_checkpoint(tmp_path / "model.pth")["extra"]
    assert type(saved["ordered"]) is OrderedDict and saved["tuple"] == (1, [2])
    assert type(saved["counter"]) is dict and saved["counter"] == {"a": 2, "b": 1}


@pytest.mark.parametrize("stage", ["while writing", "before renaming"])
def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch, stage):
    one = checkpointer(tmp_path)
    one.save("model_0001", epoch=1)
    before = (tmp_path / "model_0001.pth").read_bytes()

    def disk_full(data, file, *args):
        file.write(b"half of it")
        raise OSError("No space left on device")

    def killed(*args):
        raise OSError("No space left on device")

    if stage == "while writing":
        monkeypatch.setattr(torch, "save", disk_full)
    else:
        monkeypatch.setattr(os, "fsync", killed)
    for name in ("model_0001", "model_0002"):
        with pytest.raises(OSError, match="No space left"):
            one.save(name, epoch=2)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0001.pth"]  # and no temporary file
    assert (tmp_path / "model_0001.pth").read_bytes() == before
    assert one.get_checkpoint_file() == str(tmp_path / "model_0001.pth")


def test_last_checkpoint_is_named_after_it_is_complete(tmp_path, monkeypatch):
    """A crash between the two leaves the name of the one before, which is still there."""
    one = checkpointer(tmp_path)
    one.save("model_0001")
    monkeypatch.setattr(one, "tag_last_checkpoint", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        one.save("model_0002")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0001.pth"
    assert load_checkpoint(tmp_path / "model_0002.pth")["model"]


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpointer("").save("model")
    assert checkpointer("").remove_all_but(1) == []
    Checkpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("model")
    assert os.listdir(tmp_path) == []


def test_old_checkpoints_go(tmp_path):
    one = checkpointer(tmp_path)
    for epoch in range(4):
        one.save(f"model_{epoch:04d}")
    one.save("model_best")
    one.save("model_final")
    gone = one.remove_all_but(2)
    assert [os.path.basename(path) for path in gone] == ["model_0000.pth", "model_0001.pth"]
    assert {"model_0002.pth", "model_0003.pth", "model_best.pth", "model_final.pth"} <= set(
        os.listdir(tmp_path)
    )
    assert one.remove_all_but(2) == []


def test_checkpoints_of_an_earlier_run_go_first(tmp_path):
    """They may be of later epochs; the one that was just written must stay."""
    one = checkpointer(tmp_path)
    for epoch, seconds in ((18, 100), (19, 200), (0, 300)):
        one.save(f"model_{epoch:04d}")
        os.utime(tmp_path / f"model_{epoch:04d}.pth", (seconds, seconds))
    one.remove_all_but(2)
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith("pth")) == [
        "model_0000.pth",
        "model_0019.pth",
    ]
    assert os.path.exists(one.get_checkpoint_file())


def test_kinds_are_kept_apart(tmp_path):
    one = checkpointer(tmp_path)
    for name in ("model_0001", "step_0000002", "step_0000004", "step_0000006", "model_best"):
        one.save(name)
    assert [os.path.basename(path) for path in one.remove_all_but(1, "step")] == [
        "step_0000002.pth",
        "step_0000004.pth",
    ]
    assert [os.path.basename(path) for path in one.remove_all_but(0, "step")] == ["step_0000006.pth"]
    assert one.remove_all_but(1) == []
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith("pth")) == [
        "model_0001.pth",
        "model_best.pth",
    ]


# ---- damaged files -------------------------------------------------------------------------------


def test_whole_file_has_no_damage(tmp_path):
    checkpointer(tmp_path, extra=State({"text": "x" * 1000, "tensor": torch.arange(1000)})).save("model")
    assert damage(str(tmp_path / "model.pth")) is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_torn_file_is_found(tmp_path, share):
    checkpointer(tmp_path).save("model")
    content = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "model.pth").write_bytes(content[: int(share * len(content))])
    assert damage(str(tmp_path / "model.pth"))


def test_changed_byte_is_found(tmp_path):
    """Anywhere: either the file is refused, or what it holds is what was saved."""
    checkpointer(tmp_path, extra=State({"tensor": torch.arange(500)})).save("model")
    path = tmp_path / "model.pth"
    content, saved = path.read_bytes(), load_checkpoint(path)
    found = 0
    for at in range(0, len(content), max(1, len(content) // 300)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        if damage(str(path)):
            found += 1
            continue
        try:
            again = load_checkpoint(path)
        except Exception:  # noqa: BLE001 - a byte of the archive's structure, which torch itself refuses
            found += 1
            continue
        assert torch.equal(again["extra"]["tensor"], saved["extra"]["tensor"])
        assert torch.equal(again["model"]["weight"], saved["model"]["weight"])
    assert found > 150  # most of the file is content


def test_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    assert damage(str(tmp_path / "text.pth")) and damage(str(tmp_path / "none.pth"))


def saved_in_turn(folder, *names):
    one = checkpointer(folder)
    for seconds, name in enumerate(names):
        one.save(name)
        os.utime(folder / f"{name}.pth", (seconds, seconds))


def test_last_checkpoint(tmp_path):
    assert last_checkpoint("") == last_checkpoint(str(tmp_path)) == ""
    saved_in_turn(tmp_path, "model_0001", "step_0000012", "model_best")
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_best.pth")


def test_torn_last_checkpoint(tmp_path, caplog):
    """The one before it is used, then the one before that, with a warning that names the torn one."""
    saved_in_turn(tmp_path, "model_0002", "step_0000012", "model_0003")
    for torn, used in (("model_0003", "step_0000012"), ("step_0000012", "model_0002")):
        (tmp_path / f"{torn}.pth").write_bytes((tmp_path / f"{torn}.pth").read_bytes()[:-100])
        os.utime(tmp_path / f"{torn}.pth", (100, 100))
        caplog.clear()
        assert last_checkpoint(str(tmp_path)) == str(tmp_path / f"{used}.pth")
        assert f"{torn}.pth cannot be used" in caplog.text


@pytest.mark.parametrize("pointer", ["gone.pth", "", "../../etc/passwd", "model_0009.pth\n"])
def test_pointer_to_nowhere(tmp_path, caplog, pointer):
    saved_in_turn(tmp_path, "model_0001", "model_0002")
    (tmp_path / "last_checkpoint").write_text(pointer)
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_0002.pth")
    assert "cannot be used" in caplog.text


def test_nothing_whole_is_left(tmp_path, caplog):
    saved_in_turn(tmp_path, "model_0001")
    (tmp_path / "model_0001.pth").write_bytes(b"")
    torch.save({"model": {}}, tmp_path / "somebody_elses.pth")
    assert last_checkpoint(str(tmp_path)) == ""
    assert "starts from its beginning" in caplog.text


def test_without_a_pointer_there_is_nothing_to_go_on_from(tmp_path):
    one = checkpointer(tmp_path)
    one.save("model_0001")
    (tmp_path / "last_checkpoint").unlink()
    assert last_checkpoint(str(tmp_path)) == "" and (tmp_path / "model_0001.pth").exists()


def test_diverged_model_is_not_saved(tmp_path):
    one = checkpointer(tmp_path)
    one.save("model_0001")
    with torch.no_grad():
        one.model.bias[1] = float("nan")
    with pytest.raises(FloatingPointError, match="bias of the model is not finite.*model_0002.pth"):
        one.save("model_0002")
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_0001.pth")
    assert not (tmp_path / "model_0002.pth").exists()


def test_stamp_is_in_every_file(tmp_path):
    one = checkpointer(tmp_path)
    one.stamp = {"config": {"SEED": 3}}
    one.save("model", epoch=1)
    assert {key: load_checkpoint(tmp_path / "model.pth")[key] for key in ("config", "epoch")} == {
        "config": {"SEED": 3}, "epoch": 1,
    }  # fmt: skip


def test_resume_looks_before_it_loads(tmp_path):
    one = checkpointer(tmp_path, extra=State({"a": 1}))
    one.save("model", epoch=4)
    other = checkpointer(tmp_path, extra=State(None))
    before = other.model.weight.detach().clone()

    def refuse(checkpoint):
        raise ZeroDivisionError(checkpoint["epoch"])

    with pytest.raises(ZeroDivisionError, match="4"):
        other.resume(str(tmp_path / "model.pth"), refuse)
    assert torch.equal(other.model.weight, before) and other.checkpointables["extra"].value is None
    assert other.resume(str(tmp_path / "model.pth"), lambda checkpoint: None) == {"epoch": 4}
    assert torch.equal(other.model.weight, one.model.weight) and other.checkpointables["extra"].value == {
        "a": 1
    }


def test_bare_state_dict(tmp_path):
    linear = nn.Linear(2, 2)
    torch.save(linear.state_dict(), tmp_path / "bare.pth")
    one = checkpointer(tmp_path)
    one.load(str(tmp_path / "bare.pth"))
    assert torch.equal(one.model.weight, linear.weight)


def test_file_of_other_objects_is_refused(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "pickle.pth")
    with pytest.raises(Exception, match="holds an object of Python, torch.nn.modules.linear.Linear"):
        checkpointer(tmp_path).load(str(tmp_path / "pickle.pth"))


# ---- of the peers --------------------------------------------------------------------------------


def test_peers_load_strictly(finished, adaptation):
    """The host would skip what does not fit and go on with random weights."""
    path = str(finished.output / "model_final.pth")
    for opts, cause in (
        (("SSKD.NUM_PEERS", "3"), "an SSKD model of 2 peers"),
        (("SSKD.NUM_PEERS", "1"), "an SSKD model of 2 peers"),
        (("MODEL.BACKBONE.FEAT_DIM", "24"), "another depth or width"),
    ):  # fmt: skip
        model = AdaptationTrainer.build_model(adaptation(*opts))
        for load in (
            Checkpointer(model).load,
            lambda path, model=model: Checkpointer(model).resume(path, lambda saved: None),
        ):
            with pytest.raises(ValueError, match="another network") as error:
                load(path)
            assert cause in str(error.value) and len(str(error.value)) < 800


def test_peers_take_the_number_of_clusters_of_the_file(finished, adaptation):
    model = AdaptationTrainer.build_model(adaptation())
    assert model.students[0].num_classes == 1
    Checkpointer(model).load(str(finished.output / "model_final.pth"))
    saved = finished.final["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert model.teachers[1].num_classes == saved["teachers.1.heads.weight"].shape[0] > 1


def test_every_file_of_a_run_is_plain(finished):
    paths = sorted(finished.output.rglob("*.pth"))
    assert len(paths) >= 8
    for path in paths:
        assert load_checkpoint(path)["model"], path


def test_run_keeps_the_last_checkpoints(adaptation):
    cfg = adaptation("SOLVER.MAX_EPOCH", "4", "SSKD.ITERS_PER_EPOCH", "1", "TEST.EVAL_PERIOD", "0")
    made = AdaptationTrainer(cfg)
    made.train()
    names = sorted(name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".pth"))
    assert names == ["model_0001.pth", "model_0002.pth", "model_final.pth"]  # SSKD.KEEP_CHECKPOINTS: 2
    assert made.checkpointer.get_checkpoint_file().endswith("model_final.pth")


def test_plain_model_still_skips_what_does_not_fit(tmp_path):
    """Fine-tuning with another number of identities is the host's own use of it."""
    cfg = tiny_baseline(tmp_path / "one")
    made = Trainer(cfg)
    made.checkpointer.save("model", epoch=0)
    other = Trainer(tiny_baseline(tmp_path / "two", "MODEL.HEADS.NUM_CLASSES", "9"))
    other.checkpointer.load(str(tmp_path / "one" / "model.pth"), checkpointables=[])
    assert torch.equal(other.model.backbone[0].weight, made.model.backbone[0].weight)
    assert other.model.heads.weight.shape[0] == 9
