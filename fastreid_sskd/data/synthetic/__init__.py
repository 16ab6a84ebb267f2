"""A synthetic pair of domains: drawn people, to try and test adaptation without a download."""

from .datasets import Sizes, SyntheticDataset, SyntheticSource, SyntheticTarget
from .domains import DOMAINS, SOURCE, TARGET, Domain, person_of, render
