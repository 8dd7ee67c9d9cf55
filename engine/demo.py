"""The path of the bundled demo model, which models/README.md describes."""

from __future__ import annotations

import os

DEMO_MODEL = os.path.join(os.path.dirname(__file__), "data", "demo-q4_0.gguf")
