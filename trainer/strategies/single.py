"""One process, plain torch: no buckets, no hooks, nothing sent. What other strategies must equal. (In exact
mode it is data_parallel on one rank, whose buckets others step on too.)

All reductions are the same here: the mean over the one rank's samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.checkpoint.slices import Slice, SliceReader, load_replicated, replicated_slices
from trainer.clipping import clip
from trainer.errors import TrainerError
from trainer.master_weights import masters_wanted
from trainer.memory import Held, measured
from trainer.sampler import Batch
from trainer.strategy import STRATEGIES, Strategy, Wire
from trainer.zero import of_wire


class Single(Strategy):
    equal_gradients = True
    has_master_weights = True

    def __init__(
        self, model: nn.Module, comm: Communicator, optimizer: torch.optim.Optimizer, wire: Wire
    ) -> None:
        _check(comm, wire)
        self._model = model
        self._optimizer = optimizer
        self._masters = masters_wanted(optimizer, wire.master_weights)
        self._global_count = 0

    def before_forward(self, batch: Batch | None) -> None:
        if batch is not None:
            self._global_count = batch.global_count

    def synchronize(self) -> None:
        self._masters.take_gradients()
        for _, gradient in self.gradients(self._model):
            gradient.mul_(1 / self._global_count)

    def gradients(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield from self._masters.gradients(model)

    def clip_grad_norm_(self, max_norm: float) -> float:
        return clip((gradient for _, gradient in self.gradients(self._model)), max_norm)

    def step(self) -> None:
        self._optimizer.step()
        self._masters.publish()

    def memory(self) -> Held:
        held = list(self._model.parameters())
        gradients = sum(parameter.nbytes for parameter in held if parameter.requires_grad)
        parameters = sum(parameter.nbytes for parameter in held)
        return measured(parameters, gradients, self._optimizer, self._masters.nbytes)

    def state_slices(self) -> Iterator[Slice]:
        return replicated_slices(self._model, self._optimizer, 0, 1, self._masters.of)

    def load_slices(self, reader: SliceReader) -> None:
        load_replicated(self._model, self._optimizer, reader, self._masters.of)
        self._masters.settle()

    def close(self) -> None:
        self._masters.close()


@STRATEGIES.register("single")
def single(model: nn.Module, comm: Communicator, optimizer: torch.optim.Optimizer, wire: Wire) -> Strategy:
    if not wire.exact:
        return Single(model, comm, optimizer, wire)
    _check(comm, wire)
    return of_wire(model, comm, optimizer, wire, stage=0)


def _check(comm: Communicator, wire: Wire) -> None:
    if comm.size != 1:
        raise TrainerError(
            f"strategy 'single' trains in one process, got {comm.size} ranks; try data_parallel"
        )
    if wire.codec != "none":
        raise TrainerError(f"strategy 'single' sends nothing: expected codec none, got {wire.codec}")
