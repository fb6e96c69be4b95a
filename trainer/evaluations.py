"""What is evaluated when, and whether that ends the training.

With a validation split: that, every so many steps and after the last one. The test split once, at the end.
Without one the test split is shown on the way instead, and nothing is decided from it.
"""

from __future__ import annotations

from torch import nn

from pycomm import Communicator, trace_span
from trainer.data import Dataset, Split
from trainer.divergence import check_evaluation
from trainer.errors import TrainerError
from trainer.evaluate import evaluate
from trainer.stopping import Stopping
from trainer.strategy import Strategy

Values = dict[str, float | int]


class Evaluations:
    """`every`: steps from one evaluation to the next, 0 for none before the end. `steps`: of the run."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        strategy: Strategy,
        comm: Communicator,
        every: int,
        steps: int,
        stopping: Stopping,
    ) -> None:
        if stopping.patience and not dataset.validation:
            raise TrainerError("patience needs a validation split: set data_options.validation_fraction")
        self._model = model
        self._dataset = dataset
        self._strategy = strategy
        self._comm = comm
        self._every = every
        self._steps = steps
        self.stopping = stopping
        self.ended = ""  # why training is over

    def after(self, step: int) -> dict[str, Values]:
        """What the metrics' row of this step gets. Sets `ended`, and closes the strategy then. Collective."""
        values: dict[str, Values] = {}
        if step == self._steps:
            self.ended = "all steps are done"
        due = self._every > 0 and step % self._every == 0
        validation, test = self._dataset.validation, self._dataset.test
        if validation and (due or self.ended):
            self._strategy.before_forward(None)
            values["validation"] = self._evaluate("validation", validation, step)
            if self.stopping.observe(step, values["validation"]["loss"]):
                self.ended = self.ended or str(self.stopping)
        elif due and not self.ended:
            self._strategy.before_forward(None)
            values["eval"] = self._evaluate("test", test, step)
        if self.ended:
            self._strategy.close()
            values["eval"] = self._evaluate("test", test, step)
        return values

    def _evaluate(self, name: str, split: Split, step: int) -> Values:
        with trace_span("evaluate", step=step, split=name):
            values = evaluate(self._model, self._dataset.task, split, self._comm)
        check_evaluation(values, name, step)
        return values
