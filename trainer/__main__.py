"""The command line, `python -m trainer COMMAND …`: fit and predict, alone or under a launcher; consolidate,
report and scaling, by one process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.config import FitConfig, PredictConfig
from trainer.errors import CollectiveError, TrainerError, naming_extras

if TYPE_CHECKING:
    from pycomm import Communicator

# What launchers call a process's rank and the number of processes.
RANK_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)
# Of the last, mpirun passes on the signal and nothing else; of the others, Open MPI's kills the ranks 0.25 s
# later, and no longer prints what they say.
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
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


def _report(runs: list[Path], out: Path, panels: str | None) -> Callable[[], None]:
    from trainer.report import report

    text, broken = report(runs, out, panels.split(",") if panels else ())
    for reason in broken:
        print(f"left out: {reason}", file=sys.stderr)
    return lambda: print(f"{text}\nwritten: {out}, {out.with_suffix('.md')}")


def _fit(
    dry_run: Literal["table", "json"] | None, ranks: int | None, trace: Path | None, **options: Any
) -> Callable[[], None]:
    config = FitConfig(**options)
    if dry_run is not None:
        if trace is not None:
            raise TrainerError("trace belongs to a run: dry_run starts none")
        return _dry_run(config, ranks, dry_run)
    config.check()
    if ranks is not None:
        raise TrainerError("ranks belongs to dry_run: how many ranks train is what the launcher starts")
    return lambda: _run_fit(config, trace)


def _dry_run(config: FitConfig, ranks: int | None, form: Literal["table", "json"]) -> Callable[[], None]:
    """Of `ranks` ranks, or as many as the launcher started; one of these prints."""
    from trainer.dry_run import dry_run

    rank, size = launched(os.environ)
    if rank != 0:
        return lambda: None
    needs = dry_run(config, size if ranks is None else ranks, form)
    return lambda: print(needs)


def launched(environ: Mapping[str, str]) -> tuple[int, int]:
    """The rank of this process and their number, as the launcher tells them without MPI; else (0, 1)."""
    for rank, size in RANK_VARIABLES:
        if size in environ:
            return int(environ.get(rank, "0")), int(environ[size])
    return 0, 1


def _predict(**options: Any) -> Callable[[], None]:
    config = PredictConfig(**options)
    config.check()
    return lambda: _run_predict(config)


def _consolidate(checkpoint: Path, out: Path) -> Callable[[], None]:
    from trainer.checkpoint.consolidating import consolidate

    step = consolidate(checkpoint, out)
    return lambda: print(f"{out}: the model after step {step}")


def _scaling(ranks: str, modes: str, target: str | None, mpirun: str, **options: Any) -> Callable[[], None]:
    from trainer.scaling.study import Study, counts

    study = Study(FitConfig(**options), counts(ranks), modes.split(","), target, mpirun, os.environ)
    return lambda: sys.exit(study.run())


COMMANDS: dict[str, Callable[..., Callable[[], None]]] = {
    "fit": _fit,
    "predict": _predict,
    "consolidate": _consolidate,
    "report": _report,
    "scaling": _scaling,
}


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m trainer", description="Data-parallel training over pycomm.")
    commands = parser.add_subcommands(required=True)
    fit = ArgumentParser()
    _add_fit_options(fit)
    fit.add_argument("--trace", type=Path, help="file for a trace of all ranks, for ui.perfetto.dev")
    fit.add_argument(
        "--dry_run", nargs="?", const="table", choices=["table", "json"], help="print what a run would need"
    )
    fit.add_argument(
        "--ranks",
        type=int,
        help="of a dry run, which needs no launcher (those of the launcher, or 1, if not given)",
    )
    commands.add_subcommand("fit", fit, help="train a model")
    predict = ArgumentParser()
    predict.add_class_arguments(PredictConfig)
    commands.add_subcommand("predict", predict, help="what a trained model says about a split")
    consolidate = ArgumentParser(description="Writes the model of a checkpoint as one file, by one process.")
    consolidate.add_argument("checkpoint", type=Path, help="its folder, as runs/x/checkpoints/step-000100")
    consolidate.add_argument("out", type=Path, help="safetensors file")
    commands.add_subcommand("consolidate", consolidate, help="a checkpoint's model as one file of weights")
    report = ArgumentParser(description="Runs side by side: a picture, and a table in Markdown beside it.")
    report.add_argument("runs", type=Path, nargs="+", help="folders that fit wrote to")
    report.add_argument(
        "--out", type=Path, default=Path("report.png"), help="picture; its ending decides the format"
    )
    report.add_argument(
        "--panels", help="of loss, throughput, exposed and memory, by comma (all if not given)"
    )
    commands.add_subcommand("report", report, help="draw and tabulate runs, side by side")
    scaling = ArgumentParser(description="How a fit scales: runs, a table and a picture in --out.")
    _add_fit_options(scaling)
    scaling.add_argument("--ranks", default="1,2,4", help="numbers of ranks, by comma")
    scaling.add_argument(
        "--modes", default="strong,weak", help="strong: global batch fixed; weak: each rank's"
    )
    scaling.add_argument("--target", help="time to it is shown: accuracy=0.95, loss=0.3, or NAME>=VALUE")
    scaling.add_argument("--mpirun", default="", help="options for mpirun, as '--hostfile hosts'")
    commands.add_subcommand(
        "scaling", scaling, help="strong and weak scaling of a fit, as a table and a picture"
    )
    return parser


def _add_fit_options(parser: Any) -> None:
    parser.add_class_arguments(FitConfig)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    switches = {option.name for option in fields(FitConfig) if isinstance(option.default, bool)}
    for action in parser._actions:
        if action.dest in switches:  # alone they mean true, as argparse's flags do
            action.nargs, action.const = "?", True


def _run_fit(config: FitConfig, trace: Path | None) -> None:
    import pycomm
    from trainer.memory import line
    from trainer.train import fit

    with _ending_together(pycomm.init(trace=trace)) as comm:
        summary = fit(config, comm)
        if comm.rank == 0:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in summary["eval"].items())
            best = "best step {step}, in {weights}; ".format_map(summary["best"]) if summary["best"] else ""
            print(
                f"ended after step {summary['steps']}: {summary['ended']}; {best}eval: {shown}; "
                f"parameters {summary['param_sha256'][:16]}, equal on all ranks; see {config.out}"
            )
            if summary["memory"]:
                print(line(summary["memory"], summary["peak_rss_bytes"]))


def _run_predict(config: PredictConfig) -> None:
    import pycomm
    from trainer.prediction import predict

    with _ending_together(pycomm.init()) as comm:
        done = predict(config, comm)
        if comm.rank == 0:
            print(
                f"{config.out}: {done['count']} predictions for split {config.split}, by {done['weights']} "
                f"after step {done['step']}"
            )


@contextlib.contextmanager
def _ending_together(comm: Communicator) -> Iterator[Communicator]:
    """Disconnects in the end. An exception is printed with the rank and ends all ranks, which would wait for
    this one.

    What the trainer itself raises is an answer rather than a defect: it is printed without a traceback. Where
    every rank raises it, each rank's message is out before the first of them ends the job. SIGTERM, which is
    what launchers make of Ctrl-C, and SIGUSR1 interrupt as SIGINT does; only the first of them counts.
    """
    import pycomm

    for number in INTERRUPTIONS:
        signal.signal(number, _interrupt)
    try:
        yield comm
    except KeyboardInterrupt as error:
        _say(comm, [f"interrupted {error}".rstrip()])
        if comm.rank:
            time.sleep(LAST_WORDS_S)
        pycomm.abort(128 + signal.SIGINT)
    except Exception as error:
        answer = isinstance(error, TrainerError)
        _say(comm, traceback.format_exception_only(error) if answer else traceback.format_exception(error))
        if isinstance(error, CollectiveError):
            with contextlib.suppress(pycomm.PycommError):  # it ends in either case
                comm.barrier(timeout=LAST_WORDS_S)
        pycomm.abort(1)
    pycomm.shutdown()


def _interrupt(*_: object) -> None:
    for number in INTERRUPTIONS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(comm: Communicator, lines: Sequence[str]) -> None:
    sys.stderr.write("".join(f"[rank {comm.rank}] {line}\n" for line in "".join(lines).splitlines()))
    sys.stderr.flush()


if __name__ == "__main__":
    main()
