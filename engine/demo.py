"""Where the bundled demo model lies. What it is and how it was made: models/README.md."""

from __future__ import annotations

import os

DEMO_MODEL = os.path.join(os.path.dirname(__file__), "data", "demo-q4_0.gguf")
