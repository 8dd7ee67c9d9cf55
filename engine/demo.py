"""The paths of the bundled demo model and of its draft model, which models/README.md describes."""

from __future__ import annotations

import os

_DATA = os.path.join(os.path.dirname(__file__), "data")
DEMO_MODEL = os.path.join(_DATA, "demo-q4_0.gguf")
DEMO_DRAFT_MODEL = os.path.join(_DATA, "demo-draft.gguf")
