"""k-means of the features themselves, by scikit-learn; the number of clusters has to be known."""

from __future__ import annotations

import numpy as np

from .methods import ClusterProblem, numbered, register_clustering


def check_num_clusters(num_clusters: int, num_images: int) -> None:
    """Refuse a number of clusters that k-means cannot find.

    Raises:
        ValueError: it is not in 2..N.
    """
    if not 2 <= num_clusters <= num_images:
        raise ValueError(
            f"k-means needs a number of clusters in 2..{num_images} (images), got {num_clusters}: set "
            "SSKD.CLUSTER.NUM_CLUSTERS"
        )


@register_clustering("kmeans", uses="features")
def kmeans(problem: ClusterProblem) -> np.ndarray:
    """Mini-batch k-means (Sculley, WWW 2010) of the unit features; no noise, the same for the same seed.

    A cluster that ends up without images is left out.

    Raises:
        ValueError: num_clusters is not in 2..N.
    """
    from sklearn.cluster import MiniBatchKMeans  # slow to import

    count = len(problem.rows)
    check_num_clusters(problem.num_clusters, count)
    features = problem.rows.block(0, count).cpu().numpy()
    clusterer = MiniBatchKMeans(
        problem.num_clusters, batch_size=max(1024, 2 * problem.num_clusters), n_init=1, random_state=problem.seed
    )
    return numbered(clusterer.fit_predict(features))
