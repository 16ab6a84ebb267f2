"""A device of the tests' own, "other": memory apart from the CPU's, computed by its operators.

For one process and its end.

Registering it changes torch for good, so it is for processes that are started for that, see `own_processes`.
"""

import shutil
import sysconfig
import types
from pathlib import Path

import torch

NAME = "other"


def missing():
    """Why it cannot be built here, or None."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        return "this torch is older than 2.8, whose interface for devices the test's has"
    header = Path(sysconfig.get_path("include")) / "Python.h"  # Debian ships it apart from Python
    if not (shutil.which("c++") and shutil.which("ninja") and header.is_file()):
        return "no C++ compiler, ninja and Python.h to build the test's device with"
    return None


def register(build):
    """Build it in the folder `build`, where it is not yet there, and make it torch's device "other".

    Returns an object whose `take_waits()` is what the host has waited for since it was called last, as {what:
    times}, and whose `take_peak()` is the most memory [bytes] that was taken at once since it was called
    last.
    """
    from torch.utils.cpp_extension import load

    build.mkdir(exist_ok=True)
    source = str(Path(__file__).with_suffix(".cpp"))
    library = load("other_device", [source], extra_cflags=["-O1", "-w"], build_directory=str(build))
    library.register_hooks()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _read_storages()
    return library


def _module():
    """`torch.other`: what torch asks such a module for."""
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    return module


def _read_storages():
    """`torch.save` and `copy.deepcopy` copy storages, which torch does by operators for its own devices
    only.
    """
    kinds = torch.UntypedStorage
    clone, cpu = kinds.clone, kinds.cpu

    def as_bytes(storage):
        values = torch.empty(0, dtype=torch.uint8, device=storage.device)
        return values.set_(storage, 0, (storage.nbytes(),), (1,))

    def is_here(storage):
        return storage.device.type == NAME

    kinds.clone = lambda self: as_bytes(self).clone().untyped_storage() if is_here(self) else clone(self)
    kinds.cpu = lambda self: as_bytes(self).cpu().untyped_storage() if is_here(self) else cpu(self)
