"""Structured logs of the cold plane: events are names with fields, on stderr.

On a terminal they are coloured lines, else JSON lines.  Each event name has a line in docs/operations.md.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson
import structlog


def _to_json(event: dict[str, Any], default: Any = None) -> str:
    return orjson.dumps(event, default=default or str).decode()


def configure(level: int = logging.INFO) -> None:
    """Send every event at or above `level` to stderr."""
    final: Any = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger(name: str) -> Any:
    """Return the logger of one part of the daemon."""
    return structlog.get_logger(agent=name)
