"""SSKD (arXiv 2009.05972) for fast-reid: adapt a person re-ID model to cameras it was not trained on.

Importing the package makes fast-reid 1.4.0 work on a current stack (``fastreid_sskd.compat``) and registers
the meta-architectures ``SSKD`` and ``SSKDSource``, the losses and the synthetic data sets in its registries.
"""

__version__ = "0.1.0"

import os

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
# The OpenMP runtimes read it when they are loaded, as torch's is by what follows.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from . import compat

compat.apply()

from . import data, losses, modeling
from .config import add_sskd_config

__all__ = [
    "Adaptation",
    "FeatureExtractor",
    "adapt",
    "add_sskd_config",
    "compat",
    "data",
    "load",
    "losses",
    "modeling",
]


def __getattr__(name: str):
    """The names of ``api``, whose trainers and loaders are imported when one is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
