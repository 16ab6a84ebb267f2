"""A trained model as one graph: ONNX, TorchScript or OpenVINO, compared with the model's own evaluation."""

import contextlib
import copy
import inspect
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from ..engine.files import check_output, written_together
from ..refusals import optional
from .consumers import ANYONE, CONSUMERS, Consumer
from .deployed import Deployed, check_parity, random_images

logger = logging.getLogger("fastreid.sskd.export")

#: the ending of a format's file
FORMATS = {"onnx": ".onnx", "torchscript": ".torchscript", "openvino": ".xml"}
#: largest difference of a feature between the model and its graph, relative to the largest feature
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2
#: batches that the graph is checked with; it is made from one of TRACED
CHECKED, TRACED = (1, 3, 8), 2
#: crops that it is checked with through a consumer: larger and smaller than most networks take
CROPS = ((61, 27), (300, 170))

_ONNX = ("onnx", "onnxruntime", "onnxscript")  # torch's exporter needs the last, and says so less plainly
_NEEDS = {".onnx": ("onnx", _ONNX), ".xml": ("onnx,openvino", (*_ONNX, "openvino")), ".torchscript": ("", ())}


def check_graph_files(
    path: str, consumer: Consumer = ANYONE, half: bool = False, reads: Iterable[str] = ()
) -> list[str]:
    """Check that :func:`export_graph` can write its files, and has the packages that it needs.

    Args:
        path, consumer, half: see :func:`export_graph`.
        reads: files that must not be overwritten.

    Returns:
        The files: the graph, its weights where they are apart, the consumer's.
    """
    ending = check_output(path, tuple(FORMATS.values()), reads)
    files = [path, *([path[: -len(ending)] + ".bin"] if ending == ".xml" else [])]
    files += consumer.side_files(path)
    for file in files[1:]:
        check_output(file, reads=reads)
    if half and ending == ".torchscript":
        raise ValueError(
            "a TorchScript file gets its precision from who loads it (half(), float()): leave it as it is"
        )
    extra, packages = _NEEDS[ending]
    for package in packages:
        optional(
            package,
            f'export to {ending} needs {", ".join(packages)}: pip install "fastreid-sskd[{extra}]"',
        )
    return files


def export_graph(
    network: Deployed,
    path: str,
    size: Sequence[int],
    *,
    consumer: Consumer = ANYONE,
    half: bool = False,
    metadata: Mapping[str, object] | None = None,
) -> float:
    """Write a graph from images (batch, 3, H, W) float32 to features (batch, d).

    Written under a temporary name and compared with the model's own evaluation there, so that a file at
    ``path`` is one that gives its features; an older one stays where that fails. For a consumer the graph is
    also compared from image files on, which are read as the consumer does.

    Args:
        network: what is exported, on any device; it stays there.
        path: of the file, whose ending is that of one of ``FORMATS``; its folder is made.
        size: (H, W) of the images.
        consumer: who loads it; its configuration is written beside the file, that of others is removed.
        half: whether weights, and in ONNX all that is computed, are float16; input and output stay float32.
        metadata: written into the file, values as text or JSON, beside what the network takes.

    Returns:
        The largest difference of a feature, relative to the largest feature, over batches of 1, 3 and 8 and
        the consumer's image files.

    Raises:
        ImportError, ValueError: see :func:`check_graph_files`; ValueError also if the model needs more than
            images.
        RuntimeError: if the graph gives other features.
    """
    files = check_graph_files(path, consumer, half)
    said = {
        **network.takes,
        "size": list(size),
        "resize": "bilinear" if consumer.resize else "bicubic",
        **(metadata or {}),
    }
    said = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    tolerance = HALF_TOLERANCE if half else TOLERANCE

    traced = copy.deepcopy(network).cpu().eval()  # it shares its weights with the model it is of
    example = traced.prepared(random_images(size, TRACED))
    try:
        with torch.no_grad():
            dim = traced(example).shape[1]
    except KeyError as error:
        raise ValueError(
            f"a graph has images alone, and the model's forward also needs {error} of a batch"
        ) from error
    with written_together(*files) as drafts:
        with _quiet():
            run = _WRITERS[os.path.splitext(path)[1].lower()](
                traced, example, drafts[0], consumer, half, said
            )

        def compare(batches: Iterable[torch.Tensor], given: Callable, what: str) -> float:
            def parts(images: torch.Tensor) -> np.ndarray:
                values = given(images)
                step = consumer.batch or len(values)
                return np.concatenate([run(values[i : i + step]) for i in range(0, len(values), step)])

            return check_parity(network.expected, parts, batches, tolerance, what)

        worst = compare(
            [random_images(size, batch, seed=batch) for batch in CHECKED],
            lambda images: traced.prepared(images).numpy(),
            path,
        )
        if consumer.resize:
            crops = [f"{drafts[0]}.{i}.png" for i in range(len(CROPS))]
            for i, crop in enumerate(crops):
                pixels = random_images(CROPS[i], 1, seed=i)[0].permute(1, 2, 0).byte()
                Image.fromarray(pixels.numpy()).save(crop)
            images, values = consumer.read(crops, size)
            worst = max(
                worst, compare([images], lambda images: values, f"{path}, run as {consumer.name} does,")
            )
        texts = consumer.side_texts(path, size, dim)
        for draft, text in zip(drafts[len(drafts) - len(texts) :], texts):
            with open(draft, "w", encoding="utf-8") as file:
                file.write(text)
    for stale in {file for other in CONSUMERS.values() for file in other.side_files(path)} - set(files):
        with contextlib.suppress(FileNotFoundError):
            os.remove(stale)
    return worst


# Each writes a file and returns what runs it, values (batch, 3, H, W) -> features (batch, d), both arrays.


def _onnx(
    traced: Deployed, example: torch.Tensor, path: str, consumer: Consumer, half: bool, said: dict
) -> Callable:
    import onnx
    import onnxruntime

    torch.onnx.export(
        traced, (example,), path, input_names=consumer.names[:1], output_names=consumer.names[1:],
        **_exporter_options(consumer.names),
    )  # fmt: skip
    graph = onnx.load(path)
    if half:
        from onnxruntime.transformers.onnx_model import OnnxModel

        model = OnnxModel(graph)
        model.convert_float_to_float16(use_symbolic_shape_infer=False, keep_io_types=True)
        model.topological_sort()
        graph = model.model
    onnx.helper.set_model_props(graph, said)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda values: session.run([consumer.names[1]], {consumer.names[0]: values})[0]


def _torchscript(
    traced: Deployed, example: torch.Tensor, path: str, consumer: Consumer, half: bool, said: dict
) -> Callable:
    script = torch.jit.trace(traced, example)
    torch.jit.save(script, path, _extra_files={"fastreid_sskd.json": json.dumps(said)})
    loaded = torch.jit.load(path)
    return lambda values: loaded(torch.from_numpy(values)).numpy()


def _openvino(
    traced: Deployed, example: torch.Tensor, path: str, consumer: Consumer, half: bool, said: dict
) -> Callable:
    import openvino

    _onnx(traced, example, f"{path}.onnx", consumer, False, {})
    core = openvino.Core()
    model = core.read_model(f"{path}.onnx")
    if consumer.batch:
        model.reshape([consumer.batch, *example.shape[1:]])
    for key, value in said.items():
        model.set_rt_info(value, ["fastreid_sskd", key])
    openvino.save_model(model, path, compress_to_fp16=half)
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda values: compiled(values)[0]


_WRITERS = {".onnx": _onnx, ".torchscript": _torchscript, ".xml": _openvino}


def _exporter_options(names: Sequence[str]) -> dict:
    """Choose the exporter, with the batch left open; torch before 2.6 has the one by tracing."""
    known = inspect.signature(torch.onnx.export).parameters
    if "dynamic_shapes" not in known or torch.__version__ < (2, 6):
        return {"opset_version": 17, "dynamic_axes": {name: {0: "batch"} for name in names}}
    return {
        "opset_version": 18, "dynamo": True, "external_data": False,
        "dynamic_shapes": {"images": {0: torch.export.Dim("batch", min=1)}},
    }  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print their progress and warn of their own insides; both go to the log at debug level."""
    said = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(said):
        warnings.simplefilter("always")
        yield
    for line in [*said.getvalue().splitlines(), *(str(warning.message) for warning in caught)]:
        logger.debug("an exporter: %s", line)
