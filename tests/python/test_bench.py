"""The benchmarks: what they count as a time, a bandwidth and a wrong result. No test looks at a speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycomm
from bench import collectives, facts, report, timing
from bench.errors import BenchError
from bench.implementations import IMPLEMENTATIONS, Call, Implementation
from bench.operations import DTYPES, OPERATIONS, REDUCTIONS, ROOT, TILE, Case
from bench.options import names, split
from bench.ranks import Ranks
from bench.timing import Budget, Contender, measure, percentiles, settled, turn_calls
from tests.helpers import run, script

COUNTS = (0, 1, 2, 7, TILE, 2 * TILE + 5)


@pytest.fixture
def alone() -> Ranks:
    return Ranks(pycomm.init())


class Slower(Ranks):
    """A second rank whose calls take the times given, in turns."""

    def __init__(self, theirs: list[float]) -> None:
        super().__init__(pycomm.init())
        self._theirs = theirs

    def gather(self, value: Any) -> list[Any]:
        return (
            [value, np.resize(self._theirs, len(value))] if isinstance(value, np.ndarray) else [value, value]
        )


# ---- the stop-watch


def test_percentiles_interpolate_and_take_the_unit() -> None:
    assert percentiles(np.arange(101) * 1e-6, 1e-6) == pytest.approx({"p5": 5, "p50": 50, "p95": 95})
    assert percentiles(np.array([1.0, 2.0]), 1e-3)["p50"] == pytest.approx(1500)


def test_a_median_is_settled_by_many_calls_that_agree() -> None:
    assert settled(np.full(timing.SETTLED_CALLS, 3.0))
    assert not settled(np.full(timing.SETTLED_CALLS - 1, 3.0))
    assert not settled(np.linspace(1.0, 2.0, 100))
    # One call in ten that takes a hundred times as long moves no median.
    assert settled(np.where(np.arange(100) % 10, 1.0, 100.0))


def test_a_turn_fits_its_time_and_what_is_left() -> None:
    budget = Budget(seconds=1, iterations=100, turn_s=0.02)
    assert turn_calls(np.empty(0), budget) == 1
    assert turn_calls(np.full(3, 0.004), budget) == 5
    assert turn_calls(np.full(3, 5.0), budget) == 1
    assert turn_calls(np.full(3, 1e-9), budget) == 10  # so that there are ten rounds
    assert turn_calls(np.full(98, 1e-9), budget) == 2
    assert turn_calls(np.full(100, 1e-9), budget) == 0


def test_contenders_take_turns_and_rewrite_before_each_call(alone: Ranks) -> None:
    log: list[str] = []
    contenders = [Contender(n, partial(log.append, n), partial(log.append, f"rewrite {n}")) for n in "ab"]
    times = measure(contenders, alone, Budget(seconds=1e6, iterations=40, warmup=2))
    assert {name: len(values) for name, values in times.items()} == {"a": 40, "b": 40}
    assert log[::2] == [f"rewrite {name}" for name in log[1::2]]
    turns = [name for name, before in zip(log[1::2], ["", *log[1::2]], strict=False) if name != before]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert len(turns) >= 2 * timing.MIN_ROUNDS
    assert len(log) // 2 == 80 + 2 * len(turns)  # the untimed calls of each turn


def test_a_budget_of_no_time_still_measures_a_few_calls(alone: Ranks) -> None:
    times = measure([Contender("slow", lambda: None)], alone, Budget(seconds=1e-9, iterations=1000))
    assert timing.MIN_CALLS <= len(times["slow"]) < 1000


def test_a_call_takes_as_long_as_on_its_worst_rank() -> None:
    ranks = Slower([50.0, 0.0])
    assert list(ranks.worst(np.array([1.0, 2.0]))) == [50.0, 2.0]
    times = measure([Contender("call", lambda: None)], ranks, Budget(seconds=60, iterations=10, turn_s=1e-9))
    assert list(times["call"]) == [50.0] * 10  # turns of one call, each slow on the other rank


@pytest.mark.parametrize("bad", [(0, 1, 0), (-1, 1, 0), (1, 0, 0), (1, 1, -1), (float("nan"), 1, 0)])
def test_an_impossible_budget_is_refused(bad: tuple[float, int, int]) -> None:
    with pytest.raises(BenchError, match="--seconds above 0, --iters from 1 and --warmup from 0, got"):
        Budget(*bad)


# ---- what a time is worth


def test_bus_bandwidth_follows_nccl_tests() -> None:
    factors = {name: operation.busbw_factor(4) for name, operation in OPERATIONS.items()}
    assert factors == {
        "all_reduce": 1.5,
        "reduce_scatter": 0.75,
        "all_gather": 0.75,
        "broadcast": 1.0,
        "reduce": 1.0,
        "gather": 0.75,
        "scatter": 0.75,
        "all_to_all": 0.75,
        "barrier": 0.0,
    }
    assert {operation.busbw_factor(1) for operation in OPERATIONS.values()} == {0.0}


def test_a_row_counts_decimal_gigabytes_at_the_median() -> None:
    case = Case(OPERATIONS["all_reduce"], 250_000, "float32", "sum", 0, 4)
    row = collectives.row(case, "x", np.array([0.5e-3, 1e-3, 9e-3]), wrong=0)
    assert (row["bytes"], row["time_us"]["p50"]) == (1_000_000, pytest.approx(1000))
    assert (row["algbw_gbps"], row["busbw_gbps"]) == (pytest.approx(1.0), pytest.approx(1.5))


def test_sizes_and_counts() -> None:
    assert collectives.sizes_of(8, 64 << 20, 8) == [8, 64, 512, 4096, 32768, 1 << 18, 1 << 21, 1 << 24]
    all_reduce, all_gather = OPERATIONS["all_reduce"], OPERATIONS["all_gather"]
    assert collectives.counts_of(all_reduce, [1, 2, 8, 10], 4, 3) == [1, 2]  # one element at least, each once
    assert collectives.counts_of(all_gather, [4, 40, 50], 4, 3) == [3, 9, 12]  # equal parts
    assert collectives.counts_of(OPERATIONS["barrier"], [8, 64], 4, 3) == [0]
    assert [collectives.parse_bytes(text) for text in ("8", "4K", "64m", "1G")] == [
        8,
        4096,
        64 << 20,
        1 << 30,
    ]


# ---- right and wrong


def simulate(cases: list[Case]) -> None:
    """The collective by NumPy, on the buffers of all ranks."""
    operation, size = cases[0].operation.name, len(cases)
    if operation == "broadcast":
        for case in cases:
            case.output[:] = cases[ROOT].input
    elif operation in ("all_gather", "gather"):
        whole = np.concatenate([case.input for case in cases])
        for case in cases:
            case.output[:] = whole[: len(case.output)]
    elif operation == "scatter":
        for case, part in zip(cases, np.split(cases[ROOT].input, size), strict=True):
            case.output[:] = part
    elif operation == "all_to_all":
        for case in cases:
            case.output[:] = np.concatenate([np.split(other.input, size)[case.rank] for other in cases])
    elif operation != "barrier":
        whole = REDUCTIONS[cases[0].redop].reduce([case.input for case in cases]).astype(cases[0].input.dtype)
        parts = np.split(whole, size) if operation == "reduce_scatter" else [whole] * size
        for case, part in zip(cases, parts, strict=True):
            case.output[:] = part


def who_gets(operation: str, size: int) -> list[int]:
    return [ROOT] if operation in ("reduce", "gather") else list(range(size))


def cases_of(
    operation: str, count: int, dtype: str = "float32", redop: str = "sum", size: int = 3
) -> list[Case]:
    cases = [Case(OPERATIONS[operation], count, dtype, redop, rank, size) for rank in range(size)]
    for case in cases:
        case.rewrite()
    return cases


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_right_result_has_nothing_wrong(operation: str, size: int) -> None:
    for count in COUNTS if OPERATIONS[operation].sized else [0]:
        whole = count // size * size if OPERATIONS[operation].divided else count
        cases = cases_of(operation, whole, size=size)
        simulate(cases)
        assert [case.wrong() for case in cases] == [0] * size


@pytest.mark.parametrize("redop", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 60, 127])
def test_results_are_exact_in_every_dtype(dtype: str, redop: str, size: int) -> None:
    cases = cases_of("all_reduce", 1000, dtype, redop, size)
    simulate(cases)
    assert cases[0].wrong() == 0
    assert np.isfinite(cases[0].output).all()
    assert len(np.unique(cases[0].output)) > 1


@pytest.mark.parametrize("operation", set(OPERATIONS) - {"barrier"})
def test_every_wrong_element_is_counted(operation: str) -> None:
    cases = cases_of(operation, 6 * TILE)
    simulate(cases)
    *_, one = who_gets(operation, len(cases))
    cases[one].output[[0, TILE + 3, -1]] += 1
    assert [case.wrong() for case in cases] == [3 if rank == one else 0 for rank in range(len(cases))]
    cases[one].output[5] = 0x7F if cases[one].output[5] != 0x7F else 0
    assert cases[one].wrong() == 4


@pytest.mark.parametrize("operation", set(OPERATIONS) - {"barrier"})
def test_results_of_an_earlier_call_do_not_count(operation: str) -> None:
    cases = cases_of(operation, 3 * TILE)
    simulate(cases)
    for case in cases:
        case.rewrite()
    waiting = [cases[rank] for rank in who_gets(operation, len(cases))]
    if operation == "broadcast":
        waiting.remove(cases[ROOT])
    assert all(case.wrong() > 0.8 * len(case.output) for case in waiting)


def test_swapped_chunks_are_wrong() -> None:
    for operation in ("all_reduce", "all_gather"):
        cases = cases_of(operation, 4 * 8192, size=4)
        simulate(cases)
        cases[0].output[:] = np.roll(cases[0].output, 8192)
        assert cases[0].wrong() > 8192


# ---- the program


def options(tmp_path: Path, *more: str) -> list[str]:
    return [*more, "--seconds", "0.01", "--iters", "5", "--json", str(tmp_path / "result.json")]


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def result_of(tmp_path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(
        (tmp_path / "result.json").read_text(), parse_constant=refuse_constant
    )
    return result


def test_one_rank_writes_a_result_without_bus_bandwidth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ",".join(OPERATIONS)
    assert (
        collectives.main(
            options(tmp_path, "--op", every, "--impl", "pycomm", "--max", "128", "--factor", "16")
        )
        == 0
    )
    result = result_of(tmp_path)
    assert result["ranks"] == 1
    assert {"pycomm", "mpi", "python", "numpy"} <= result["versions"].keys()
    assert result["command"].startswith("python -m bench collectives --op all_reduce,")
    assert {"cpu", "cores"} <= result["machine"].keys()
    sizes = [(row["op"], row["bytes"]) for row in result["rows"]]
    sized = [(op, size) for op in OPERATIONS if op != "barrier" for size in (8, 128)]
    assert sizes == [*sized, ("barrier", 0)]
    assert [(row["op"], row["bytes"]) for row in result["roofline"]] == sized
    for row in result["rows"]:
        assert (row["impl"], row["dtype"], row["busbw_gbps"], row["wrong"]) == ("pycomm", "float32", 0, 0)
        assert 0 < row["time_us"]["p5"] <= row["time_us"]["p50"] <= row["time_us"]["p95"]
    printed = capsys.readouterr().out
    assert "busbw  wrong  implementation" in printed
    assert "roofline" in printed


class Corrupt(Implementation):
    """Leaves one element of its result wrong."""

    def all_reduce(self, case: Case) -> Call:
        def call() -> None:
            case.input[1] = 99

        return call


@pytest.fixture
def corrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    IMPLEMENTATIONS.names()  # loads the others
    monkeypatch.setitem(IMPLEMENTATIONS._factories, "corrupt", Corrupt)
    yield


@pytest.mark.usefixtures("corrupt")
def test_a_wrong_result_is_reported_and_ends_with_1(tmp_path: Path) -> None:
    assert collectives.main(options(tmp_path, "--impl", "pycomm,corrupt", "--max", "8")) == 1
    assert {row["impl"]: row["wrong"] for row in result_of(tmp_path)["rows"]} == {"pycomm": 0, "corrupt": 1}
    assert "WRONG RESULTS: corrupt at 8." in report.render(result_of(tmp_path), "t")


@pytest.mark.usefixtures("corrupt")
def test_an_implementation_that_lacks_an_operation_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    implementations = "pycomm+fp16,corrupt"
    assert collectives.main(options(tmp_path, "--op", "all_gather,barrier", "--impl", implementations)) == 0
    result = result_of(tmp_path)
    assert result["rows"] == []
    assert {"op": "all_gather", "impl": "corrupt", "reason": "has no all_gather"} in result["missing"]
    assert len(result["missing"]) == 4
    assert "# corrupt has no barrier" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--impl", "pycomm,nccl"], "no implementation 'nccl'; there is deepspeed, gloo, mpi, pycomm"),
        (["--impl", "pycomm,pycomm"], "expected different names by comma, got 'pycomm,pycomm'"),
        (["--impl", "pycomm:"], "expected name or name:option+option, got 'pycomm:'"),
        (["--impl", "mpi:ring"], "mpi takes no options, got ring"),
        (["--impl", "pycomm:rign"], "pycomm has no 'rign'; expected an algorithm (binomial, "),
        (["--impl", "pycomm+fp16+bf16"], "pycomm takes one codec, got fp16 and bf16"),
        (["--op", "all_to_none"], "no operation 'all_to_none'; there is all_reduce, reduce_scatter, "),
        (["--min", "9", "--max", "8"], "expected 1 <= --min <= --max and --factor >= 2, got 9, 8 and 4"),
        (["--factor", "1"], "and --factor >= 2"),
        (["--plugin", "no.such.module"], "--plugin no.such.module: No module named 'no'"),
        (["--min", "8X"], "expected bytes such as 8, 4K, 64M or 1G, got '8X'"),
        (["--redop", "avg"], "invalid choice: 'avg'"),
        (["--iters", "0"], "--iters from 1"),
        (["--json", "/nowhere/at/all.json"], "--json /nowhere/at/all.json: there is no such folder"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_what_exists(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        collectives.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_names_split_into_options() -> None:
    assert split("pycomm:ring+fp16") == ("pycomm", ["ring", "fp16"])
    assert split("ddp-gloo") == ("ddp-gloo", [])
    assert split("pycomm:overlap=on") == ("pycomm", ["overlap=on"])
    for bad in ("a,,b", "", "a,a"):
        with pytest.raises(BenchError):
            names(bad)


def test_the_command_can_be_repeated(alone: Ranks) -> None:
    head = facts.facts("training", ["--model", "gpt", "--json", "a b.json"], alone)
    assert head["command"] == "python -m bench training --model gpt --json 'a b.json'"
    assert (head["ranks"], head["nodes"], head["transport"], head["transports"]) == (1, 1, "none", [["none"]])


# ---- two ranks

TRAIN = """
    import sys
    from bench import training, workloads
    from trainer.models import MODELS

    def tiny(draw):
        full = workloads.mlp(draw)
        return workloads.Workload("tiny", lambda: MODELS.build("mlp"), full.inputs, full.targets)

    workloads.WORKLOADS["tiny"] = tiny
    sys.exit(training.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_all_implementations_agree_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    implementations = "pycomm,mpi,gloo,pycomm+fp16,pycomm:persistent,pycomm:tree"
    chosen = [
        "--op",
        ",".join(OPERATIONS),
        "--impl",
        implementations,
        "--min",
        "4",
        "--max",
        "64K",
        "--factor",
        "128",
    ]
    outcome = run(2, "-m", "bench", "collectives", *options(tmp_path, *chosen))
    assert outcome.status == 0, outcome
    result = result_of(tmp_path)
    assert (result["ranks"], result["transport"]) == (2, result["transport"])
    assert "-m pycomm.launch -n 2 -m bench collectives --op" in result["command"]
    missing = {(lack["op"], lack["impl"]) for lack in result["missing"]}
    moving = [op for op, row in OPERATIONS.items() if not row.reduces]
    assert missing == {(op, impl) for op in moving for impl in ("pycomm+fp16", "pycomm:tree")}
    timed = {(row["op"], row["impl"]) for row in result["rows"]}
    assert timed == {(op, impl) for op in OPERATIONS for impl in implementations.split(",")} - missing
    assert [row for row in result["rows"] if row["wrong"]] == []
    for row in result["rows"]:
        assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"] * OPERATIONS[row["op"]].busbw_factor(2))
    assert outcome.stdout.count("# all_reduce, 2 ranks") == 1  # rank 0 alone prints


def test_the_choice_is_timed_beside_every_forced_algorithm(tmp_path: Path) -> None:
    chosen = ["--op", "all_reduce,gather", "--min", "64", "--max", "64"]
    outcome = run(2, "-m", "bench", "selection", *options(tmp_path, *chosen))
    assert outcome.status == 0, outcome
    rows = {row["op"]: row for row in result_of(tmp_path)["rows"]}
    assert {"auto", "ring", "direct", "mapped"} < set(rows["all_reduce"]["time_us"])
    for op, row in rows.items():
        times = row["time_us"]
        assert row["best"] == min(set(times) - {"auto"}, key=lambda name: times[name])
        assert row["auto_to_best"] == pytest.approx(times["auto"] / times[row["best"]])
        assert row["predicted_to_auto"] == pytest.approx(row["predicted_us"] / times["auto"])
        assert f"{op:>15}" in outcome.stdout and row["chosen"] in times
    table = report.render(result_of(tmp_path), "choice")
    assert "## gather, float32" in table
    row = rows["all_reduce"]
    assert f"| 64 | {row['chosen']} | {row['time_us']['auto']:.1f} | {row['best']} | " in table


def test_an_operation_without_sizes_has_no_choice_to_time(tmp_path: Path) -> None:
    outcome = run(2, "-m", "bench", "selection", *options(tmp_path, "--op", "all_reduce,barrier"))
    assert outcome.status == 2
    said = "python -m bench selection: barrier moves no vector: its algorithm is not chosen by size"
    assert outcome.stderr.count(said) == 1 and "Traceback" not in outcome.stderr


@pytest.mark.long
def test_training_steps_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    # Not fsdp2-gloo and ddp-gloo:zeroredundancy, whose modules take long to load.
    steps = (
        "none,pycomm,pycomm:overlap=on+fp16,zero1:overlap=on+share,zero2,zero3,ddp-gloo:view,ddp-gloo-fp16"
    )
    program = script(tmp_path, TRAIN)
    chosen = ["--model", "tiny", "--optimizer", "adam", "--impl", steps]
    outcome = run(2, program, *chosen, *options(tmp_path))
    assert outcome.status == 0, outcome
    rows = result_of(tmp_path)["rows"]
    assert [(row["model"], row["impl"], row["ranks"]) for row in rows] == [
        ("tiny", s, 2) for s in steps.split(",")
    ]
    assert [row["equal"] for row in rows] == [None] + [True] * 7
    assert all(row["peak_mb"] > 0 and row["optimizer"] == "adam" for row in rows)
    assert all(0 < row["step_ms"]["p5"] <= row["step_ms"]["p50"] <= row["step_ms"]["p95"] for row in rows)
    table = report.render(result_of(tmp_path), "steps")
    assert "| none | " in table
    assert "| step | ms | MB at most | / none | / pycomm |" in table
