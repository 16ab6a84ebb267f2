"""A synthetic pair of domains: drawn people, to try and test adaptation without a download."""

from .datasets import Sizes, SyntheticDataset, SyntheticSource, SyntheticTarget
from .domains import DOMAINS, SOURCE, TARGET, Domain, person_of, render

__all__ = [
    "DOMAINS",
    "SOURCE",
    "TARGET",
    "Domain",
    "Sizes",
    "SyntheticDataset",
    "SyntheticSource",
    "SyntheticTarget",
    "person_of",
    "render",
]
