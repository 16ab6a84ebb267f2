"""Export a trained model: a plain fast-reid checkpoint, an ONNX graph, files of features."""

from .baseline import export_baseline
from .deployed import Deployed, deployed
from .onnx_graph import export_onnx

__all__ = ["Deployed", "deployed", "export_baseline", "export_onnx"]
