"""How well the signals without labels choose an epoch, over finished runs that logged them."""

import os
import statistics
from collections.abc import Sequence

from scipy.stats import spearmanr
from tabulate import tabulate

from ..engine.events import LABEL_FREE, read_record
from .results import find_runs, read_scalars

_LAST = "the last epoch"


def selection_table(folders: Sequence[str]) -> str:
    """Compare what ``SSKD.SELECT_BY`` offers, and the last epoch, on all evaluated epochs of runs.

    A row a signal: the number of runs, the mean and the lowest rank correlation (Spearman) of the signal with
    mAP over the epochs of a run, the mean and the largest mAP lost against the run's best epoch, and in how
    many runs the epoch was below the start. mAP is that of the ensemble, or of the only teacher, on the first
    test set, in percent.

    Args:
        folders: run folders, or folders of runs. Runs without ``selection/`` in their metrics.json, or with
            less than two evaluated epochs, are left out and named below the table.
    """
    runs, skipped = [], []
    for run in dict.fromkeys(run for folder in folders for run in find_runs(folder)):
        epochs = _epochs(run)
        (runs if len(epochs) > 1 else skipped).append((run, epochs))
    if not runs:
        raise ValueError(
            f"no run in {', '.join(folders)} was evaluated and logged signals for two epochs: train with "
            "SSKD.SELECT_BY silhouette and SSKD.EVAL_PERIOD 1"
        )
    rows = [_row(name, [epochs for _, epochs in runs]) for name in (*LABEL_FREE, _LAST)]
    head = ("chosen by", "runs", "rank correlation", "lowest", "mAP lost", "largest", "below the start")
    text = tabulate(rows, head, tablefmt="github", disable_numparse=True)
    if skipped:
        text += f"\n\nLeft out, without signals of two epochs: {', '.join(run for run, _ in skipped)}."
    return text


def _epochs(run: str) -> dict[int, tuple[float, dict[str, float]]]:
    """{epochs done: (mAP, {signal: score})} of the states of a run that have both."""
    record = read_record(os.path.join(run, "results.json"))
    scalars = read_scalars(run)
    at = {iteration: int(epoch) for iteration, epoch in scalars.get("selection/epoch", [])}
    signals: dict[int, dict[str, float]] = {epoch: {} for epoch in at.values()}
    for name in ("silhouette", "noise_share", "changed_share", "score"):
        for iteration, value in scalars.get(f"selection/{name}", []):
            signals[at[iteration]][name] = value
    found = {}
    for entry in record["evaluations"] if record else ():
        # a state without a score has collapsed, and is never selected
        if "score" in signals.get(entry["epoch"], ()):
            of = entry["results"][record["tests"][0]]
            scores = {name: score(signals[entry["epoch"]]) for name, score in LABEL_FREE.items()}
            found[entry["epoch"]] = (of.get("ensemble", next(iter(of.values())))["mAP"], scores)
    return found


def _row(name: str, runs: Sequence[dict[int, tuple[float, dict[str, float]]]]) -> tuple:
    """One row of the table: what is chosen by a signal, or the last epoch."""
    correlations, lost, below = [], [], 0
    for epochs in runs:
        # the labels of the start have changed from none, so their stability says nothing
        candidates = [epoch for epoch in sorted(epochs) if epoch or name != "stability"]
        best = max(mAP for mAP, _ in epochs.values())
        if name == _LAST:
            chosen = candidates[-1]
        else:
            chosen = max(candidates, key=lambda epoch: epochs[epoch][1][name])
            scores = [epochs[epoch][1][name] for epoch in candidates]
            values = [epochs[epoch][0] for epoch in candidates]
            if len(set(scores)) > 1 and len(set(values)) > 1:
                correlations.append(float(spearmanr(scores, values).statistic))
        lost.append(best - epochs[chosen][0])
        below += 0 in epochs and epochs[chosen][0] < epochs[0][0]
    known = [statistics.mean(correlations), min(correlations)] if correlations else []
    figures = [f"{value:.2f}" for value in (*known, statistics.mean(lost), max(lost))]
    return (name, len(runs), *(figures if known else ("-", "-", *figures)), below)
