"""Trainers, hooks and the pipeline of both stages."""

from fastreid.engine import default_argument_parser

from .checkpoint import Checkpointer
from .defaults import load_config, resolve, seed_everything, setup
from .pipeline import evaluate, predict, run, source_config, trainer_class
from .stages import AdaptationTrainer, SourceTrainer
from .trainer import Trainer
