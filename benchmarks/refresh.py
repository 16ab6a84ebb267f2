#!/usr/bin/env python3
"""Measure the pseudo-label refresh, compared with one plain product of the features.

    benchmarks/refresh.py --images 5000 12936 32621 --dim 2048 --runs 5 --json refresh.json
    benchmarks/refresh.py --images 100000 --dim 256 --knn torch reduced

A case is a number of images, a variant and a k-NN search. Each runs in a process of its own, so that none
leaves memory or caches to the next: imports, compilation and seeded features first, then `--runs` times the
refresh and the plain float32 product X @ X.T in turn; medians are printed, and the ratio is the median of the
runs' ratios. Up to `--dense-up-to` images the dense formulas run once on the same features and their labels
are compared.

Memory is the highest resident size during the first refresh less the resident size before it, with imports
and features in place. On Linux the high-water mark is set back by /proc/self/clear_refs; where that is not
allowed, or there is no /proc, it is what the process's maximum (ru_maxrss) grew by, which is too low if
making the features reached higher.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from camera_features import camera_features
from dense_refresh import dense_refresh
from measure import ResidentMemory, described, machine
from tabulate import tabulate

from fastreid_sskd.clustering import KNN_BACKENDS, VARIANTS, pseudo_labels
from fastreid_sskd.clustering.diagnostics import bcubed, noise_as_singletons
from fastreid_sskd.engine.files import check_output, write_atomically

#: the product is made in one piece up to this many images, else in blocks of rows, which is no slower
PRODUCT_ROWS = 16384
MB = 1e6
#: columns of the table
STAGES = ("knn", "jaccard", "dbscan", "after_knn", "total")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 12936], help="N, one or more")
    parser.add_argument("--dim", type=int, default=2048, help="d, length of a feature")
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=["sskd"])
    parser.add_argument("--knn", nargs="+", choices=list(KNN_BACKENDS), default=["torch"])
    parser.add_argument("--runs", type=int, default=3, help="runs of refresh and product in turn")
    parser.add_argument("--device", default="cpu", help="of the search and the product")
    parser.add_argument("--seed", type=int, default=0, help="of the features")
    parser.add_argument(
        "--pairs-per-image", type=float, default=10.35, help="sets eps; 10.35 is rho 1.6e-3 at 12,936"
    )
    parser.add_argument("--k1", type=int, default=20)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--min-samples", type=int, default=4)
    parser.add_argument(
        "--dense-up-to", type=int, default=0, help="images up to which the dense formulas run too"
    )
    parser.add_argument(
        "--exact-up-to",
        type=int,
        default=200_000,
        help="images up to which labels of an approximate k-NN are compared with the exact ones",
    )
    parser.add_argument(
        "--product-up-to", type=int, default=200_000, help="images up to which X @ X.T is made"
    )
    parser.add_argument("--json", type=Path, help="file for everything measured")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # what a child process measures
    options = parser.parse_args()
    try:
        for path in filter(None, (options.json, options.markdown)):
            check_output(path)
    except ValueError as error:
        parser.error(str(error))
    return options


def timed(function) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def plain_product(features: np.ndarray, device: str):
    """A function that makes X @ X.T in float32, into memory that is there already."""
    x = torch.from_numpy(features).to(device)
    rows = len(x) if len(x) <= PRODUCT_ROWS else PRODUCT_ROWS // 4
    out = torch.zeros(rows, len(x), device=device)

    def product() -> None:
        for start in range(0, len(x), rows):
            block = x[start : start + rows]
            torch.mm(block, x.T, out=out[: len(block)])
        if x.is_cuda:
            torch.cuda.synchronize()

    return product


def agreement(labels: np.ndarray, identities: np.ndarray) -> dict[str, float]:
    """ARI and BCubed F; AMI's time grows with clusters x identities, which a million images forbid."""
    from sklearn.metrics import adjusted_rand_score

    clusters = noise_as_singletons(labels)
    return {
        "ARI": float(adjusted_rand_score(identities, clusters)),
        "BCubed F": bcubed(clusters, identities)[2],
    }


def measure(case: dict) -> dict:
    """One case, in this process."""
    options = {key: case[key] for key in ("k1", "k2", "variant", "min_samples", "knn")}
    count, runs, device = case["images"], case["runs"], case["device"]
    small, _ = camera_features(600, 32)
    pseudo_labels(small, device=device, pairs_per_image=3.0, **options)  # imports and compilation
    plain_product(small, device)()
    features, identities = camera_features(count, case["dim"], case["seed"])

    with_product = count <= case["product_up_to"]
    memory, peak, product = ResidentMemory(), 0, None
    refreshes, products = [], []
    for run in range(runs):
        result = pseudo_labels(features, device=device, pairs_per_image=case["pairs_per_image"], **options)
        if run == 0:
            peak = memory.peak()
            product = plain_product(features, device) if with_product else None
        refreshes.append(result)
        if with_product:
            products.append(timed(product))
    del product

    found = {key: case[key] for key in ("images", "dim", "variant", "knn", "runs", "device")}
    for kind in ("seconds", "cpu_seconds"):
        stages = {stage: _median(getattr(r, kind)[stage] for r in refreshes) for stage in result.seconds}
        total = _median(sum(getattr(r, kind).values()) for r in refreshes)
        after = _median(sum(getattr(r, kind).values()) - getattr(r, kind)["knn"] for r in refreshes)
        found[kind] = {**stages, "after_knn": after, "total": total}
    if with_product:
        found["product"] = {
            "seconds": _median(p[0] for p in products),
            "cpu_seconds": _median(p[1] for p in products),
        }
        walls = [sum(r.seconds.values()) for r in refreshes]
        found["wall_ratio"] = _median(wall / p[0] for wall, p in zip(walls, products, strict=True))
        processor = [sum(r.cpu_seconds.values()) for r in refreshes]
        found["cpu_ratio"] = _median(cpu / p[1] for cpu, p in zip(processor, products, strict=True))
    report = result.report
    found.update(
        peak_mb=peak / MB, memory_by=memory.method, eps=result.eps, clusters=report.num_clusters,
        noise_share=report.noise_share, largest=report.largest, identities=len(np.unique(identities)),
        agreement=agreement(result.labels, identities),
    )  # fmt: skip
    if result.recall is not None:
        found["recall"] = result.recall
        if count <= case["exact_up_to"]:
            exact = pseudo_labels(
                features, pairs_per_image=case["pairs_per_image"], **{**options, "knn": "torch"}
            )
            found["agreement_with_exact"] = agreement(result.labels, noise_as_singletons(exact.labels))
    elif count <= case["dense_up_to"]:
        found["dense"] = _compare_with_dense(features, result, options)
    return found


def _compare_with_dense(features: np.ndarray, result, options: dict) -> dict:
    from fastreid_sskd.clustering import jaccard_distance

    options = {key: options[key] for key in ("k1", "k2", "variant", "min_samples")}
    memory = ResidentMemory()
    labels, dense, seconds = dense_refresh(features, eps=result.eps, **options)
    peak = memory.peak()
    sparse = jaccard_distance(features, options["k1"], options["k2"], variant=options["variant"])
    worst = 0.0
    for i in range(len(dense)):
        row = np.ones(len(dense), dtype=np.float32)
        entries = slice(sparse.indptr[i], sparse.indptr[i + 1])
        row[sparse.indices[entries]] = sparse.data[entries]
        worst = max(worst, float(np.abs(dense[i] - row).max()))
    return {
        **seconds,
        "peak_mb": peak / MB,
        "largest_difference": worst,
        "labels_that_differ": int((labels != result.labels).sum()),
    }


def _median(values) -> float:
    return statistics.median(values)


def growth(cases: list[dict]) -> list[str]:
    """Exponents of the CPU time after the k-NN between sizes of the same variant, search and dimension."""
    found = []
    for small in cases:
        for large in cases:
            same = all(small[key] == large[key] for key in ("variant", "knn", "dim"))
            if same and large["images"] > small["images"]:
                ratio = large["cpu_seconds"]["after_knn"] / small["cpu_seconds"]["after_knn"]
                exponent = math.log(ratio) / math.log(large["images"] / small["images"])
                name = f"{small['variant']}/{small['knn']}"
                found.append(f"{name} {small['images']:,} to {large['images']:,}: {exponent:.2f}")
    return found


def table(cases: list[dict]) -> str:
    """The cases in Markdown; seconds are wall / CPU."""
    rows = []
    for case in cases:
        wall, cpu, product = case["seconds"], case["cpu_seconds"], case.get("product")
        dense, exact = case.get("dense"), case.get("agreement_with_exact")
        rows.append(
            {
                "N": f"{case['images']:,}",
                "d": case["dim"],
                "variant": case["variant"],
                "k-NN": case["knn"],
                **{stage: f"{wall[stage]:.2f} / {cpu[stage]:.2f}" for stage in STAGES},
                "X @ X.T": f"{product['seconds']:.2f} / {product['cpu_seconds']:.2f}" if product else "-",
                "ratio": f"{case['wall_ratio']:.2f} / {case['cpu_ratio']:.2f}" if product else "-",
                "peak MB": f"{case['peak_mb']:.0f}",
                "eps": f"{case['eps']:.3f}",
                "clusters (ids)": f"{case['clusters']:,} ({case['identities']:,})",
                "noise": f"{case['noise_share']:.1%}",
                "ARI": f"{case['agreement']['ARI']:.2f}",
                "recall": f"{case['recall']:.4f}" if "recall" in case else "exact",
                "ARI to exact": f"{exact['ARI']:.3f}" if exact else "-",
                "dense": f"{dense['distances'] + dense['dbscan']:.0f} / {dense['cpu']:.0f}" if dense else "-",
                "dense MB": f"{dense['peak_mb']:,.0f}" if dense else "-",
                "labels that differ": dense["labels_that_differ"] if dense else "-",
                "largest dJ": f"{dense['largest_difference']:.0e}" if dense else "-",
            }
        )
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def text(results: dict) -> str:
    """Machine, table and growth, in Markdown."""
    lines = [
        described(results["machine"]),
        "Seconds are wall / CPU (all threads), medians of the runs; peak MB is above imports and features.",
        "",
        table(results["cases"]),
    ]
    exponents = growth(results["cases"])
    if exponents:
        lines += ["", "Growth exponent of the CPU time after the k-NN: " + "; ".join(exponents) + "."]
    return "\n".join(lines)


def main() -> None:
    """Run every case in a child process and print the table; what is measured is saved after each."""
    options = parse_arguments()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    on_gpu = torch.device(options.device).type == "cuda"
    device = torch.cuda.get_device_name(options.device) if on_gpu else options.device
    results = {"machine": {**machine(), "device": device}, "cases": []}
    common = {
        key: getattr(options, key)
        for key in (
            "dim",
            "runs",
            "seed",
            "device",
            "pairs_per_image",
            "k1",
            "k2",
            "min_samples",
            "dense_up_to",
            "exact_up_to",
            "product_up_to",
        )
    }
    for images in options.images:
        for variant in options.variant:
            for knn in options.knn:
                case = json.dumps({"images": images, "variant": variant, "knn": knn, **common})
                command = [sys.executable, os.path.abspath(__file__), "--case", case]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results["cases"].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{images:,} images, {variant}, {knn}: done", file=sys.stderr, flush=True)
                if options.json:
                    write_atomically(
                        str(options.json), lambda file: file.write(json.dumps(results, indent=1).encode())
                    )
                if options.markdown:
                    write_atomically(
                        str(options.markdown), lambda file: file.write(f"{text(results)}\n".encode())
                    )
    print(text(results))


if __name__ == "__main__":
    main()
