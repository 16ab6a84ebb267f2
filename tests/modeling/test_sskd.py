"""The SSKD model: who learns what from whom, what teachers must not get, and what evaluation returns."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from torch import nn

from fastreid_sskd.engine.optimizer import build_optimizer
from fastreid_sskd.losses import build_loss_set
from fastreid_sskd.modeling import SSKD, Peer, ensemble_feature

from .conftest import METHOD
