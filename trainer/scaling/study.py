"""Starts the fits of a scaling study: `python -m trainer scaling --ranks 1,2,4 OPTIONS OF FIT`.

*Strong* scaling keeps the global batch, so that every run computes the same steps with more ranks; *weak*
scaling keeps the batch of each rank, so that a step grows with them. Both have the smallest number of ranks
for their first run, which is one and the same. The fits are started by pycomm.launch, one after another, with
equally many compute threads per rank (1 unless told otherwise), and write a folder each. This process only
starts them and reads what they leave; what is done is kept, in scaling.json, when a run fails or on Ctrl-C.
It is the trainer's and not the bench's, for it times the program that users run, with their data and options.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pycomm.launch import usable_cores
from trainer import exact as exact_mode
from trainer.config import FitConfig
from trainer.errors import TrainerError
from trainer.files import replacing
from trainer.reading.loading import Reading, build_dataset
from trainer.scaling.results import outcome
from trainer.scaling.shown import draw, text
from trainer.scaling.target import Target, target_of

MODES = ("strong", "weak")
STEM = "scaling"  # of what is written besides the runs
LAUNCHED = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")  # only ranks have these; Slurm's are in batch scripts too
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS_S = 30  # for a run that is interrupted


@dataclass(frozen=True)
class Job:
    """One fit of the table; `modes` are those it belongs to."""

    modes: tuple[str, ...]
    ranks: int
    config: FitConfig

    @property
    def name(self) -> str:
        return self.config.out.name


class Study:
    """All fits of one command, checked before the first of them starts."""

    def __init__(
        self,
        config: FitConfig,
        ranks: Sequence[int],
        modes: Sequence[str],
        target: str | None,
        mpirun: str,
        environ: Mapping[str, str],
    ) -> None:
        """Raises TrainerError for what can be seen to be wrong."""
        if any(name in environ for name in LAUNCHED):
            raise TrainerError("scaling starts its own ranks: start it without a launcher")
        self._mpirun = shlex.split(mpirun)
        self._out = config.out
        self._jobs = plan(config, ranks, modes)
        for job in self._jobs:
            job.config.check()
        self._target = None if target is None else _checked_target(target, config)
        self._results: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "trainer", *sys.argv[1:]]),
            "fit": _in_words(self._jobs[0].config),
            "cores": usable_cores(),
            "threads": self._jobs[0].config.threads,
            "target": self._target and str(self._target),
            "runs": [],
            "not_run": [job.name for job in self._jobs],
        }
        self._write()  # what cannot be written, or drawn, is told before anything runs

    def run(self) -> int:
        """Blocks until all fits have ended; returns the exit status: 1 if one failed, 130 after Ctrl-C."""
        interrupted = False
        try:
            with _interruptible():
                for number, job in enumerate(self._jobs, 1):
                    print(f"[{number}/{len(self._jobs)}] {job.name}: ranks {job.ranks} …", flush=True)
                    error = self._fit(job)
                    self._results["runs"].append(
                        outcome(job.modes, job.ranks, job.config.out, error, self._target)
                    )
                    self._results["not_run"].remove(job.name)
                    self._write()
        except KeyboardInterrupt:
            interrupted = True
        print(f"\n{text(self._results)}\nwritten: {self._out / STEM}.json, .md and .png", flush=True)
        return 130 if interrupted else int(any(run["error"] for run in self._results["runs"]))

    def _write(self) -> None:
        """All that there is so far, in place of what there was."""
        with replacing(self._out / f"{STEM}.json") as partial:
            partial.write_text(json.dumps(self._results, indent=1) + "\n")
        with replacing(self._out / f"{STEM}.md") as partial:
            partial.write_text(text(self._results))
        draw(self._results, self._out / f"{STEM}.png")

    def _fit(self, job: Job) -> str | None:
        """What went wrong. Raises KeyboardInterrupt when the run has ended after it."""
        options, log = self._out / f"{job.name}.yaml", self._out / f"{job.name}.log"
        job.config.save(options)
        command = [sys.executable, "-m", "pycomm.launch", "-n", str(job.ranks), *self._mpirun]
        command += ["-m", "trainer", "fit", "--config", str(options)]
        with log.open("w") as file:
            # In a session of its own: Ctrl-C is for this process alone, which tells the launcher once.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = process.wait()
            except KeyboardInterrupt:
                _end(process)
                raise
        if status == 0:
            return None
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "[rank " in line), (lines or ["nothing"])[-1])
        print(f"  failed, with status {status}: {said}\n  all of it: {log}", flush=True)
        return f"status {status}: {said}"


def counts(text: str) -> list[int]:
    """Of `1,2,4`. Raises TrainerError for something else."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise TrainerError(f"ranks: expected numbers by comma, as 1,2,4, got {text!r}") from None


def plan(config: FitConfig, ranks: Sequence[int], modes: Sequence[str]) -> list[Job]:
    """The fits in the order in which they run. Raises TrainerError for counts that cannot be compared."""
    if not ranks or min(ranks) < 1 or len(set(ranks)) < len(ranks):
        raise TrainerError(f"ranks: expected different numbers of 1 or more, got {list(ranks)}")
    if not modes or any(mode not in MODES for mode in modes):
        raise TrainerError(f"modes: expected of {', '.join(MODES)}, got {', '.join(modes) or 'none'}")
    if config.resume != "none" or config.save_every:
        raise TrainerError("scaling compares whole runs: expected neither resume nor save_every")
    if config.data_local:
        raise TrainerError("scaling compares runs on the same samples: data_local makes them the ranks' own")
    if exact := exact_mode.of(config):
        for count in ranks:
            exact.check_ranks(count)
    least = min(ranks)
    batch = config.global_batch_for(least)
    if "weak" in modes and batch % least:
        raise TrainerError(
            f"weak scaling: a global batch of {batch} is not the same for each of {least} ranks"
        )
    config = replace(config, threads=config.threads or 1)
    jobs = []
    for count in sorted(ranks):
        for chosen in [tuple(modes)] if count == least else [(mode,) for mode in modes]:
            name = f"ranks-{count}" if count == least else f"{chosen[0]}-{count}"
            samples = batch if chosen[0] == "strong" else batch // least * count
            sized = replace(config, global_batch=samples, batch_per_rank=None, out=config.out / name)
            jobs.append(Job(chosen, count, sized))
    return jobs


def _in_words(config: FitConfig) -> str:
    threads = f"{config.threads} compute thread{'s' * (config.threads != 1)} per rank"
    return f"{config.model} on {config.data}, {config.strategy}, codec {config.codec}, {threads}"


def _checked_target(wanted: str, config: FitConfig) -> Target:
    if not (config.eval_every or config.eval_every_epochs):
        raise TrainerError("target: evaluations show it: give eval_every or eval_every_epochs")
    task = build_dataset(config.data, config.data_options, Reading(config.seed)).task
    return target_of(wanted, ["loss", *task.measures])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupts the launcher, which ends its ranks; kills it if that does not help."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(LAST_WORDS_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within it Ctrl-C, and SIGTERM as batch systems send it, raise KeyboardInterrupt."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
