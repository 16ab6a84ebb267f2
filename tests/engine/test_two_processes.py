"""Runs of two processes beside the same run of one, whose batch norm sees the same halves of a batch."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from fastreid.utils import comm
from own_processes import HANG, together
from same_runs import assert_same_files, metrics
from tiny_reid import CONFIGS, TINY_TARGET, load_checkpoint, tiny_adaptation, tiny_baseline, tiny_source

from fastreid_sskd.benchmark import collect
from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.data import loaders
from fastreid_sskd.engine import AdaptationTrainer, evaluate, run
from fastreid_sskd.engine.checkpoint import last_checkpoint
from fastreid_sskd.engine.files import FolderInUseError, output_folder
from fastreid_sskd.processes import DisagreementError
from fastreid_sskd.processes.stop import EXIT_STOPPED

HALVES = ("SSKD.BN_CHUNK 4",)  # of batches of 8


def close(one, other, tolerance):
    """Largest difference of two models' floats, each relative to the tensor's largest value."""
    assert set(one) == set(other)
    worst = 0.0
    for name in one:
        a, b = one[name].double(), other[name].double()
        assert a.shape == b.shape, name
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / (1e-6 + b.abs().max())))
    assert worst < tolerance, worst


def final(cfg):
    return load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))


def at_step(cls, at, rank, action):
    """Do something before step `at` in one process, or in all (rank None)."""
    step = cls.run_step

    def run_step(self):
        if self.iter == at and rank in (None, comm.get_rank()):
            action()
        step(self)

    cls.run_step = run_step


# ---- beside one process --------------------------------------------------------------------------


def test_source_training(tmp_path):
    """Identity batches of the source, the target's images through batch norm, warm-up, evaluation."""
    one, two = tiny_source(tmp_path / "one", *HALVES), tiny_source(tmp_path / "two")
    run(one)
    assert together(run, two) == [0, 0]
    close(final(two)["model"], final(one)["model"], 1e-4)


@pytest.fixture(scope="module")
def pair(finished, world, tmp_path_factory):
    """An adaptation in one process and in two: their configs."""
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        sources = ("SSKD.SOURCE.WEIGHTS", str(finished.sources))
        one, two = (
            tiny_adaptation(folder / "one", *sources, *HALVES),
            tiny_adaptation(folder / "two", *sources),
        )
        run(one)
        assert together(run, two) == [0, 0]
    return one, two


def test_adaptation(pair):
    """Labels of both refreshes, students and teachers with their statistics, every number in metrics.json."""
    one, two = pair
    a, b = final(two), final(one)
    assert torch.equal(a["refresh"]["labels"], b["refresh"]["labels"])
    assert a["refresh"]["eps"] == pytest.approx(b["refresh"]["eps"], rel=1e-5)
    assert (a["processes"], b["processes"]) == (2, 1)
    close(a["model"], b["model"], 1e-3)
    for line, other in zip(metrics(two.OUTPUT_DIR), metrics(one.OUTPUT_DIR), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-3)
    with open(os.path.join(two.OUTPUT_DIR, "results.json"), encoding="utf-8") as file:
        assert [entry["epoch"] for entry in json.load(file)["evaluations"]] == [0, 1, 2]


@pytest.mark.parametrize("statistics", ["running", "student"])
def test_labels_that_are_not_the_releases(finished, adaptation, tmp_path, statistics):
    """A neck without statistics, cameras, a radius that is chosen, a temperature that is found."""
    state = {
        name: v
        for name, v in load_checkpoint(finished.sources[0])["model"].items()
        if name.startswith("backbone.")
    }
    torch.save(state, tmp_path / "backbone.pth")
    opts = (
        "SSKD.SOURCE.WEIGHTS",
        f"['{tmp_path / 'backbone.pth'}']",
        "SSKD.SOFT_LABELS.BN",
        statistics,
        "SSKD.SOFT_LABELS.TEMPERATURE 0.0",
        "SSKD.CLUSTER.CAMERA_STATISTICS True",
        "SSKD.CLUSTER.EPS_RULE plateau",
        "SSKD.CLUSTER.EPS_LARGEST_SHARE 0.3",
        "TEST.EVAL_PERIOD 0",
    )
    one, two = (
        adaptation(*opts, *more, output=tmp_path / name) for name, more in (("one", HALVES), ("two", ()))
    )
    run(one)
    assert together(run, two) == [0, 0]
    a, b = final(two), final(one)
    assert (
        torch.equal(a["refresh"]["labels"], b["refresh"]["labels"])
        and a["refresh"]["eps"] == b["refresh"]["eps"]
    )
    assert a["refresh"]["temperature"] == pytest.approx(b["refresh"]["temperature"], rel=1e-3)
    assert b["refresh"]["temperature"] != 1 and len(b["refresh"]["history"][0]["sweep"]) == 12
    close(a["model"], b["model"], 1e-3)


def test_other_halves_would_differ(pair, finished):
    """The comparison is a sharp one: batch norm over the whole batch is another run."""
    with pytest.raises(AssertionError):
        close(finished.final["model"], final(pair[1])["model"], 1e-2)


def test_per_process_losses(pair, adaptation, tmp_path):
    """Without gathering, multi-similarity and nuclear norm are of each process's share."""
    cfg = adaptation("SSKD.GATHER_LOSSES False", "SOLVER.MAX_EPOCH 1", output=tmp_path / "own")
    assert together(run, cfg) == [0, 0]
    mine, gathered = metrics(cfg.OUTPUT_DIR), metrics(pair[1].OUTPUT_DIR)
    first = [next(line for line in lines if "loss_ms_peer0" in line) for lines in (mine, gathered)]
    assert abs(first[0]["loss_nn_peer0"] - first[1]["loss_nn_peer0"]) > 1e-3
    # a mean over images either way
    assert first[0]["loss_id_peer0"] == pytest.approx(first[1]["loss_id_peer0"], rel=1e-4)


def test_same_seed_same_result(pair, adaptation, tmp_path):
    """With the same number of processes, bit for bit."""
    again = adaptation(output=tmp_path / "again")
    assert together(run, again) == [0, 0]
    assert_same_files(again.OUTPUT_DIR, pair[1].OUTPUT_DIR)


def test_plain_config(tmp_path):
    """The host's sampler deals the batches out; the losses are each process's own."""
    cfg = tiny_baseline(tmp_path, "DATALOADER.SAMPLER_TRAIN TrainingSampler")
    assert together(run, cfg) == [0, 0]
    lines = [line for line in metrics(tmp_path) if "total_loss" in line]
    assert len(lines) == 12 and lines[-1]["total_loss"] < lines[0]["total_loss"]
    assert final(cfg)["epoch"] == 1


def test_label_free_selection(adaptation, tmp_path):
    """The main process looks, all are told which teacher is best."""
    opts = ("SSKD.SELECT_BY silhouette", "SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0")
    one, two = (
        adaptation(*opts, *more, output=tmp_path / name) for name, more in (("one", HALVES), ("two", ()))
    )
    run(one)
    assert together(run, two) == [0, 0]
    a, b = final(two)["record"]["selected"], final(one)["record"]["selected"]
    assert a["score"] is not None and a == pytest.approx(b, rel=1e-2)
    assert final(two)["model"]["best_peer"] == a["peer"]


# ---- faults --------------------------------------------------------------------------------------


def killed_at(cfg, at, rank, resume=False):
    at_step(AdaptationTrainer, at, rank, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(cfg, resume=resume)


def resumed(cfg):
    run(cfg, resume=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_is_killed_ends_the_other(pair, adaptation, tmp_path, rank):
    """With an error, at once; resumed inside the epoch, both go on and end bit for bit as they would have."""
    cfg = adaptation("SSKD.CHECKPOINT_ITERS 1", output=tmp_path / "killed")
    statuses = together(killed_at, cfg, 4, rank)
    assert statuses[rank] == -signal.SIGKILL and statuses[1 - rank] not in (0, -signal.SIGKILL)
    assert os.path.basename(last_checkpoint(cfg.OUTPUT_DIR)) == "step_0000004.pth"
    assert together(resumed, cfg) == [0, 0]
    assert_same_files(cfg.OUTPUT_DIR, pair[1].OUTPUT_DIR)


def signalled_at(cfg, at, rank):
    at_step(AdaptationTrainer, at, rank, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(cfg)


def test_signal_to_one_process_stops_both(pair, adaptation, tmp_path):
    """After the same step, saved, with the status for it."""
    cfg = adaptation(output=tmp_path / "stopped")
    assert together(signalled_at, cfg, 1, 1) == [EXIT_STOPPED] * 2
    assert os.path.basename(last_checkpoint(cfg.OUTPUT_DIR)) == "step_0000002.pth"
    assert together(resumed, cfg) == [0, 0]
    assert_same_files(cfg.OUTPUT_DIR, pair[1].OUTPUT_DIR)


def disagrees(cfg):
    """The second process's student is another one before the second refresh."""

    def spoil():
        with torch.no_grad():
            made[0].model.students[1].backbone[0].weight += 1e-3

    made, before_epoch = [], AdaptationTrainer.before_epoch
    AdaptationTrainer.before_epoch = lambda self: made.append(self) or before_epoch(self)
    at_step(AdaptationTrainer, 2, 1, spoil)
    try:
        run(cfg)
    except DisagreementError as error:
        os._exit(7 if "students.1.backbone.0.weight differs" in str(error) else 8)


def test_processes_that_disagree(adaptation, tmp_path):
    cfg = adaptation("TEST.EVAL_PERIOD 0", output=tmp_path / "apart")
    assert together(disagrees, cfg) == [7, 7]


def unusable(cfg):
    try:
        run(cfg)
    except PseudoLabelError:
        os._exit(3)


def test_unusable_clusters_stop_both(adaptation, tmp_path):
    """The main process finds out, all raise the same."""
    cfg = adaptation("SSKD.CLUSTER.EPS 1e-9", output=tmp_path / "none")
    assert together(unusable, cfg) == [3, 3]


def refused(cfg):
    try:
        run(cfg)
    except FolderInUseError:
        os._exit(2)


def test_folder_in_use_is_told_to_all(adaptation, tmp_path):
    cfg = adaptation(output=tmp_path / "held")
    with output_folder(cfg.OUTPUT_DIR):
        assert together(refused, cfg) == [2, 2]


@pytest.mark.parametrize("at, inside", [(1, True), (2, False)])
def test_other_number_of_processes_goes_on(pair, adaptation, tmp_path, caplog, at, inside):
    """A checkpoint of two processes in one, inside an epoch and between two, with a warning."""
    cfg = adaptation("TEST.EVAL_PERIOD 0", output=tmp_path / "fewer")
    if inside:
        assert together(signalled_at, cfg, at, 0) == [EXIT_STOPPED] * 2
    else:
        assert together(
            run, adaptation("TEST.EVAL_PERIOD 0", "SOLVER.MAX_EPOCH 1", output=tmp_path / "fewer")
        ) == [0, 0]
    assert ("step" in load_checkpoint(last_checkpoint(cfg.OUTPUT_DIR))) == inside
    run(cfg, resume=True)
    (said,) = [record.message for record in caplog.records if "saved by 2 processes" in record.message]
    assert "resumed by 1: batch norm saw 4 images at once and sees 8 from now on" in said
    assert final(cfg)["epoch"] == 1


def test_table_counts_the_processes(pair):
    """Images that share batch-norm statistics: half a batch of 8 in each process, as in chunks of 4."""
    for cfg in pair:
        rows = [row for row in collect(cfg.OUTPUT_DIR) if row.epochs]
        assert rows and {row.images_per_bn for row in rows} == {4}


def signalled_in(cfg, call, rank):
    """In one process, before its batch number `call` of those that are only looked at."""
    on_device, calls = loaders._OnDevice._on_device, []

    def signalling(self, batch):
        calls.append(1)
        if len(calls) == call and comm.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return on_device(self, batch)

    loaders._OnDevice._on_device = signalling
    run(cfg)


# a process's shares are 2 batches of direct transfer and 3 of the refresh, then 2 of the evaluation and 3 of
# a refresh
@pytest.mark.parametrize("call, rank, at", [(1, 1, None), (4, 0, None), (6, 1, (-1, 3)), (9, 0, (0, None))])
def test_signal_to_one_process_outside_of_steps(pair, adaptation, tmp_path, call, rank, at):
    """In direct transfer, a refresh, an evaluation, the second refresh: both end with their shares."""
    cfg = adaptation("TEST.IMS_PER_BATCH 8", output=tmp_path / "stopped")
    assert together(signalled_in, cfg, call, rank) == [EXIT_STOPPED] * 2
    path = last_checkpoint(cfg.OUTPUT_DIR)
    saved = path and load_checkpoint(path)
    assert (saved and (saved["epoch"], saved.get("step"))) == (at or "")
    assert together(resumed, cfg) == [0, 0]
    assert_same_files(cfg.OUTPUT_DIR, pair[1].OUTPUT_DIR)


def fails_in_an_evaluation(cfg):
    """One process, in its features: the others have theirs already, or not yet."""

    def failing(self, batch):
        if comm.get_rank() == 1:
            raise FileNotFoundError("1.jpg is gone")
        return on_device(self, batch)

    on_device, loaders._OnDevice._on_device = loaders._OnDevice._on_device, failing
    try:
        evaluate(cfg)
    except FileNotFoundError as error:
        os._exit(7 if "1.jpg" in str(error) else 8)


def test_error_of_one_process_in_an_evaluation_is_raised_in_all(tmp_path):
    cfg = tiny_baseline(tmp_path, "SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0")
    run(cfg)
    cfg = tiny_baseline(tmp_path, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    assert together(fails_in_an_evaluation, cfg) == [7, 7]


# ---- more ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_processes(adaptation, tmp_path):
    """Batches of 16 in four shares, fewer to evaluate than processes; chunks of 4 in one process."""
    opts = ("SOLVER.IMS_PER_BATCH 16", "TEST.IMS_PER_BATCH 20")
    one, four = (
        adaptation(*opts, *more, output=tmp_path / name) for name, more in (("one", HALVES), ("four", ()))
    )
    run(one)
    assert together(run, four, world=4) == [0] * 4
    assert torch.equal(final(four)["refresh"]["labels"], final(one)["refresh"]["labels"])
    close(final(four)["model"], final(one)["model"], 1e-3)


def command(*arguments, **environment):
    root = CONFIGS.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--num-gpus", "torchrun"])
def test_as_a_command(finished, tmp_path, how):
    """From the command line: both launchers start two processes, whose run is that of `together`."""
    script = tmp_path / "train.py"  # the tool, with the tests' tiny network
    tool, tests = CONFIGS.parent / "tools" / "train_net.py", CONFIGS.parent / "tests"
    script.write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(tests)!r})\nimport tiny_reid\n"
        f"sys.argv[0] = {str(tool)!r}\nrunpy.run_path({str(tool)!r}, run_name='__main__')\n"
    )
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    start = start if how == "torchrun" else [str(script), "--num-gpus", "2"]
    opts = [*TINY_TARGET, "SSKD.SOURCE.WEIGHTS", str(finished.sources), "OUTPUT_DIR", str(tmp_path / "out")]
    done = command(*start, "--config-file", str(CONFIGS / "sskd_d2m.yml"), *opts)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_checkpoint(tmp_path / "out" / "model_final.pth")["processes"] == 2
    failed = command(
        *start, "--config-file", str(CONFIGS / "sskd_d2m.yml"), "--resume", *opts, "SOLVER.BASE_LR", "0.5"
    )
    assert failed.returncode == (2 if how == "--num-gpus" else 1)  # torchrun has a status of its own
    assert failed.stderr.count("SOLVER.BASE_LR: 0.00035 there, 0.5 here") == 1
