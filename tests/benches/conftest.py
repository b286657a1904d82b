"""The benches are no installed package: they are found where `make bench` runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
