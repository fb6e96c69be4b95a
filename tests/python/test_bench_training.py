"""Training steps as a benchmark: what is compared, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import pycomm
from bench.ranks import Ranks

torch = pytest.importorskip("torch")

from bench import training  # noqa: E402
from bench.steps import STEPS  # noqa: E402
from bench.workloads import Workload  # noqa: E402


def test_ranks_that_drift_apart_are_found() -> None:
    alone = Ranks(pycomm.init())
    small = Workload(
        "small", lambda: torch.nn.Linear(2, 2), torch.ones(1, 2), torch.ones(1, dtype=torch.int64)
    )
    step = STEPS.build("none", [], small, alone)
    assert training.equal_on_all(step, alone)

    class Other(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, b"another digest"]

    assert not training.equal_on_all(step, Other(alone.comm))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "bert"], "no model 'bert'; there is gpt, mlp"),
        (
            ["--model", "mlp", "--impl", "none,horovod"],
            "no training step 'horovod'; there is ddp-gloo, ddp-gloo-fp16, ddp-pycomm, fsdp2-gloo, ",
        ),
        (
            ["--model", "mlp", "--impl", "pycomm:overlap=maybe"],
            "pycomm: expected overlap=on|off|auto or a codec (",
        ),
        (
            ["--model", "mlp", "--impl", "ddp-gloo:fast"],
            "ddp-gloo: expected view or zeroredundancy, got fast",
        ),
        (["--model", "mlp", "--impl", "none:x"], "takes no options, got x"),
    ],
)
def test_wrong_arguments_of_training_end_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        training.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
