"""The command ``fastreid-sskd``: each module here is one of its commands, and so is each script of tools/."""

import argparse
import importlib
import pkgutil
import sys

from .. import __version__


def main() -> int:
    """Run the command that the first argument names; its exit status."""
    modules = {module.name.replace("_", "-"): module.name for module in pkgutil.iter_modules(__path__)}
    modules["train"] = modules.pop("train-net")
    given = "".join(sys.argv[1:2])
    if given in modules:
        sys.argv[:2] = [f"{sys.argv[0]} {given}"]  # as the usage names it
        return _load(modules[given]).main()
    first_lines = {name: _load(module).__doc__.partition("\n")[0] for name, module in modules.items()}
    parser = argparse.ArgumentParser(
        prog="fastreid-sskd",
        description="Adapt a person re-ID model to new cameras. COMMAND --help has the options.",
        epilog="\n".join(f"  {name:<12} {line}" for name, line in sorted(first_lines.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=sorted(modules), metavar="COMMAND", help="one of those below")
    parser.parse_args(sys.argv[1:2])  # has nothing left to do but to end
    return 0


def _load(module: str):
    return importlib.import_module(f"{__name__}.{module}")
