"""No communication: the same processes train at once, each for itself. What every step is compared with."""

from __future__ import annotations

from bench.steps import STEPS, Step


@STEPS.register("none")
class NoCommunication(Step):
    synchronized = False
