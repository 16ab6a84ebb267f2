"""SSKD (arXiv 2009.05972) for fast-reid: adapt a person re-ID model to cameras it was not trained on.

Importing the package makes fast-reid 1.4.0 work on a current stack (``fastreid_sskd.compat``) and registers
the meta-architectures ``SSKD`` and ``SSKDSource``, the losses and the synthetic data sets in its registries.
"""

__version__ = "0.1.0"

from . import compat

compat.apply()

from . import data, losses, modeling
from .config import add_sskd_config

__all__ = ["add_sskd_config", "compat", "data", "losses", "modeling"]
