"""The command line: `python -m trainer fit …` and `… predict …` (alone or under a launcher), `… report …`."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from trainer.config import FitConfig, PredictConfig
from trainer.errors import CollectiveError, TrainerError, naming_extras

LAST_WORDS_S = 10  # how long ranks that fail together wait for each other's message


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; wrong arguments end it with code 2, before any communication."""
    with naming_extras("python -m trainer"):
        parser = _parser()
        chosen = parser.parse_args(arguments)
        options = chosen[chosen.subcommand].as_dict()
        options.pop("config", None)
        try:
            run = COMMANDS[chosen.subcommand](**options)
        except TrainerError as error:
            parser.error(str(error))
        run()


def _report(run: Path, out: Path) -> Callable[[], None]:
    from trainer.report import report

    report(run, out)
    return lambda: None


def _fit(
    dry_run: Literal["table", "json"] | None, ranks: int | None, trace: Path | None, **options: Any
) -> Callable[[], None]:
    config = FitConfig(**options)
    config.check()
    if dry_run is not None:
        needs = _needs(config, 1 if ranks is None else ranks, dry_run)
        return lambda: print(needs)
    if ranks is not None:
        raise TrainerError("ranks belongs to dry_run: how many ranks train is what the launcher starts")
    return lambda: _run_fit(config, trace)


def _needs(config: FitConfig, ranks: int, form: Literal["table", "json"]) -> str:
    from trainer.dry_run import dry_run

    return dry_run(config, ranks, form)


def _predict(**options: Any) -> Callable[[], None]:
    config = PredictConfig(**options)
    config.check()
    return lambda: _run_predict(config)


COMMANDS: dict[str, Callable[..., Callable[[], None]]] = {"fit": _fit, "predict": _predict, "report": _report}


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m trainer", description="Data-parallel training over pycomm.")
    commands = parser.add_subcommands(required=True)
    fit = ArgumentParser()
    fit.add_class_arguments(FitConfig)
    fit.add_argument("--trace", type=Path, help="file for a trace of all ranks, for ui.perfetto.dev")
    fit.add_argument("--config", action="config", help="YAML file with these options")
    fit.add_argument(
        "--dry_run", nargs="?", const="table", choices=["table", "json"], help="print what a run would need"
    )
    fit.add_argument("--ranks", type=int, help="of a dry run, which needs no launcher (1 if not given)")
    commands.add_subcommand("fit", fit, help="train a model")
    predict = ArgumentParser()
    predict.add_class_arguments(PredictConfig)
    commands.add_subcommand("predict", predict, help="what a trained model says about a split")
    report = ArgumentParser(description="Draws the loss of a run.")
    report.add_argument("run", type=Path, help="the folder that fit wrote to")
    report.add_argument(
        "--out", type=Path, default=Path("loss.svg"), help="picture; its ending decides the format"
    )
    commands.add_subcommand("report", report, help="draw the loss of a run")
    return parser


def _run_fit(config: FitConfig, trace: Path | None) -> None:
    import pycomm
    from trainer.train import fit

    comm = pycomm.init(trace=trace)
    sys.excepthook = _abort_hook(comm)
    summary = fit(config, comm)
    if comm.rank == 0:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in summary["eval"].items())
        best = f"best step {summary['best']['step']}; " if summary["best"] else ""
        print(
            f"ended after step {summary['steps']}: {summary['ended']}; {best}eval: {shown}; "
            f"parameters {summary['param_sha256'][:16]}, equal on all ranks; see {config.out}"
        )
    pycomm.shutdown()


def _run_predict(config: PredictConfig) -> None:
    import pycomm
    from trainer.prediction import predict

    comm = pycomm.init()
    sys.excepthook = _abort_hook(comm)
    done = predict(config, comm)
    if comm.rank == 0:
        print(
            f"{config.out}: {done['count']} predictions for split {config.split}, by {done['weights']} "
            f"after step {done['step']}"
        )
    pycomm.shutdown()


def _abort_hook(comm: Any) -> Any:
    """Prints an exception's traceback with the rank, then ends all ranks, which would wait for this one.

    What all ranks raise alike is an answer rather than a defect: it is printed without the traceback, and
    each rank's message is out before the first of them ends the job.
    """

    def abort(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        import pycomm

        together = isinstance(error, CollectiveError)
        lines = traceback.format_exception_only(error) if together else traceback.format_exception(error)
        sys.stderr.write("".join(f"[rank {comm.rank}] {line}\n" for line in "".join(lines).splitlines()))
        sys.stderr.flush()
        if together:
            with contextlib.suppress(pycomm.PycommError):  # it ends in either case
                comm.barrier(timeout=LAST_WORDS_S)
        pycomm.abort(1)

    return abort


if __name__ == "__main__":
    main()
