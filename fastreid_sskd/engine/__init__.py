"""Trainers, hooks and the pipeline of both stages."""
from .adaptation import AdaptationTrainer
from .checkpoint import Checkpointer
from .pipeline import evaluate, run, source_config, trainer_class
from .setup import load_config, seed_everything, setup
from .source import SourceTrainer
from .trainer import Trainer

__all__ = [
    "AdaptationTrainer", "Checkpointer", "SourceTrainer", "Trainer", "evaluate", "load_config", "run",
    "seed_everything", "setup", "source_config", "trainer_class",
]
