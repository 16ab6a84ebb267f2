"""What a trained model answers on images without labels: who is the same person, clusters, a gallery."""

from .cluster_folder import write_clusters
from .gallery import Gallery, model_fingerprint, read_gallery
from .search import Match, reranked_distance, search
from .threshold import PairCounts, Threshold, estimate_threshold, exported_threshold
