"""Data sets, batches, views and loaders; importing it registers the synthetic pair of domains."""

from .datasets import CropFolder, Item
from .items import training_items
from .loaders import SourceLoader, TargetLoader, adaptation_loader, extraction_loader
from .samplers import Draw, IdentityBatches, ShuffledBatches
from .synthetic import SyntheticSource, SyntheticTarget
from .tracklets import Tracklets
from .views import CropCache, MultiViewDataset
