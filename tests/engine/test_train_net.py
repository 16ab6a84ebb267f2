"""The command line: tools/train_net.py."""

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from tiny_reid import CONFIGS, TINY_SOURCE, TINY_TARGET

from fastreid_sskd.engine import AdaptationTrainer, evaluate
from fastreid_sskd.tools.train_net import main, torchrun

TOOL = CONFIGS.parent / "tools" / "train_net.py"


def arguments(output, *opts, **flags):
    known = {"eval_only": False, "resume": False, "predict": None, "num_gpus": 1, "num_machines": 1}
    overrides = [*TINY_TARGET, "OUTPUT_DIR", str(output), *opts]
    return argparse.Namespace(config_file=str(CONFIGS / "sskd_d2m.yml"), opts=overrides, **{**known, **flags})


def test_adaptation_and_evaluation(finished, tmp_path, host_logging, capsys):
    start = ["SSKD.SOURCE.WEIGHTS", str(finished.sources)]
    assert main(arguments(tmp_path, *start)) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    assert record == finished.record
    assert main(arguments(tmp_path, *start, resume=True)) == 0
    assert (
        main(arguments(tmp_path / "eval", "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), eval_only=True))
        == 0
    )
    log = (tmp_path / "log.txt").read_text()
    assert "direct transfer" in log and "nothing left to train" in log and "Running with full config" in log
    table = (tmp_path / "eval" / "log.txt").read_text()
    value = record["evaluations"][-1]["results"]["Market1501"]["ensemble"]["mAP"]
    assert f"| Market1501 | ensemble  |  {value:.1f} |" in table


def test_unusable_clusters_exit_with_3(finished, tmp_path, host_logging, capsys):
    start = ["SSKD.SOURCE.WEIGHTS", str(finished.sources), "SSKD.CLUSTER.EPS", "1e-9"]
    assert main(arguments(tmp_path, *start)) == 3
    message = capsys.readouterr().err
    assert "0 clusters" in message and "SSKD.CLUSTER" in message and str(tmp_path) in message


def test_another_config_exits_with_2(finished, tmp_path, host_logging, capsys):
    """One sentence, and config.yaml stays that of the run."""
    start = ["SSKD.SOURCE.WEIGHTS", str(finished.sources), "TEST.EVAL_PERIOD", "0"]
    assert main(arguments(tmp_path, *start, "SOLVER.MAX_EPOCH", "1")) == 0
    before = (tmp_path / "config.yaml").read_text()
    assert main(arguments(tmp_path, *start, "SOLVER.BASE_LR", "0.5", resume=True)) == 2
    assert "SOLVER.BASE_LR: 0.00035 there, 0.5 here" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == before


def test_folder_in_use_exits_with_2(finished, tmp_path, host_logging, capsys):
    """And is left as it is; what only reads a model may be done beside a run."""
    with open(tmp_path / ".lock", "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(arguments(tmp_path)) == 2
        assert "another run writes into" in capsys.readouterr().err
        assert os.listdir(tmp_path) == [".lock"]
        weights = str(finished.output / "model_final.pth")
        assert main(arguments(tmp_path, "MODEL.WEIGHTS", weights, eval_only=True)) == 0


def test_signal_exits_with_4(finished, tmp_path, host_logging, monkeypatch):
    step = AdaptationTrainer.run_step
    monkeypatch.setattr(
        AdaptationTrainer,
        "run_step",
        lambda self: (step(self), self.iter == 1 and os.kill(os.getpid(), signal.SIGTERM)),
    )
    start = ["SSKD.SOURCE.WEIGHTS", str(finished.sources), "TEST.EVAL_PERIOD", "0"]
    with pytest.raises(SystemExit) as raised:
        main(arguments(tmp_path, *start))
    assert raised.value.code == 4
    assert "--resume continues" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "last_checkpoint").read_text() == "step_0000002.pth"


@pytest.mark.slow
def test_as_a_command(tmp_path, world):
    """A ResNet-18 from scratch to the end; then the numbers again by --eval-only."""
    resnet = [
        "MODEL.BACKBONE.NAME",
        "build_resnet_backbone",
        "MODEL.BACKBONE.DEPTH",
        "18x",
        "MODEL.BACKBONE.FEAT_DIM",
        "512",
    ]
    opts = [
        *TINY_TARGET,
        *resnet,
        "SSKD.NUM_PEERS",
        "1",
        "SOLVER.MAX_EPOCH",
        "1",
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    source = str(
        [*TINY_SOURCE[-6:], "SSKD.ITERS_PER_EPOCH", "1", "SOLVER.MAX_EPOCH", "1", "SOLVER.IMS_PER_BATCH", "8"]
    )
    command = [sys.executable, str(TOOL), "--config-file", str(CONFIGS / "sskd_d2m.yml")]
    env = {**os.environ, "FASTREID_DATASETS": str(world)}

    def call(*arguments):
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    call(*opts, "SSKD.SOURCE.OPTS", source)
    assert (tmp_path / "source" / "peer0" / "model_final.pth").is_file()
    record = json.loads((tmp_path / "results.json").read_text())
    assert [entry["epoch"] for entry in record["evaluations"]] == [0, 1]
    call(
        "--eval-only",
        *opts,
        "MODEL.WEIGHTS",
        str(tmp_path / "model_final.pth"),
        "OUTPUT_DIR",
        str(tmp_path / "eval"),
    )
    value = record["evaluations"][-1]["results"]["Market1501"]["teacher0"]["mAP"]
    assert f"| Market1501 | teacher0  |  {value:.1f} |" in (tmp_path / "eval" / "log.txt").read_text()


def test_prediction_is_a_command_of_its_own(tmp_path, capsys):
    assert main(arguments(tmp_path, predict="crops")) == 2
    assert "tools/predict.py --config-file FILE --images FOLDER" in capsys.readouterr().err and not list(
        tmp_path.iterdir()
    )


@pytest.mark.parametrize(
    "url, machine_0", [("tcp://10.0.0.7:29511", "10.0.0.7:29511"), ("tcp://127.0.0.1:50152", "HOST_OF_ONE")]
)
def test_several_machines_are_told_the_command_of_torchrun(tmp_path, capsys, url, machine_0):
    """It holds all that was asked for, and can be copied."""
    args = arguments(
        tmp_path, "SSKD.SOURCE.WEIGHTS", "['a b.pth']", num_gpus=4, num_machines=2, dist_url=url, resume=True
    )
    assert main(args) == 2
    first, command = capsys.readouterr().err.splitlines()
    assert "several machines are started by torchrun" in first
    found = shlex.split(command)
    assert found[:3] == ["torchrun", "--nnodes=2", "--nproc-per-node=4"] and any(
        machine_0 in word for word in found[3:5]
    )
    assert found[found.index("--config-file") + 1 :] == [args.config_file, "--resume", *args.opts]


def test_torchrun_gets_the_program_and_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/an/environment/fastreid-sskd train"])
    found = shlex.split(torchrun(arguments(tmp_path, num_machines=2, dist_url="tcp://127.0.0.1:50152")))
    at = found.index("--config-file")
    assert found[at - 2 : at] == ["/an/environment/fastreid-sskd", "train"]


def test_evaluation_of_nothing(finished):
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS"):
        evaluate(finished.cfg)


@pytest.mark.parametrize(
    "opts, said",
    [
        (("SSKD.CLUSTER.EPSS", "1"), "SSKD.CLUSTER.EPSS"),
        (("SEED", "1", "--resume"), "options go before them"),
        (("SEED", "x"), "SEED"),
        (("MODEL.DEVICE", "gpu"), "MODEL.DEVICE"),
        (("SOLVER.OPT", "adam"), "nearest that there is: Adam"),
        (("SSKD.CLUSTER.EPS", "-1"), "SSKD.CLUSTER.EPS must be"),
        (("MODEL.BACKBONE.NAME", "resnet"), "MODEL.BACKBONE.NAME must be one of"),
        (("SSKD.SOURCE.CONFIG", "missing.yml"), "missing.yml' not found"),
        (("SSKD.SOURCE.WEIGHTS", "missing.pth"), "no file missing.pth"),
        (("MODEL.WEIGHTS", "missing.pth"), "MODEL.WEIGHTS 'missing.pth' not found"),
        (("SSKD.PEERS", "missing.yml"), "missing.yml' not found"),
        (("DATASETS.NAMES", "MSMT17"), "data set MSMT17"),
        (("OUTPUT_DIR", ""), "OUTPUT_DIR is empty"),
    ],
)  # fmt: skip
def test_what_is_refused_exits_with_2_in_one_message(tmp_path, capsys, opts, said):
    assert main(arguments(tmp_path, *opts)) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [{}, {"eval_only": True}], ids=["train", "evaluate"])
def test_output_folders_that_cannot_be(finished, data_sets, tmp_path, host_logging, capsys, flags):
    (tmp_path / "file").touch()
    weights = ["MODEL.WEIGHTS", str(finished.output / "model_final.pth")]
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/1/task/none"):
        assert main(arguments(place, *weights, **flags)) == 2
        shown = capsys.readouterr().err
        assert str(place) in shown and "OUTPUT_DIR" in shown and shown.count("\n") == 1


def test_evaluation_that_is_refused(finished, tmp_path, host_logging, capsys):
    """Without a word in the folder."""
    weights = ["MODEL.WEIGHTS", str(finished.output / "model_final.pth")]
    assert main(arguments(tmp_path, eval_only=True)) == 2
    assert "a trained model is needed" in capsys.readouterr().err and not list(tmp_path.iterdir())
    for opts, said in (
        (["DATASETS.TESTS", "()"], "DATASETS.TESTS is empty"),
        (["TEST.METRIC", "cosinus"], "TEST.METRIC must be"),
        (["DATASETS.TESTS", "MSMT17"], "data set MSMT17"), (["MODEL.HEADS.NAME", "Head"], "MODEL.HEADS.NAME"),
    ):  # fmt: skip
        assert main(arguments(tmp_path, *weights, *opts, eval_only=True)) == 2
        assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_weights_that_are_refused_leave_the_folder_to_its_run(finished, tmp_path, host_logging, capsys):
    start = ["SSKD.SOURCE.WEIGHTS", str(finished.sources), "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_EPOCH", "1"]
    assert main(arguments(tmp_path, *start)) == 0
    before = (tmp_path / "config.yaml").read_text()
    (tmp_path / "text.pth").write_text("hello")
    assert main(arguments(tmp_path, *start, "SSKD.SOURCE.WEIGHTS", str(tmp_path / "text.pth"))) == 2
    assert "text.pth" in capsys.readouterr().err and (tmp_path / "config.yaml").read_text() == before


def test_a_failure_while_training_has_its_traceback(finished, tmp_path, host_logging, monkeypatch):
    def fail(self):
        raise ValueError("deep inside")

    monkeypatch.setattr(AdaptationTrainer, "run_step", fail)
    with pytest.raises(ValueError, match="deep inside"):
        main(arguments(tmp_path, "SSKD.SOURCE.WEIGHTS", str(finished.sources), "TEST.EVAL_PERIOD", "0"))


@pytest.mark.slow
def test_several_processes_say_it_once(tmp_path):
    """Each of them refuses: the tiny backbone is registered in this process only."""
    command = [sys.executable, str(TOOL), "--config-file", str(CONFIGS / "sskd_d2m.yml"), "--num-gpus", "2"]
    done = subprocess.run(
        [*command, *TINY_TARGET, "OUTPUT_DIR", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 2
        and done.stderr.count("MODEL.BACKBONE.NAME must be one of") == 1
        and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "out").exists()
