"""Models by name. A factory draws the initial parameters from torch's default generator."""

from __future__ import annotations

from torch import nn

from trainer.registry import Registry

MODELS: Registry[nn.Module] = Registry("model", "trainer.models", nn.Module)
