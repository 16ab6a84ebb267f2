"""Export a trained model: a plain fast-reid checkpoint, a graph for whoever runs it, features."""

from .baseline import export_baseline
from .consumers import CONSUMERS, Consumer
from .deployed import Deployed, deployed
from .graphs import export_graph
