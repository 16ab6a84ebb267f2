"""From a trained model to what others run: a plain fast-reid checkpoint, an ONNX graph, tables and pictures."""
from .baseline import export_baseline
from .deployed import Deployed, deployed
from .onnx_graph import export_onnx

__all__ = ["Deployed", "deployed", "export_baseline", "export_onnx"]
