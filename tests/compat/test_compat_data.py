"""The host's data path after the patches."""

import itertools
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from own_processes import HANG, exit_status
from PIL import Image

from fastreid_sskd import compat
from fastreid_sskd.compat import data as compat_data
from fastreid_sskd.compat.data import SteadyLoader, to_tensor


def loader(cfg, items, workers):
    from fastreid.data import CommDataset, build_reid_train_loader
    from fastreid.data.samplers import TrainingSampler
    from fastreid.data.transforms import build_transforms

    data = CommDataset(items, build_transforms(cfg, is_train=True))
    sampler = TrainingSampler(len(items), shuffle=False, seed=0)
    return build_reid_train_loader(train_set=data, sampler=sampler, total_batch_size=4, num_workers=workers)


def stop(iterator):
    """End the workers now: after an error torch leaves that to the garbage collector, 5 s for each."""
    getattr(iterator, "_shutdown_workers", lambda: None)()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_hosts_builder_gives_a_plain_loader_on_the_cpu(cfg, items, workers):
    loaded = loader(cfg, items, workers)
    first, second = iter(loaded), iter(loaded)
    assert first is not second
    batch = next(first)
    assert batch["images"].shape == (4, 3, 64, 32)
    assert batch["images"].device.type == "cpu"
    assert (batch["targets"].tolist(), batch["camids"].tolist()) == ([0, 0, 0, 0], [0, 0, 1, 1])
    assert batch["img_paths"] == [item[0] for item in items[:4]]
    assert next(second)["img_paths"] == batch["img_paths"]
    assert next(first)["img_paths"] == [item[0] for item in items[4:8]]
    loaded.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept, error", [(500, OSError), (None, FileNotFoundError)], ids=["bad", "missing"])
def test_an_image_that_cannot_be_read_is_raised_with_its_name(cfg, items, workers, kept, error):
    path = Path(items[5][0])
    path.write_bytes(path.read_bytes()[:kept]) if kept else path.unlink()
    iterator = iter(loader(cfg, items, workers))
    next(iterator)
    with pytest.raises(error, match=path.name):
        next(iterator)
    stop(iterator)


def test_collate_keeps_text_and_stacks_the_rest(host):
    from fastreid.data.build import fast_batch_collator as collate

    sample = {
        "tensor": torch.arange(3.0),
        "array": np.arange(2),
        "scalar": np.float32(0.5),
        "int": 3,
        "float": 0.25,
        "text": "a.jpg",
        "path": Path("a.jpg"),
        "views": [torch.zeros(2), torch.ones(2)],
        "pair": (1, 2.0),
        "nested": {"name": "x", "value": True},
    }
    batch = collate([sample, sample])
    assert batch["tensor"].tolist() == [[0, 1, 2]] * 2
    assert batch["array"].tolist() == [[0, 1]] * 2
    assert batch["scalar"].tolist() == [0.5, 0.5]
    assert (batch["int"].dtype, batch["int"].tolist()) == (torch.int64, [3, 3])
    assert (batch["float"].dtype, batch["float"].tolist()) == (torch.float64, [0.25, 0.25])
    assert batch["text"] == ["a.jpg", "a.jpg"]
    assert batch["path"] == [Path("a.jpg")] * 2
    assert [view.shape for view in batch["views"]] == [(2, 2), (2, 2)]
    assert [values.tolist() for values in batch["pair"]] == [[1, 1], [2, 2]]
    assert batch["nested"]["name"] == ["x", "x"]
    assert batch["nested"]["value"].tolist() == [True, True]


def test_collate_refuses_what_the_host_turned_into_none(host):
    from fastreid.data.build import fast_batch_collator as collate

    with pytest.raises(TypeError):
        collate([object(), object()])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "1", "I", "F"])
def test_to_tensor_has_the_pixels_as_they_are(host, mode):
    from fastreid.data.transforms import ToTensor

    values = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    tensor = ToTensor()(image)
    expected = np.array([[image.getpixel((x, y)) for x in range(3)] for y in range(5)]).reshape(5, 3, -1)
    np.testing.assert_array_equal(tensor.numpy(), expected.transpose(2, 0, 1))
    assert tensor.dtype == (torch.int32 if mode == "I" else torch.float32)
    assert tensor.is_contiguous()


def test_to_tensor_of_arrays_copies():
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    values.setflags(write=False)
    tensor = to_tensor(values)
    np.testing.assert_array_equal(tensor.numpy(), values.transpose(2, 0, 1))
    tensor += 1
    assert values[0, 0, 0] == 0
    assert to_tensor(np.zeros((2, 3), dtype=np.int64)).shape == (1, 2, 3)
    floats = np.zeros((2, 3, 1), dtype=np.float32)
    to_tensor(floats).add_(1)
    assert floats.sum() == 0


@pytest.mark.parametrize("wrong", [[1, 2], np.zeros(3), np.zeros((1, 2, 3, 4))])
def test_to_tensor_refuses(wrong):
    with pytest.raises(TypeError):
        to_tensor(wrong)


def test_affine_works_in_the_hosts_transforms(cfg):
    from fastreid.data.transforms import build_transforms
    from torchvision import transforms

    cfg.INPUT.AFFINE.ENABLED = True
    built = build_transforms(cfg, is_train=True)
    affine = [step for step in built.transforms if isinstance(step, transforms.RandomAffine)]
    assert len(affine) == 1
    assert affine[0].interpolation == transforms.InterpolationMode.NEAREST
    assert built(Image.new("RGB", (32, 64), (255, 255, 255))).shape == (3, 64, 32)


def test_dataset_root_follows_the_variable(monkeypatch, host):
    from fastreid.data.build import _root

    monkeypatch.setenv("FASTREID_DATASETS", "/one")
    assert (compat.dataset_root(), os.path.join(_root, "a"), str(_root), _root + "/b") == (
        "/one",
        os.path.join("/one", "a"),
        "/one",
        "/one/b",
    )
    monkeypatch.setenv("FASTREID_DATASETS", "/two")
    assert os.path.join(_root, "a") == os.path.join("/two", "a")
    monkeypatch.setenv("FASTREID_DATASETS", "~/three")
    assert os.path.join(_root, "") == os.path.join(os.path.expanduser("~/three"), "")
    monkeypatch.delenv("FASTREID_DATASETS")
    assert os.fspath(_root) == "datasets"


def test_the_hosts_data_sets_take_the_root(monkeypatch, tmp_path, host):
    from fastreid.data.build import _root
    from fastreid.data.datasets import DATASET_REGISTRY

    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    folder = tmp_path / "Market-1501-v15.09.15"
    for part in ("bounding_box_train", "bounding_box_test", "query"):
        (folder / part).mkdir(parents=True)
        Image.new("RGB", (4, 8)).save(folder / part / "0001_c1s1_000001_00.jpg")
    data = DATASET_REGISTRY.get("Market1501")(root=_root)
    assert [len(data.train), len(data.query), len(data.gallery)] == [1, 1, 1]


def draw(sampler, count):
    """First indices of a sampler, or a failure instead of a hang."""
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(itertools.islice(iter(sampler), count)), daemon=True
    )
    thread.start()
    thread.join(HANG)
    assert len(found) == count, "the sampler hangs"
    return found


def source(*sizes):
    return [(f"{pid}_{k}.jpg", pid, k % 2) for pid, size in enumerate(sizes) for k in range(size)]


@pytest.mark.parametrize("name", ["BalancedIdentitySampler", "NaiveIdentitySampler"])
def test_samplers_refuse_what_they_would_loop_on(host, name):
    from fastreid.data import samplers

    sampler = getattr(samplers, name)
    data = source(4, 4, 4)
    labels = [data[index][1] for index in draw(sampler(data, 12, 4, seed=0), 24)]
    assert [len(set(labels[start : start + 12])) for start in (0, 12)] == [3, 3]
    with pytest.raises(
        ValueError, match=r"needs 4 identities of 4 images .* fill 3 .*lower SOLVER\.IMS_PER_BATCH"
    ):
        sampler(data, 16, 4, seed=0)
    with pytest.raises(
        ValueError,
        match="16 images cannot be split in whole identities of DATALOADER.NUM_INSTANCE = 3.*multiple of 3",
    ):
        sampler(data, 16, 3)
    with pytest.raises(ValueError, match="2 images cannot be split .* a multiple of 4"):
        sampler(data, 2, 4)
    with pytest.raises(ValueError, match="an identity takes 1 image or more"):
        sampler(data, mini_batch_size=8, num_instances=0)


def test_naive_sampler_in_two_processes(monkeypatch, host):
    from fastreid.data.samplers import NaiveIdentitySampler
    from fastreid.utils import comm

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(
        ValueError, match=r"needs 4 identities of 2 images \(2 a process, 2 processes\).* fill 2 "
    ):
        NaiveIdentitySampler(source(2, 3), 4, 2, seed=0)
    assert len(draw(NaiveIdentitySampler(source(4, 4), 4, 2, seed=0), 8)) == 8


class Numbers(torch.utils.data.Dataset):
    """As many as are asked for; each says whether the worker has been begun."""

    begun = False

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index, self.begun


def begin(worker):
    torch.utils.data.get_worker_info().dataset.begun = True


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_outlive_signals_of_others_and_end_for_their_reader(method):
    """Another process's are those of timeout, systemd, Slurm. The reader's own is how torch ends one that
    hangs.
    """
    loaded = SteadyLoader(
        Numbers(), batch_size=1, num_workers=2, worker_init_fn=begin, multiprocessing_context=method
    )
    before, iterator = signal.pthread_sigmask(signal.SIG_BLOCK, ()), iter(loaded)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    found, workers = [], iterator._workers
    for name in ("TERM", "INT"):  # when they are just born, and when they are at work
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
        found.append(next(iterator))
    subprocess.run(["kill", *(str(worker.pid) for worker in workers)], check=True)
    found += list(iterator)
    assert [int(index) for index, _ in found] == list(range(40)) and all(begun for _, begun in found)

    iterator = iter(loaded)
    next(iterator)
    for worker in iterator._workers:
        worker.terminate()
    for worker in iterator._workers:
        worker.join(HANG)
        assert worker.exitcode == 0
    stop(iterator)


def is_killed_before_its_workers_begin(folder):
    compat_data._LOOK_EVERY = 0.2
    iterator = iter(
        SteadyLoader(Numbers(), num_workers=2, worker_init_fn=begins_late, multiprocessing_context="fork")
    )
    for process in iterator._workers:
        (folder / str(process.pid)).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def begins_late(worker):
    time.sleep(1)


def is_killed_while_it_reads(folder):
    from torch.utils.data._utils import worker

    worker.MP_STATUS_CHECK_INTERVAL = 0.2  # instead of 5 s
    iterator = iter(SteadyLoader(Numbers(), num_workers=2, multiprocessing_context="fork"))
    next(iterator)
    for process in iterator._workers:
        (folder / str(process.pid)).touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("killed", [is_killed_while_it_reads, is_killed_before_its_workers_begin])
def test_workers_end_when_their_reader_is_gone(tmp_path, killed):
    assert exit_status(killed, tmp_path) == -signal.SIGKILL
    end = time.monotonic() + 60
    left = [path for path in tmp_path.iterdir()]
    assert len(left) == 2
    while left and time.monotonic() < end:
        left = [path for path in left if runs(path.name)]
        time.sleep(0.1)
    assert not left


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_workers():
    assert [int(index) for index, _ in SteadyLoader(Numbers(), batch_size=1)] == list(range(40))
