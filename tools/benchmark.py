#!/usr/bin/env python3
"""The command of fastreid_sskd/tools/benchmark.py; --help describes it."""

import sys

from fastreid_sskd.tools.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
