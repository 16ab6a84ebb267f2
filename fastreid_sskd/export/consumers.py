"""Trackers and runtimes that take an exported model: the file of each, and what each does with a crop.

What a consumer does is written down here from reading its package or its documentation, apart from what
:mod:`.deployed` puts into the file: an export is compared with the model's evaluation through both.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..data.views import read_image


def bilinear(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize (h, w, 3) to (H, W, 3), float32, from the four nearest pixels and without smoothing.

    So do torch's ``interpolate`` and OpenCV's ``INTER_LINEAR``.
    """
    planes = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None]
    return F.interpolate(planes, tuple(size), mode="bilinear")[0].permute(1, 2, 0).numpy()


def bilinear_8bit(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """:func:`bilinear` of 8-bit values, rounded, as OpenCV resizes them."""
    return np.floor(bilinear(image, size) + 0.5)


@dataclasses.dataclass(frozen=True)
class Consumer:
    """The file that a consumer loads, and what it does with a crop before it gives it to the graph.

    Attributes:
        name: on the command line and in the name of the file with its configuration.
        formats: those it loads, the default first.
        pixels, colours, unit_length: of the graph, see :func:`.deployed.deployed`.
        names: of the graph's input and output.
        batch: images that the graph takes at once; 0: any number.
        resize: maps a crop (h, w, 3), BGR of 0..255, to (H, W, 3). None: as evaluation does.
        scale: maps that to the values of the graph's input (H, W, 3), in its order of colours.
        side_car: maps (H, W) to what the consumer reads as JSON in ``FILE.metadata.json``.
        snippet: its configuration, where ``@FILE``, ``@HEIGHT``, ``@WIDTH`` and ``@DIM`` stand for the
            export's path in quotes, size, and values of a feature.
    """

    name: str
    formats: tuple[str, ...]
    pixels: str = "0-255"
    colours: str = "RGB"
    unit_length: bool = False
    names: tuple[str, str] = ("images", "features")
    batch: int = 0
    resize: Callable[[np.ndarray, Sequence[int]], np.ndarray] | None = None
    scale: Callable[[np.ndarray], np.ndarray] | None = None
    side_car: Callable[[Sequence[int]], dict] | None = None
    snippet: str = ""

    def read(self, paths: Sequence[str], size: Sequence[int]) -> tuple[torch.Tensor, np.ndarray]:
        """Read image files of crops as the consumer does.

        Returns:
            Its resized images (N, 3, H, W), but RGB of 0..255 as evaluation takes them, and the values that
            it gives to the graph, of that shape and float32.
        """
        resized = [self.resize(np.asarray(read_image(path))[:, :, ::-1], size) for path in paths]
        given = np.stack([self.scale(image) for image in resized]).astype(np.float32)
        images = np.stack([image[:, :, ::-1] for image in resized])
        return torch.from_numpy(images).permute(0, 3, 1, 2), np.ascontiguousarray(given.transpose(0, 3, 1, 2))

    def side_files(self, path: str) -> list[str]:
        """The paths of the snippet and of the side-car of an export, where there are any."""
        snippet = [f"{path}.{self.name}.txt"] if self.snippet else []
        return snippet + ([f"{path}.metadata.json"] if self.side_car else [])

    def side_texts(self, path: str, size: Sequence[int], dim: int) -> list[str]:
        """What goes into the files of :meth:`side_files`."""
        texts = [self.snippet] if self.snippet else []
        for key, value in {
            "FILE": json.dumps(os.path.abspath(path), ensure_ascii=False),  # quoted for a shell, YAML, Python
            "HEIGHT": size[0],
            "WIDTH": size[1],
            "DIM": dim,
        }.items():
            texts = [text.replace(f"@{key}", str(value)) for text in texts]
        return texts + ([json.dumps(self.side_car(size), indent=2) + "\n"] if self.side_car else [])


#: whoever reads what it takes
ANYONE = Consumer(name="", formats=("onnx", "torchscript", "openvino", "fastreid"))

_LISTED = (
    Consumer(
        name="boxmot",
        formats=("onnx", "torchscript", "openvino"),
        pixels="imagenet",
        names=("images", "output"),
        resize=bilinear_8bit,
        scale=lambda bgr: (bgr[:, :, ::-1] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225),
        # without it, a format that does not say its size gets crops of 256 x 128
        side_car=lambda size: {
            "schema_version": 1,
            "model_name": "fastreid_sskd",
            "preprocess": "resize",
            "model_kwargs": {"img_size": list(size)},
        },
        snippet="""\
# BoxMOT: the file is its re-ID model; it divides features by their length itself.
boxmot track --tracker botsort --reid @FILE
""",
    ),
    Consumer(
        name="ultralytics",
        formats=("onnx",),  # of the others it does not read the size, and resizes to 224 x 224
        pixels="0-1",
        names=("images", "output"),
        resize=bilinear,  # after the division by 255, which is the same
        scale=lambda bgr: bgr[:, :, ::-1] / 255,
        snippet="""\
# ultralytics: in a copy of its botsort.yaml, deepocsort.yaml or tracktrack.yaml, given as tracker=COPY
with_reid: True
model: @FILE
""",
    ),
    Consumer(
        name="deepstream",
        formats=("onnx",),
        names=("images", "output"),
        resize=bilinear_8bit,
        scale=lambda bgr: 1.0 * (bgr[:, :, ::-1] - (0.0, 0.0, 0.0)),  # netScaleFactor * (x - offsets)
        snippet="""\
# NVIDIA DeepStream: in the tracker's configuration (config_tracker_NvDCF_accuracy.yml or another)
ReID:
  reidType: 2
  onnxFile: @FILE
  inferDims: [3, @HEIGHT, @WIDTH]
  reidFeatureSize: @DIM
  inputOrder: 0  # NCHW
  colorFormat: 0  # RGB
  offsets: [0.0, 0.0, 0.0]
  netScaleFactor: 1.0
  keepAspc: 0
  addFeatureNormalization: 1
  networkMode: 1  # 0: float32, 1: float16
  batchSize: 100
  workspaceSize: 1000
  reidHistorySize: 100
""",
    ),
    Consumer(
        name="openvino",
        formats=("openvino",),
        colours="BGR",
        names=("data", "reid_embedding"),
        batch=1,
        resize=bilinear_8bit,
        scale=lambda bgr: bgr,
        snippet="""\
# OpenVINO: its model zoo's demos take the file as -m_reid or --m_reid; features compare by cosine
import cv2
import openvino

model = openvino.Core().compile_model(@FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
crop = cv2.resize(cv2.imread("crop.jpg"), (@WIDTH, @HEIGHT))
feature = model(crop.transpose(2, 0, 1)[None].astype("float32"))[0]
""",
    ),
    Consumer(name="fastreid", formats=("fastreid",)),  # its configuration is the yml of the export
)
#: by name
CONSUMERS = {consumer.name: consumer for consumer in _LISTED}
