from typing import Any

def device() -> Any:
    """For the module _core."""

def facts() -> dict[str, Any]:
    """Versions and cards, and why none can be used. Starts no context on any card."""
