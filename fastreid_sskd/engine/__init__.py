"""Trainers, hooks and the pipeline of both stages."""
from fastreid.engine import default_argument_parser

from .adaptation import AdaptationTrainer
from .checkpoint import Checkpointer
from .pipeline import evaluate, run, source_config, trainer_class
from .predict import predict
from .setup import load_config, resolve, seed_everything, setup
from .source import SourceTrainer
from .trainer import Trainer

__all__ = [
    "AdaptationTrainer",
    "Checkpointer",
    "SourceTrainer",
    "Trainer",
    "default_argument_parser",
    "evaluate",
    "load_config",
    "predict",
    "resolve",
    "run",
    "seed_everything",
    "setup",
    "source_config",
    "trainer_class",
]
