"""How algorithms are chosen: explanations, PYCOMM_ALGO, tables of measured times."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycomm import Communicator, InvalidArgument, _core, fit, tune, tuned
from pycomm.plans import COLLECTIVES
from pycomm.testing import run_threads
from tests.helpers import run, script
from tests.traces import TraceFile

pytestmark = pytest.mark.timeout(60)

SIZES = (4, 3_000, 70_000, 3_000_000)


@pytest.fixture(autouse=True)
def no_table_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYCOMM_TUNED", raising=False)
    monkeypatch.delenv("PYCOMM_ALGO", raising=False)


def group(n: int, times: list[dict[str, Any]], links: str = "inproc_mapped") -> dict[str, Any]:
    return {"ranks": n, "ranks_per_machine": n, "links": links, "prices": {"call_s": 1e-5}, "times": times}


def table(*groups: dict[str, Any]) -> dict[str, Any]:
    return {"pycomm_tuned": 1, "machine": tuned.machine(), "groups": list(groups)}


def times(collective: str, **seconds: float) -> dict[str, Any]:
    """Each algorithm takes so long at every size."""
    return {
        "collective": collective,
        "width": 4,
        "bytes": [8, 1 << 20],
        "seconds": {name: [value, value] for name, value in seconds.items()},
    }


def chosen(comm: Communicator, collective: str = "all_reduce", nbytes: int = 4096) -> tuple[str, str]:
    explained = comm.explain(collective, nbytes)
    return explained.algorithm, explained.by


# ---- explanations


def every_collective(comm: Communicator, nbytes: int) -> list[str]:
    """Calls each, and returns what explain says they run by."""
    count = nbytes // 4 // comm.size * comm.size or comm.size
    x, part = np.ones(count, np.float32), np.ones(count // comm.size, np.float32)
    comm.all_reduce(x)
    comm.reduce_scatter(x)
    comm.all_gather(part)
    comm.broadcast(x)
    comm.reduce(x)
    comm.gather(part)
    comm.scatter(x if comm.rank == 0 else None, out=part)
    comm.all_to_all(x)
    return [comm.explain(name, 4 * count).algorithm for name in COLLECTIVES]


@pytest.mark.parametrize("transport", ["inproc", "inproc_mapped"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_is_explained_is_what_runs(n: int, transport: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    def calls(comm: Communicator) -> list[str]:
        return [name for nbytes in SIZES for name in every_collective(comm, nbytes)]

    explained = run_threads(n, calls, transport=transport, trace=path)
    assert all(row == explained[0] for row in explained)
    for rank in range(n):
        ran = sorted((o for o in TraceFile(path).operations if o.rank == rank), key=lambda o: o.begin)
        by_call = [o.args["algorithm"] for o in ran if o.args["collective"] in COLLECTIVES]
        assert by_call == explained[rank]


def test_an_explanation_is_for_people_too() -> None:
    def shown(comm: Communicator) -> str:
        return str(comm.explain("all_reduce", 1 << 20, codec="fp16"))

    text = run_threads(4, shown)[0]
    assert text.startswith("all_reduce of 1M, float32 with fp16, on 4 ranks: direct, by model\n")
    for part in (
        "inproc_mapped (6 pairs)",
        "segments ",
        "predicted ",
        "ring ",
        "round once",
        "different bits",
    ):
        assert part in text


def test_an_explanation_follows_the_call() -> None:
    def calls(comm: Communicator) -> None:
        named = comm.explain("all_reduce", 1 << 20, algorithm="ring")
        assert (named.algorithm, named.by) == ("ring", "the call")
        assert named.predicted_s == next(c.model_s for c in named.candidates if c.name == "ring") > 0
        assert comm.explain("all_to_all", 1 << 20, counts=True).algorithm == "direct"
        assert comm.explain("all_reduce", 10, "bfloat16").algorithm == "direct"
        for wrong in (
            lambda: comm.explain("all_redux", 1),
            lambda: comm.explain("all_reduce", -1),
            lambda: comm.explain("all_reduce", 1, "complex64"),
            lambda: comm.explain("all_reduce", 1, algorithm="rign"),
            lambda: comm.explain("all_reduce", 1, codec="fp7"),
        ):
            with pytest.raises(InvalidArgument):
                wrong()

    run_threads(3, calls, transport="inproc")


def test_half_precision_ends_with_the_same_bits_whatever_is_chosen() -> None:
    def calls(comm: Communicator) -> None:
        x = np.random.default_rng(comm.rank).standard_normal(10_007).astype(np.float16)
        results = [comm.all_reduce(x.copy(), algorithm=name) for name in ("direct", "mapped", None)]
        assert all(np.array_equal(results[0], other) for other in results)

    run_threads(4, calls, transport="inproc_mapped")


def test_subgroups_choose_by_their_own_size() -> None:
    def calls(comm: Communicator) -> None:
        pair = comm.split(comm.rank // 2)
        assert pair is not None
        assert pair.explain("all_reduce", 100).ranks == 2
        assert chosen(pair) == chosen(pair)
        assert pair.all_reduce(np.ones(1000)).sum() == 2000

    run_threads(6, calls, transport="inproc")


# ---- PYCOMM_ALGO


def test_rules_of_the_environment_are_followed_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_ALGO", "all_reduce:direct<4K;ring broadcast:binomial")

    def calls(comm: Communicator) -> list[tuple[str, str]]:
        comm.all_reduce(np.ones(10_000))
        return [
            chosen(comm, nbytes=4095),
            chosen(comm, nbytes=4096),
            chosen(comm, "broadcast"),
            chosen(comm, "gather"),
        ]

    for got in run_threads(3, calls):
        assert got[:3] == [("direct", "PYCOMM_ALGO"), ("ring", "PYCOMM_ALGO"), ("binomial", "PYCOMM_ALGO")]
        assert got[3][1] == "model"


def test_a_call_that_names_an_algorithm_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_ALGO", "all_reduce:mapped")
    path_free = run_threads(2, lambda c: c.all_reduce(np.ones(3), algorithm="ring"), transport="inproc")
    assert path_free[0].tolist() == [2, 2, 2]


def test_rules_that_cannot_be_kept_raise_and_list_those_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_ALGO", "all_reduce:mapped")
    expected = (
        "all_reduce by mapped, as PYCOMM_ALGO says, cannot .* not addressable; these can: direct, .*ring"
    )

    def calls(comm: Communicator) -> None:
        with pytest.raises(InvalidArgument, match=expected):
            comm.all_reduce(np.ones(3))
        comm.barrier()

    run_threads(2, calls, transport="inproc")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("all_reduce:rign", "at character 12 expected an algorithm for all_reduce .*ring.*got 'rign'"),
        ("all_reduce:ring<", "at character 17 expected a size in bytes, .* got the end"),
        ("allreduce:ring", "at character 1 expected a collective"),
    ],
)
def test_mistakes_in_rules_are_named_at_init(
    rules: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCOMM_ALGO", rules)
    with pytest.raises(InvalidArgument, match=f"PYCOMM_ALGO is '{rules}'; {message}"):
        run_threads(2, lambda comm: comm.barrier())


# ---- tables


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def written(content: Any) -> Path:
        path = tmp_path / "my table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("PYCOMM_TUNED", str(path))
        return path

    return written


def test_the_fastest_of_the_table_is_chosen(write: Any) -> None:
    write(table(group(3, [times("all_reduce", ring=3e-6, direct=2e-6, mapped=4e-6)])))

    def calls(comm: Communicator) -> list[Any]:
        explained = comm.explain("all_reduce", 4096)
        return [chosen(comm), chosen(comm, "broadcast")[1], explained.predicted_s]

    for algorithm, other, seconds in run_threads(3, calls):
        assert (algorithm, other) == (("direct", "table"), "model")
        assert seconds == pytest.approx(2e-6)
    # A table of other groups lends its prices alone.
    assert run_threads(2, chosen)[0][1] == "model"
    assert run_threads(3, chosen, transport="inproc")[0][1] == "model"


def test_the_table_in_the_cache_directory_is_read(tmp_path: Path) -> None:
    path = tuned.default_path()
    assert path == tmp_path / "cache" / "pycomm" / "tuned.json"
    tuned.write(path, table(group(2, [times("all_reduce", ring=1e-6, direct=2e-6)])))
    assert [file.name for file in path.parent.iterdir()] == ["tuned.json"]
    assert run_threads(2, chosen) == [("ring", "table")] * 2


def torn_tables() -> dict[str, tuple[Any, str]]:
    good = table(group(2, [times("all_reduce", ring=1e-6)]))
    text = json.dumps(good)
    foreign = good | {"machine": {"cpu": "another", "cores": 7}}
    return {
        "cut off": (text[: len(text) // 2], "is torn, or no table"),
        "no object": ([1], "expected an object with pycomm_tuned = 1"),
        "other format": (good | {"pycomm_tuned": 2}, "expected an object with pycomm_tuned = 1"),
        "other machine": (foreign, "measured on another machine.*pycomm.tune"),
        "no groups": ({key: good[key] for key in good if key != "groups"}, "'groups'"),
        "other algorithm": (table(group(2, [times("all_reduce", rign=1e-6)])), "no algorithm 'rign'"),
        "lengths": (table(group(2, [times("all_reduce", ring=1e-6) | {"bytes": [8]}])), "torn"),
        "negative": (table(group(2, [times("all_reduce", ring=-1.0)])), "growing bytes"),
        "price": (table(group(2, []) | {"prices": {"speed": 1.0}}), "the name of a price"),
        "text": (table(group(2, []) | {"ranks": "two"}), "torn"),
    }


@pytest.mark.parametrize("case", torn_tables())
def test_a_torn_or_foreign_table_that_was_named_is_an_error_on_all_ranks(case: str, write: Any) -> None:
    content, message = torn_tables()[case]
    path = write(content)
    with pytest.raises(InvalidArgument, match=f"PYCOMM_TUNED: table {path}.*{message}"):
        run_threads(3, lambda comm: comm.barrier())


def test_a_table_that_is_named_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_TUNED", "/no/such/table.json")
    with pytest.raises(InvalidArgument, match=r"/no/such/table\.json: No such file"):
        run_threads(2, lambda comm: comm.barrier())


def test_a_torn_table_in_the_default_place_is_a_warning_and_not_used() -> None:
    assert tuned.load() == ("", "")
    path = tuned.default_path()
    path.parent.mkdir(parents=True)
    path.write_text("{")
    lines, warning = tuned.load()
    assert lines == "" and str(path) in warning and "torn" in warning
    assert run_threads(2, chosen)[0][1] == "model"


def test_tables_keep_what_was_measured_of_other_groups_and_collectives() -> None:
    first = tuned.merged(None, group(2, [times("all_reduce", ring=1.0), times("reduce", ring=1.0)]))
    both = tuned.merged(first, group(4, [times("all_reduce", ring=2.0)]))
    last = tuned.merged(both, group(2, [times("all_reduce", ring=3.0)]))
    found = {
        g["ranks"]: {t["collective"]: t["seconds"]["ring"][0] for t in g["times"]} for g in last["groups"]
    }
    assert found == {2: {"reduce": 1.0, "all_reduce": 3.0}, 4: {"all_reduce": 2.0}}


# ---- measuring and fitting


def test_prices_are_found_again_from_the_times_they_predict() -> None:
    def fitted(comm: Communicator) -> list[float]:
        truth = {"call_s": 7e-6, "inproc.latency_s": 3e-6, "inproc.byte_s": 8e-10, "byte_reduced_s": 5e-10}
        samples = [
            fit.Sample(collective, name, nbytes, False, pricer.seconds(nbytes, False, truth))
            for collective, name in [
                ("all_reduce", "ring"),
                ("broadcast", "binomial"),
                ("all_gather", "direct"),
            ]
            for pricer in [_core.Pricer(comm._core, collective, name)]
            for nbytes in (8, 4096, 1 << 16, 1 << 20)
        ]
        found = fit.prices(comm._core, samples, time.monotonic() + 20)
        return [
            _core.Pricer(comm._core, one.collective, one.algorithm).seconds(one.nbytes, False, found)
            / one.seconds
            for one in samples
        ]

    for ratios in run_threads(2, fitted, transport="inproc"):
        assert np.allclose(ratios, 1, atol=0.1)


def test_what_tune_measured_is_what_init_reads(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    job = run(
        2,
        "-m",
        "pycomm.tune",
        "--seconds",
        "30",
        "--max",
        "4096",
        "--collectives",
        "all_reduce,gather",
        "--write",
        str(path),
        limit_s=60,
    )
    assert job.status == 0 and str(path) in job.stdout, job
    content = json.loads(path.read_text())
    (measured,) = content["groups"]
    assert (measured["ranks"], measured["links"]) == (2, "shm")
    by = {(t["collective"], t["width"]): t for t in measured["times"]}
    assert set(by) == {("all_reduce", 4), ("all_reduce", 2), ("gather", 4)}
    assert by["all_reduce", 4]["bytes"] == [size for size in tune.SIZES if size <= 4096]
    program = """
        import pycomm
        comm = pycomm.init()
        for name in ("all_reduce", "gather", "broadcast"):
            explained = comm.explain(name, 512)
            print(name, explained.algorithm, explained.by)
    """
    job = run(2, script(tmp_path, program), env={"PYCOMM_TUNED": str(path)}, limit_s=60)
    seconds = {name: values[2] for name, values in by["all_reduce", 4]["seconds"].items()}
    assert f"all_reduce {min(seconds, key=lambda name: seconds[name])} table" in job.stdout, job
    assert " table" in job.stdout and "broadcast" in job.stdout and " model" in job.stdout


def test_ranks_with_other_rules_or_tables_are_named_once_and_use_those_of_rank_0(tmp_path: Path) -> None:
    program = """
        import os, warnings
        rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])
        if rank == 1:
            os.environ["PYCOMM_ALGO"] = "all_reduce:direct"
            os.environ["PYCOMM_TUNED"] = "/a b/100%.json"
        if rank == 0:
            os.environ["PYCOMM_ALGO"] = "all_reduce:ring"
        import numpy as np, pycomm
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            comm = pycomm.init()
        explained = comm.explain("all_reduce", 64)
        comm.all_reduce(np.ones(16, np.float32))
        text = " / ".join(str(w.message) for w in seen)
        print(f"[{rank}] {explained.algorithm} {len(seen)} {text}", flush=True)
    """
    job = run(2, script(tmp_path, program), limit_s=60)
    lines = dict(line[1:].split("] ") for line in job.stdout.splitlines() if line.startswith("["))
    assert lines["1"].startswith("ring 0"), job
    assert lines["0"].startswith("ring 1 rank 1 was started with other settings"), job
    assert "algo=all_reduce:direct" in lines["0"] and "tuned=/a%20b/100%25.json" in lines["0"], job
