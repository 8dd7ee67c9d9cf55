"""A helper for tasks of asyncio."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end, whatever it is."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
