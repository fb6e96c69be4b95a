"""The command line: `python -m trainer fit …` (alone or under a launcher) and `… report …`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from trainer.config import FitConfig
from trainer.errors import TrainerError, naming_extras


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; wrong arguments end it with code 2, before any communication."""
    with naming_extras("python -m trainer"):
        parser = _parser()
        chosen = parser.parse_args(arguments)
        options = chosen[chosen.subcommand].as_dict()
        options.pop("config", None)
        trace = options.pop("trace", None)
        try:
            if chosen.subcommand == "report":
                _report(**options)
                return
            config = FitConfig(**options)
            config.check()
        except TrainerError as error:
            parser.error(str(error))
        _fit(config, trace)


def _report(run: Path, out: Path) -> None:
    from trainer.report import report

    report(run, out)


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m trainer", description="Data-parallel training over pycomm.")
    commands = parser.add_subcommands(required=True)
    fit = ArgumentParser()
    fit.add_class_arguments(FitConfig)
    fit.add_argument("--trace", type=Path, help="file for a trace of all ranks, for ui.perfetto.dev")
    fit.add_argument("--config", action="config", help="YAML file with these options")
    commands.add_subcommand("fit", fit, help="train a model")
    report = ArgumentParser(description="Draws the loss of a run.")
    report.add_argument("run", type=Path, help="the folder that fit wrote to")
    report.add_argument(
        "--out", type=Path, default=Path("loss.svg"), help="picture; its ending decides the format"
    )
    commands.add_subcommand("report", report, help="draw the loss of a run")
    return parser


def _fit(config: FitConfig, trace: Path | None) -> None:
    import pycomm
    from trainer.train import fit

    comm = pycomm.init(trace=trace)
    sys.excepthook = _abort_hook(comm.rank)
    summary = fit(config, comm)
    if comm.rank == 0:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in summary["eval"].items())
        print(
            f"eval: {shown}; parameters {summary['param_sha256'][:16]}, equal on all ranks; see {config.out}"
        )
    pycomm.shutdown()


def _abort_hook(rank: int) -> Any:
    """Prints an exception's traceback with the rank, then ends all ranks, which would wait for this one."""

    def abort(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        import pycomm

        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write("".join(f"[rank {rank}] {line}\n" for line in text.splitlines()))
        sys.stderr.flush()
        pycomm.abort(1)

    return abort


if __name__ == "__main__":
    main()
