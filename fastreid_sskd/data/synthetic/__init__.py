"""A synthetic pair of domains: drawn people, to try and test adaptation without a download."""

from .datasets import SyntheticDataset, SyntheticSource, SyntheticTarget
from .domains import DOMAINS, SOURCE, TARGET, Domain, person_of, render
from .layout import Sizes

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
