"""Checkpoints that are whole or not there, that load safely and strictly, and of which the last few are
kept.
"""

import os
import random
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from tiny_reid import load_checkpoint, tiny_baseline
from torch import nn

from fastreid_sskd.engine import AdaptationTrainer, Checkpointer, Trainer
from fastreid_sskd.engine.checkpoint import damage, last_checkpoint, random_state, restore_random_state


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
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 5])
    state = {"ordered": OrderedDict(a=1), "tuple": (1, [2]), "counter": Counter("aab")}
    checkpointer(tmp_path, lr_sched=scheduler, optimizer=optimizer, extra=State(state)).save("model")
    saved = load_checkpoint(tmp_path / "model.pth")
    assert saved["lr_sched"]["milestones"] == {2: 1, 5: 2}
    assert isinstance(scheduler.milestones, Counter)  # the scheduler's own is left alone
    assert type(saved["extra"]["ordered"]) is OrderedDict and saved["extra"]["tuple"] == (1, [2])
    assert type(saved["extra"]["counter"]) is dict and saved["extra"]["counter"] == {"a": 2, "b": 1}


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpointer("").save("model")
    assert checkpointer("").remove_all_but(1) == []
    Checkpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("model")
    assert os.listdir(tmp_path) == []


SAVED = "model_0018 model_0019 model_0000 step_0000002 step_0000004 model_best model_final"


@pytest.mark.parametrize("keep, kind, gone", [
    (2, "model", "model_0018"), (1, "model", "model_0018 model_0019"), (9, "model", ""),
    (1, "step", "step_0000002"), (0, "step", "step_0000002 step_0000004"),
])  # fmt: skip
def test_old_checkpoints_of_a_kind_go(tmp_path, keep, kind, gone):
    """Those of an earlier run first, which may be of later epochs: what was just written must stay."""
    saved_in_turn(tmp_path, *SAVED.split())
    one = checkpointer(tmp_path)
    assert [os.path.basename(path)[:-4] for path in one.remove_all_but(keep, kind)] == gone.split()
    left = {name[:-4] for name in os.listdir(tmp_path) if name.endswith("pth")}
    assert left == set(SAVED.split()) - set(gone.split()) and one.remove_all_but(keep, kind) == []
    assert os.path.exists(one.get_checkpoint_file())


# ---- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_torn_file_is_found(tmp_path, share):
    checkpointer(tmp_path, extra=State({"text": "x" * 1000, "tensor": torch.arange(1000)})).save("model")
    assert damage(str(tmp_path / "model.pth")) is None and damage(str(tmp_path / "none.pth"))
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
        (("SSKD.NUM_PEERS 3",), "an SSKD model of 2 peers"),
        (("SSKD.NUM_PEERS 1",), "an SSKD model of 2 peers"),
        (("MODEL.BACKBONE.FEAT_DIM 24",), "another depth or width"),
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
    cfg = adaptation("SOLVER.MAX_EPOCH 4", "SSKD.ITERS_PER_EPOCH 1", "TEST.EVAL_PERIOD 0")
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
    other = Trainer(tiny_baseline(tmp_path / "two", "MODEL.HEADS.NUM_CLASSES 9"))
    other.checkpointer.load(str(tmp_path / "one" / "model.pth"), checkpointables=[])
    assert torch.equal(other.model.backbone[0].weight, made.model.backbone[0].weight)
    assert other.model.heads.weight.shape[0] == 9


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(3).tolist()


@pytest.mark.parametrize("before", [0, 1, 700])
def test_numbers_go_on(tmp_path, before):
    """In the middle of a block, with a second normal number waiting in Python's and NumPy's too."""
    for _ in range(before):
        draw()
    torch.save(random_state(), tmp_path / "state.pth")
    expected = [draw() for _ in range(3)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_cuda_state_where_there_is_no_cuda(monkeypatch):
    """A run goes on on another machine: the other generators still do."""
    state = random_state()
    assert state["cuda"] is None
    state["cuda"] = torch.zeros(16, dtype=torch.uint8)
    expected = draw()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    restore_random_state(state)
    assert draw() == expected
