"""From the command line to a frozen config, and seeds."""

import argparse
import os
import platform
import random
import resource

import numpy as np
import pytest
import torch
import yaml
from tiny_reid import CONFIGS, TINY_TARGET, tiny_source

from fastreid_sskd.engine import load_config, resolve, run, seed_everything, setup
from fastreid_sskd.engine.defaults import start_run, use_device, without_pretraining


def arguments(config_file="", *opts):
    return argparse.Namespace(config_file=config_file, opts=list(opts), eval_only=False)


def test_source_config_is_relative_to_the_file_that_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = str(CONFIGS / "source_m2d.yml")
    assert load_config(str(CONFIGS / "sskd_m2d.yml")).SSKD.SOURCE.CONFIG == expected
    # on the command line to the working directory
    cfg = load_config(str(CONFIGS / "sskd_m2d.yml"), ["SSKD.SOURCE.CONFIG", "own.yml"])
    assert cfg.SSKD.SOURCE.CONFIG == str(tmp_path / "own.yml")
    monkeypatch.chdir(CONFIGS)
    assert load_config("sskd_m2d.yml").SSKD.SOURCE.CONFIG == expected
    assert load_config("").SSKD.SOURCE.CONFIG == ""


def test_setup(tmp_path, host_logging):
    cfg = setup(arguments(str(CONFIGS / "sskd_d2m.yml"), *TINY_TARGET, "OUTPUT_DIR", str(tmp_path / "out")))
    assert cfg.is_frozen()
    assert torch.initial_seed() == 1 == cfg.SEED
    assert {"config.yaml", "log.txt"} <= set(os.listdir(tmp_path / "out"))


def test_run_can_be_repeated_from_the_config_it_wrote(tmp_path, host_logging, monkeypatch):
    cfg = setup(arguments(str(CONFIGS / "sskd_d2m.yml"), *TINY_TARGET, "OUTPUT_DIR", str(tmp_path / "out")))
    monkeypatch.chdir(tmp_path)
    again = load_config(str(tmp_path / "out" / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert os.path.isfile(again.SSKD.SOURCE.CONFIG)


def test_seed_that_is_not_given_is_drawn_and_written_down(tmp_path, host_logging):
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    cfg = setup(arguments("", *opts))
    assert cfg.SEED >= 0 and torch.initial_seed() == cfg.SEED
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SEED"] == cfg.SEED
    assert setup(arguments("", *opts)).SEED != cfg.SEED


def test_device_that_is_not_there(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config("", ["MODEL.DEVICE", "cuda:0", "SEED", "3"])
    assert resolve(cfg).MODEL.DEVICE == "cpu" and cfg.SEED == 3
    assert "MODEL.DEVICE is cuda:0, and torch finds no CUDA device: the CPU is used" in caplog.text
    caplog.clear()
    resolve(load_config("", ["MODEL.DEVICE", "cpu"]))
    assert not caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve(load_config("", ["MODEL.DEVICE", "cuda:0"])).MODEL.DEVICE == "cuda:0"
    with pytest.raises(ValueError, match="such as cpu, cuda or cuda:1; got 'gpu'"):
        resolve(load_config("", ["MODEL.DEVICE", "gpu"]))


def test_resumed_run_keeps_the_seed_that_it_drew(tmp_path, host_logging):
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    first = setup(arguments("", *opts)).SEED
    again = arguments("", *opts)
    again.resume = True
    assert setup(again).SEED == first
    given = arguments("", *opts, "SEED", "7")
    given.resume = True
    assert setup(given).SEED == 7


@pytest.fixture
def flags():
    """Torch's settings, as they were."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


def test_deterministic_mode(tmp_path, flags, monkeypatch):
    """Both trainings work in it, and a kernel that is not deterministic is an error."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    run(tiny_source(tmp_path, "SSKD.DETERMINISTIC", "True", "SOLVER.MAX_EPOCH", "1"))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1])
def test_all_generators_are_seeded(seed):
    found = []
    for _ in range(2):
        seed_everything(seed)
        found.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert found[0] == found[1]


def test_without_pretraining():
    cfg = load_config("", ["MODEL.BACKBONE.PRETRAIN", "True"])
    cfg.freeze()
    assert without_pretraining(cfg).MODEL.BACKBONE.PRETRAIN is False
    assert cfg.MODEL.BACKBONE.PRETRAIN is True and cfg.is_frozen()


@pytest.mark.parametrize("device, expected", [("cuda:1", [1]), ("cuda", []), ("cpu", [])])
def test_a_device_named_by_its_number_becomes_the_current_one(monkeypatch, device, expected):
    found = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda named: found.append(named.index))
    use_device(device)
    assert found == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_cpu_keeps_freed_memory():
    """The pages of 64 MB, 16,384 of 4 kB, are asked for once or twice, not each time."""
    use_device("cpu")
    for _ in range(4):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000


def test_config_of_a_finished_run_stays(tmp_path, host_logging):
    """An evaluation in the run's own folder may have other settings; config.yaml stays the run's."""
    first = arguments("", "OUTPUT_DIR", str(tmp_path), "SEED", "1", "SOLVER.MAX_EPOCH", "7")
    setup(first)
    before = (tmp_path / "config.yaml").read_bytes()
    for flags in ({"eval_only": True}, {"eval_only": False, "predict": "images"}):
        given = argparse.Namespace(
            config_file="", opts=["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_EPOCH", "9", "SEED", "2"], **flags
        )
        assert setup(given).SOLVER.MAX_EPOCH == 9
        assert (tmp_path / "config.yaml").read_bytes() == before
    another = setup(arguments("", "OUTPUT_DIR", str(tmp_path), "SEED", "1", "SOLVER.MAX_EPOCH", "8"))
    assert (tmp_path / "config.yaml").read_bytes() == before  # it may still be refused
    start_run(another, from_scratch=True)
    assert b"MAX_EPOCH: 8" in (tmp_path / "config.yaml").read_bytes()


@pytest.mark.parametrize("given", ["1", 1, "ensemble", "'1'"])
def test_peers_number_as_an_override(given):
    assert load_config("", ["SSKD.NUM_PEERS", "2", "SSKD.EVAL_WITH", given]).SSKD.EVAL_WITH == str(
        given
    ).strip("'")


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SEED", "1", "--resume"], "--resume stands among the KEY value pairs: options go before them"),
        (["--num-gpus", "1", "SEED", "1"], "--num-gpus stands among"),
        (["SEED.X", "1"], "a value, not a section"),
        (["SEED=1"], "'SEED=1' is no key of the config: write KEY value, not KEY=value"),
    ],
)
def test_habits_of_the_command_line(opts, message):
    with pytest.raises(ValueError, match=message):
        load_config("", opts)


def test_a_file_that_is_no_config(tmp_path):
    (tmp_path / "bad.yml").write_text("MODEL: {DEVICE: cpu\nSEED: [")
    with pytest.raises(ValueError, match="bad.yml' is no YAML, line 2"):
        load_config(str(tmp_path / "bad.yml"))
