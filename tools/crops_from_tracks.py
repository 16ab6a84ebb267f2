#!/usr/bin/env python3
"""The command of fastreid_sskd/tools/crops_from_tracks.py; --help describes it."""

import sys

from fastreid_sskd.tools.crops_from_tracks import main

if __name__ == "__main__":
    sys.exit(main())
