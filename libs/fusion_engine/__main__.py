"""`python -m fusion_engine`: the engine's command line."""

import sys

from fusion_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
