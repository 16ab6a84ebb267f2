"""A trained model as an ONNX graph with a dynamic batch, checked with onnxruntime."""

import contextlib
import copy
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from ..engine.files import check_output, written_together
from .deployed import Deployed, check_parity, random_images

__all__ = ["check_onnx_file", "export_onnx"]

logger = logging.getLogger("fastreid.sskd.export")

INSTALL = 'pip install "fastreid-sskd[onnx]"'
#: largest difference of a feature between the model and its graph, relative to the largest feature
TOLERANCE = 1e-4
#: batches that the graph is checked with; it is made from one of TRACED
CHECKED, TRACED = (1, 3, 8), 2


def check_onnx_file(path: str, reads: Iterable[str] = ()) -> None:
    """Check that :func:`export_onnx` can write a file, and has the packages that it needs.

    Args:
        reads: files that must not be overwritten.

    Raises:
        ImportError: if onnx, onnxruntime or onnxscript is missing.
        ValueError: if ``path`` does not end in .onnx, or cannot or must not be written.
    """
    check_output(path, (".onnx",), reads)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it, and says so less plainly
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs onnx, onnxruntime and onnxscript: {INSTALL} ({error})"
        ) from error


def export_onnx(
    network: Deployed, path: str, size: Sequence[int], *, metadata: Mapping[str, object] | None = None
) -> float:
    """Write a graph from ``images`` (batch, 3, H, W) float32 to ``features`` (batch, d).

    Written under a temporary name and compared with the model's own evaluation there, so that a file at
    ``path`` is one that gives its features; an older one stays where that fails.

    Args:
        network: what is exported, on any device; it stays there.
        path: of the file, one file with its weights in it; its folder is made.
        size: (H, W) of the images.
        metadata: written into the file, values as text or JSON.

    Returns:
        The largest difference of a feature, relative to the largest feature, over batches of 1, 3 and 8.

    Raises:
        ImportError, ValueError: see :func:`check_onnx_file`; ValueError also if the model needs more than
            images.
        RuntimeError: if the graph gives other features.
    """
    check_onnx_file(path)
    import onnx
    import onnxruntime

    traced = copy.deepcopy(network).cpu().eval()  # it shares its weights with the model it is of
    example = traced.prepared(random_images(size, TRACED))
    try:
        traced(example)
    except KeyError as error:
        raise ValueError(
            f"a graph has images alone, and the model's forward also needs {error} of a batch"
        ) from error
    with written_together(path) as (draft,):
        with _quiet():
            torch.onnx.export(
                traced, (example,), draft, input_names=["images"], output_names=["features"],
                **_exporter_options(),
            )  # fmt: skip
        graph = onnx.load(draft)
        onnx.helper.set_model_props(
            graph,
            {
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in (metadata or {}).items()
            },
        )
        onnx.checker.check_model(graph)
        onnx.save(graph, draft)

        session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
        return check_parity(
            network.expected,
            lambda images: session.run(["features"], {"images": traced.prepared(images).numpy()})[0],
            [random_images(size, batch, seed=batch) for batch in CHECKED],
            TOLERANCE,
            what=path,
        )


def _exporter_options() -> dict:
    """Choose the exporter, with the batch left open; torch before 2.6 has the one by tracing."""
    known = inspect.signature(torch.onnx.export).parameters
    if "dynamic_shapes" not in known or torch.__version__ < (2, 6):
        return {"opset_version": 17, "dynamic_axes": {"images": {0: "batch"}, "features": {0: "batch"}}}
    return {
        "opset_version": 18, "dynamo": True, "external_data": False,
        "dynamic_shapes": {"images": {0: torch.export.Dim("batch", min=1)}},
    }  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of its own insides; both go to the log at debug level."""
    said = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(said):
        warnings.simplefilter("always")
        yield
    for line in [*said.getvalue().splitlines(), *(str(warning.message) for warning in caught)]:
        logger.debug("torch.onnx: %s", line)
