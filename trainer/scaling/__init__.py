"""How a fit scales with its ranks: `python -m trainer scaling`."""
