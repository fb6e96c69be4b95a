"""What is evaluated on the way, and whether training goes on after it.

With a validation split: that, every so many steps and after the last one. The test split once, at the end.
Without one the test split is shown on the way instead, and nothing is decided from it.
"""

from __future__ import annotations

from torch import nn

from pycomm import Communicator, trace_span
from trainer.data import Dataset
from trainer.divergence import check_evaluation
from trainer.errors import TrainerError
from trainer.evaluate import evaluate
from trainer.rows import SPLIT_OF
from trainer.stopping import Stopping
from trainer.strategy import Strategy

Values = dict[str, float | int]
ALL_DONE = "all steps are done"


class Validation:
    """`every`: steps from one evaluation to the next, 0 for none before the end. `steps`: of the run.
    `shards`: as evaluate() has them."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        strategy: Strategy,
        comm: Communicator,
        every: int,
        steps: int,
        stopping: Stopping,
        shards: int,
    ) -> None:
        self._model = model
        self._dataset = dataset
        self._strategy = strategy
        self._comm = comm
        self._every = every
        self._steps = steps
        self.stopping = stopping
        self._shards = shards
        self.improved = False  # the last step's validation loss is the lowest so far
        self.ended: str | None = None  # why training is over

    def after(self, step: int) -> dict[str, Values]:
        """What the metrics' row of this step gets; sets `improved` and `ended`. Collective."""
        last = step == self._steps
        due = last or (self._every > 0 and step % self._every == 0)
        self.improved = False
        self.ended = ALL_DONE if last else None
        if due and self._dataset.validation:
            self._strategy.before_forward(None)
            values = self._evaluate("validation", step)
            if self.stopping.observe(step, values["validation"]["loss"]):
                self.ended = self.ended or str(self.stopping)
            self.improved = self.stopping.best_step == step
            return values
        if due and not last:
            self._strategy.before_forward(None)
            return self._evaluate("eval", step)
        return {}

    def resume(self, step: int) -> None:
        """To be called when `stopping` is as it was after that step; sets `ended` where nothing is left."""
        if step >= self._steps:
            self.ended = ALL_DONE
        elif self.stopping.exhausted:
            self.ended = str(self.stopping)

    def test(self, step: int) -> dict[str, Values]:
        """The test split, once the strategy is closed. Collective."""
        return self._evaluate("eval", step)

    def _evaluate(self, key: str, step: int) -> dict[str, Values]:
        name = SPLIT_OF[key]
        with trace_span("evaluate", step=step, split=name):
            split = self._dataset.splits()[name]
            after = self._strategy.after_forward
            values = evaluate(self._model, self._dataset.task, split, self._comm, self._shards, after)
        check_evaluation(values, name, step)
        return {key: values}


def check_patience(patience: int | None, dataset: Dataset) -> None:
    """Raises TrainerError where there is nothing to be patient about."""
    if patience and not dataset.validation:
        raise TrainerError("patience needs a validation split: set data_options.validation_fraction")
