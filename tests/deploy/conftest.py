"""compose.yaml as these tests see it."""

from __future__ import annotations

import sys
from pathlib import Path

# Tests import deploy_compose, which lies beside them.
sys.path.insert(0, str(Path(__file__).parent))
