"""Views, batches and loaders; importing it registers the synthetic pair of domains."""
from .crop_folder import CropFolder
from .crops import CropCache
from .items import Item, training_items
from .loaders import SourceLoader, TargetLoader, adaptation_loader, extraction_loader
from .multi_view import Draw, MultiViewDataset
from .samplers import IdentityBatches, ShuffledBatches
from .synthetic import SyntheticSource, SyntheticTarget

__all__ = [
    "CropCache", "CropFolder", "Draw", "IdentityBatches", "Item", "MultiViewDataset", "ShuffledBatches", "SourceLoader",
    "SyntheticSource", "SyntheticTarget", "TargetLoader", "adaptation_loader", "extraction_loader", "training_items",
]
