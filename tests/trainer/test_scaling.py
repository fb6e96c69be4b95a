"""Strong and weak scaling: which fits are run, what is said of them, and what is kept when one fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pycomm.testing import run_threads
from trainer import FitConfig, TrainerError, fit
from trainer.__main__ import main
from trainer.record import Record
from trainer.scaling.results import by_mode
from trainer.scaling.shown import text
from trainer.scaling.study import Job, Study, plan
from trainer.scaling.target import Target, target_of

pytest.importorskip("matplotlib")

LINEAR: dict[str, Any] = {"data": "linear", "model": "linear", "optimizer": "sgd", "lr": 0.01, "steps": 4}


class OnThreads(Study):
    """Whose ranks are threads; a job named in `bad` fails, and at `interrupted` somebody presses Ctrl-C."""

    bad: tuple[str, ...] = ()
    interrupted: str | None = None

    def _fit(self, job: Job) -> str | None:
        if job.name == self.interrupted:
            raise KeyboardInterrupt
        if job.name in self.bad:
            return "status 1: no"
        run_threads(job.ranks, lambda comm: fit(job.config, comm))
        return None


def study(out: Path, ranks: list[int], modes: str = "strong,weak", target: str | None = None, **options: Any):
    config = FitConfig(**{**LINEAR, "out": out, "global_batch": 12, **options})
    return OnThreads(config, ranks, modes.split(","), target, "", {})


def row(ranks: int, modes: list[str], samples_per_s: float | None) -> dict[str, Any]:
    return {"ranks": ranks, "modes": modes, "samples_per_s": samples_per_s, "error": None}


def test_the_smallest_number_of_ranks_is_run_once_for_both_modes() -> None:
    jobs = plan(FitConfig(global_batch=12, out=Path("s")), [4, 2, 6], ["strong", "weak"])
    assert [(job.name, job.modes, job.ranks, job.config.global_batch_for(job.ranks)) for job in jobs] == [
        ("ranks-2", ("strong", "weak"), 2, 12),
        ("strong-4", ("strong",), 4, 12),
        ("weak-4", ("weak",), 4, 24),
        ("strong-6", ("strong",), 6, 12),
        ("weak-6", ("weak",), 6, 36),
    ]
    assert {job.config.out.parent for job in jobs} == {Path("s")}


@pytest.mark.parametrize(("options", "strong", "weak"), [({"batch_per_rank": 5}, 10, 30), ({}, 128, 384)])
def test_either_batch_decides_the_other_at_the_smallest_number_of_ranks(
    options: dict[str, int], strong: int, weak: int
) -> None:
    jobs = {job.name: job.config for job in plan(FitConfig(**options), [2, 6], ["strong", "weak"])}
    assert [jobs[name].global_batch_for(6) for name in ("strong-6", "weak-6")] == [strong, weak]


def test_threads_are_the_same_for_all_ranks() -> None:
    assert {job.config.threads for job in plan(FitConfig(), [1, 2], ["strong"])} == {1}
    assert {job.config.threads for job in plan(FitConfig(threads=3), [1, 2], ["strong"])} == {3}


def test_efficiency_is_the_speed_up_per_rank_of_the_first_run() -> None:
    both, strong, weak = ["strong", "weak"], ["strong"], ["weak"]
    rows = [row(2, both, 100.0), row(6, strong, 150.0), row(6, weak, 270.0)]
    found = by_mode({"runs": rows})
    assert [(r["speedup"], r["efficiency"]) for r in found["strong"]] == [(1, 1), (1.5, 0.5)]
    assert [(r["speedup"], r["efficiency"]) for r in found["weak"]] == [(1, 1), (2.7, pytest.approx(0.9))]


def test_without_the_first_run_nothing_is_compared() -> None:
    rows = [row(1, ["strong"], None) | {"error": "no"}, row(2, ["strong"], 10.0)]
    assert [r["efficiency"] for r in by_mode({"runs": rows})["strong"]] == [None, None]


def test_a_study_leaves_rows_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(tmp_path, [1, 3], target="loss=1e9", eval_every=2).run() == 0
    results = json.loads((tmp_path / "scaling.json").read_text())
    batches = {(tuple(r["modes"]), r["ranks"]): r["global_batch"] for r in results["runs"]}
    assert batches == {
        (("strong", "weak"), 1): 12, (("strong",), 3): 12, (("weak",), 3): 36
    }  # fmt: skip
    assert results["not_run"] == []
    for r in results["runs"]:
        rows = [json.loads(line) for line in (Path(r["run"]) / "metrics.jsonl").read_text().splitlines()]
        assert (r["steps"], r["loss_last"]) == (4, rows[-1]["loss"])
        assert r["to_target"] == {
            "step": 2,
            "s": pytest.approx((rows[0]["step_ms"] + rows[1]["step_ms"]) / 1e3),
        }
        assert min(r["held_bytes"], r["peak_rss_bytes"], r["step_ms"], r["samples_per_s"]) > 0
    losses = {r["loss_last"] for r in results["runs"] if "strong" in r["modes"]}
    assert max(losses) == pytest.approx(min(losses), rel=1e-5)  # strong scaling computes the same steps
    table = (tmp_path / "scaling.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("## ") == 2 and table.count("100 %") >= 2 and "(step 2)" in table
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = study(tmp_path, [1, 2], "weak")
    failing.bad = ("weak-2",)
    assert failing.run() == 1
    assert "FAILED with 2 ranks: status 1: no" in capsys.readouterr().out
    runs = json.loads((tmp_path / "scaling.json").read_text())["runs"]
    assert [(r["ranks"], r["error"]) for r in runs] == [(1, None), (2, "status 1: no")]


def test_after_an_interruption_what_is_done_is_kept_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = study(tmp_path, [1, 2, 3], "strong")
    stopped.interrupted = "strong-2"
    before = signal.getsignal(signal.SIGTERM)
    assert stopped.run() == 130
    assert signal.getsignal(signal.SIGTERM) is before
    results = json.loads((tmp_path / "scaling.json").read_text())
    assert [r["ranks"] for r in results["runs"]] == [1]
    assert "Not run: strong-2, strong-3." in capsys.readouterr().out


def record(*rows: dict[str, Any]) -> Record:
    timed = [{"step": step, "loss": 1.0, "step_ms": 500.0, **row} for step, row in enumerate(rows, 1)]
    return Record(Path("x"), timed, None, None)


def test_a_target_is_reached_at_the_first_evaluation_that_shows_it() -> None:
    low, high = {"eval": {"accuracy": 0.5}}, {"eval": {"accuracy": 0.75}}
    target = target_of("accuracy = 0.75", ["loss", "accuracy"])
    assert target == Target("accuracy", 0.75, least=True)
    assert target.reached(record({}, low, {}, high, high)) == {"step": 4, "s": 2.0}
    assert target.reached(record(low, low)) is None
    validated = {"validation": {"accuracy": 0.8}, **low}
    assert target.reached(record(high, validated)) == {"step": 2, "s": 1.0}  # what is validated decides
    assert target_of("loss=3e-1", ["loss"]) == Target("loss", 0.3, least=False)
    assert target_of("error<=2", ["loss", "error"]).reached(record({"eval": {"error": 2}}))["step"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "1,two"], "ranks: expected numbers by comma, as 1,2,4, got '1,two'"),
        (["--ranks", "0,1"], "ranks: expected different numbers of 1 or more, got [0, 1]"),
        (["--ranks", "2,2"], "ranks: expected different numbers"),
        (["--modes", "strong,big"], "modes: expected of strong, weak, got strong, big"),
        (["--ranks", "3,6"], "a global batch of 128 is not the same for each of 3 ranks"),
        (["--target", "loss=1"], "give eval_every or eval_every_epochs"),
        (
            ["--target", "speed=1", "--eval_every", "1"],
            "target: expected accuracy=VALUE, loss=VALUE, or NAME>=",
        ),
        (["--target", "loss", "--eval_every", "1"], "target: expected accuracy=VALUE"),
        (
            ["--target", "accuracy=1", "--eval_every", "1"],
            "no measure 'accuracy'; evaluations have loss, abs",
        ),
        (["--save_every", "5"], "expected neither resume nor save_every"),
        (["--data_local"], "scaling compares runs on the same samples"),
        (["--exact", "--ranks", "1,3"], "8 logical shards cannot be shared out evenly among 3 ranks"),
        (["--codec", "int4"], "no codec 'int4'"),
        (["--out", "/dev/null/x"], "cannot write /dev/null/x/scaling.json"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["scaling", "--data", "linear", "--model", "linear", "--out", str(out), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_scaling_is_not_for_ranks() -> None:
    with pytest.raises(TrainerError, match="start it without a launcher"):
        Study(FitConfig(**LINEAR), [1], ["strong"], None, "", {"OMPI_COMM_WORLD_RANK": "0"})


def test_more_threads_than_cores_are_told() -> None:
    results = {"command": "", "fit": "", "runs": [], "not_run": [], "target": None, "cores": 4, "threads": 3}
    done = row(2, ["strong"], 1.0) | dict.fromkeys(
        ("exposed_ms", "step_ms", "held_bytes", "peak_rss_bytes", "global_batch", "steps", "loss_last"), 1
    )
    assert "threads share the" not in text(results)
    assert "Up to 6 threads share the 4 cores" in text(results | {"runs": [done]})
    assert "threads share the" not in text(results | {"runs": [done | {"ranks": 1}]})


def command(tmp_path: Path, *more: str) -> list[str]:
    linear = ["--data", "linear", "--model", "linear", "--optimizer", "sgd", "--lr", "0.01"]
    return [sys.executable, "-m", "trainer", "scaling", *linear, "--out", str(tmp_path / "out"), *more]


@pytest.mark.long
def test_one_command_launches_every_fit(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = command(tmp_path, "--ranks", "1,2", "--steps", "5", "--mpirun=--tag-output")
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((tmp_path / "out" / "scaling.json").read_text())["runs"]
    assert [(r["ranks"], r["error"], r["steps"]) for r in runs] == [(1, None, 5), (2, None, 5), (2, None, 5)]
    summary = json.loads((tmp_path / "out" / "weak-2" / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert "--tag-output" in (tmp_path / "out" / "weak-2.log").read_text()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_ends_its_ranks_and_says_what_is_done(
    number: signal.Signals, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = command(tmp_path, "--ranks", "1,2", "--modes", "strong", "--steps", "1000000")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
    rows = tmp_path / "out" / "ranks-1" / "metrics.jsonl"
    until = time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Not run: ranks-1, strong-2." in out
    size = rows.stat().st_size
    time.sleep(0.5)
    assert rows.stat().st_size == size  # no rank goes on


@pytest.mark.long
def test_a_fit_that_fails_is_quoted(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = command(
        tmp_path, "--ranks", "1,2", "--modes", "strong", "--steps", "3", "--strategy", "single"
    )
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "strategy 'single' trains in one process, got 2 ranks" in done.stdout
