"""Users' tests on several ranks: what is said, by whom, how often, and how sessions end."""

from __future__ import annotations

import os
import re
import signal
import textwrap
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.helpers import Job, Outcome, start

pytestmark = pytest.mark.timeout(90)

HEAD = """
    import os, sys, time
    import numpy as np
    import pytest
    import pycomm
    RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
"""


def begin(folder: Path, ranks: int, source: str, *options: str, ini: str = "") -> Job:
    """Starts pytest on a package of tests that has one file."""
    # A development install's import hook is loaded before pytest can rewrite it.
    quiet = "filterwarnings = ignore:Module already imported so cannot be rewritten"
    (folder / "pytest.ini").write_text(f"[pytest]\n{quiet}\n{ini}\n")
    (folder / "test_it.py").write_text(textwrap.dedent(HEAD) + textwrap.dedent(source))
    arguments = [
        "pytest",
        "-p",
        "pycomm.pytest_plugin",
        "-rA",
        "--color=no",
        "-p",
        "no:hypothesispytest",
        *options,
        str(folder),
    ]
    return start(ranks, "-m", *arguments, env={"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"})


def ended(folder: Path, ranks: int, source: str, *options: str, ini: str = "") -> Outcome:
    return begin(folder, ranks, source, *options, ini=ini).finish(40)


def summary(outcome: Outcome) -> dict[str, str]:
    """The lines of pytest's short summary, by test: outcomes and reasons."""
    lines: dict[str, str] = {}
    for line in outcome.stdout.splitlines():
        if found := re.match(r"([A-Z]+) \S*test_it\.py::(\S+)(?: - (.*))?$", line.strip()):
            what, test, reason = found.groups()
            said = f"{what} {reason}" if reason else what
            lines[test] = f"{lines[test]}, {said}" if test in lines else said
    return lines


MIXED = """
    def test_passes(comm):
        assert comm.all_reduce(np.array([comm.rank])).item() == comm.size * (comm.size - 1) // 2

    def test_one_fails_while_the_others_wait(comm):
        comm.barrier()
        if comm.rank == 1:
            print("words of rank", comm.rank)
            raise KeyError("lost")
        comm.all_reduce(np.ones(3))

    def test_one_fails_while_the_others_wait_in_a_group(comm):
        group = comm.split(0)
        half = group.split(comm.rank // 2)
        if comm.rank == comm.size - 1:
            raise KeyError("last")
        half.barrier()
        group.barrier()

    def test_one_fails_while_the_others_are_done(comm):
        assert comm.rank != 0, "zero"

    def test_all_fail(comm):
        raise ValueError(f"value {comm.rank}")

    def test_two_fail_at_different_places(comm):
        if comm.rank == 0:
            raise KeyError("zero")
        if comm.rank == 1:
            raise KeyError("one")

    def test_init_is_this_tests():
        comm = pycomm.init()
        if comm.rank == 0:
            raise OSError("init")
        comm.barrier()

    def test_shutdown_is_refused():
        with pytest.raises(pycomm.InvalidArgument, match="other tests need"):
            pycomm.shutdown()

    @pytest.mark.skip(reason="not now")
    def test_skipped():
        raise AssertionError

    def test_one_skips_while_the_others_wait(comm):
        if comm.rank == 1:
            pytest.skip("not here")
        comm.barrier()

    @pytest.mark.xfail(raises=KeyError, strict=True)
    def test_expected_on_one_rank(comm):
        if comm.rank == 1:
            raise KeyError
        comm.barrier()

    @pytest.mark.xfail(strict=True)
    def test_expected_on_one_rank_and_others_pass(comm):
        assert comm.rank != 1

    @pytest.mark.xfail(strict=True)
    def test_expected_but_passes(comm):
        comm.barrier()

    @pytest.fixture
    def breaks(comm):
        if comm.rank == 1:
            raise KeyError("in setup")

    def test_setup_fails_on_one_rank(comm, breaks):
        comm.barrier()

    @pytest.fixture
    def ends_badly(comm):
        yield
        if comm.rank == 1:
            raise KeyError("in teardown")
        comm.barrier()

    def test_teardown_fails_on_one_rank(ends_badly):
        pass

    def test_passes_after_all(comm):
        assert comm.broken is None
        assert comm.all_gather(np.array([comm.rank])).tolist() == list(range(comm.size))
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_test_has_one_outcome(ranks: int, tmp_path: Path) -> None:
    outcome = ended(tmp_path, ranks, MIXED, f"--junit-xml={tmp_path}/out.xml")
    assert outcome.status == 1, outcome
    assert summary(outcome) == {
        "test_passes": "PASSED",
        "test_one_fails_while_the_others_wait": "FAILED [rank 1] KeyError: 'lost'",
        "test_one_fails_while_the_others_wait_in_a_group": f"FAILED [rank {ranks - 1}] KeyError: 'last'",
        "test_one_fails_while_the_others_are_done": "FAILED [rank 0] AssertionError: zero",
        "test_all_fail": f"FAILED [all {ranks} ranks] ValueError: value 0",
        "test_two_fail_at_different_places": "FAILED [rank 0] KeyError: 'zero'",
        "test_init_is_this_tests": "FAILED [rank 0] OSError: init",
        "test_shutdown_is_refused": "PASSED",
        "test_expected_on_one_rank": "XFAIL",
        "test_expected_on_one_rank_and_others_pass": "XFAIL",
        "test_expected_but_passes": f"FAILED [all {ranks} ranks] [XPASS(strict)]",
        "test_setup_fails_on_one_rank": "ERROR [rank 1] KeyError: 'in setup'",
        "test_teardown_fails_on_one_rank": "PASSED, ERROR [rank 1] KeyError: 'in teardown'",
        "test_passes_after_all": "PASSED",
    }
    assert re.search(r"=+ 7 failed, 4 passed, 2 skipped, 2 xfailed, 2 errors in", outcome.stdout), outcome
    for once in (
        "words of rank 1",
        "] Skipped: not here",
        "rank 1: ValueError: value 1\n",
        " KeyError: 'one'\n",
    ):
        assert outcome.stdout.count(once) == 1, (once, outcome)
    assert outcome.stdout.count("test session starts") == 1, outcome
    assert "Aborted" not in outcome.stdout and "MPI_ABORT" not in outcome.stderr, outcome
    root = ElementTree.parse(tmp_path / "out.xml").getroot()
    cases = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert len(cases) == 16 and cases["test_passes"] == [] and cases["test_skipped"] == ["skipped"]
    assert cases["test_one_fails_while_the_others_wait"][0] == "failure"


def test_a_session_that_passes_ends_with_0_and_counts_tests_once(tmp_path: Path) -> None:
    """Also with more tests than MPI has tags for, and with messages that nobody receives."""
    source = """
        @pytest.mark.parametrize("number", range(300))
        def test_many(comm, number):
            assert comm.broadcast(np.array([comm.rank]), root=number % comm.size).item() == number % comm.size

        @pytest.mark.xfail
        @pytest.mark.parametrize("count", [3, 3_000, 300_000])
        def test_expected(comm, count):
            if comm.rank == 1:
                raise KeyError
            comm.all_reduce(np.ones(count))
    """
    outcome = ended(tmp_path, 3, source, "-q")
    assert outcome.status == 0 and re.search(r"300 passed, 3 xfailed in", outcome.stdout), outcome
    said = [line for line in outcome.stderr.splitlines() if not line.startswith("pycomm.launch: ")]
    assert said == [], outcome


def test_after_the_first_failure_all_ranks_stop(tmp_path: Path) -> None:
    source = """
        def test_one(comm):
            assert comm.rank != 1, "one"

        def test_two(comm):
            raise AssertionError("not reached")
    """
    outcome = ended(tmp_path, 2, source, "-x")
    assert outcome.status == 1 and summary(outcome) == {"test_one": "FAILED [rank 1] AssertionError: one"}, (
        outcome
    )


def test_errors_of_collection_on_all_ranks_are_said_once(tmp_path: Path) -> None:
    outcome = ended(tmp_path, 2, "    import no_such_module")
    assert outcome.status == 2 and re.search(r"=+ 1 error in", outcome.stdout), outcome
    assert "MPI_ABORT" not in outcome.stderr, outcome


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            """
            def test_same(): pass
            if RANK == 1:
                def test_of_rank_1(): pass
            def test_last(): pass
            """,
            "test 2 is test_it.py::test_last on rank 0 and test_it.py::test_of_rank_1 on rank 1",
        ),
        (
            """
            if RANK == 1:
                import no_such_module
            """,
            "only rank 1 failed to collect test_it.py:",
        ),
    ],
)
def test_different_tests_on_ranks_are_refused(source: str, words: str, tmp_path: Path) -> None:
    outcome = ended(tmp_path, 2, source)
    assert outcome.status == 4 and outcome.stdout.count(words) == 1, outcome
    assert "passed" not in outcome.stdout, outcome


HANG = """
    def test_before(comm): pass

    def test_hangs_on_rank_1(comm):
        if comm.rank == 1:
            time.sleep(80)  # the culprit
        WAIT

    def test_after(comm): pass
"""


@pytest.mark.parametrize(
    ("ini", "wait"),
    [
        ("pycomm_timeout = 1", "comm.barrier()"),
        ("timeout = 1", "pass"),
    ],
)
def test_a_test_that_hangs_on_one_rank_ends_the_job(ini: str, wait: str, tmp_path: Path) -> None:
    outcome = ended(tmp_path, 2, HANG.replace("WAIT", wait), ini=ini)
    assert outcome.status != 0 and outcome.ended_s - outcome.started_s < 20, outcome
    assert "test_it.py::test_hangs_on_rank_1 has not ended on rank 1 after 1 s" in outcome.stderr, outcome
    line = (tmp_path / "test_it.py").read_text().splitlines().index(
        "        time.sleep(80)  # the culprit"
    ) + 1
    assert f"line {line}, in test_hangs_on_rank_1" in outcome.stderr, outcome


@pytest.mark.parametrize("leaving", ["os._exit(3)", 'pytest.exit("enough")'])
def test_a_rank_that_leaves_ends_the_job(leaving: str, tmp_path: Path) -> None:
    source = f"""
        def test_leaves(comm):
            if comm.rank == 1:
                {leaving}
            comm.barrier()
    """
    assert ended(tmp_path, 2, source, ini="pycomm_timeout = 20").status != 0


@pytest.mark.parametrize("target", ["the launcher", "one rank"])
def test_ctrl_c_ends_everything(target: str, tmp_path: Path) -> None:
    source = """
        def test_waits(comm):
            if comm.rank == 1:
                open(os.path.join(os.path.dirname(__file__), "pid"), "w").write(f"{os.getpid()}\\n")
                time.sleep(80)
            comm.barrier()
    """
    job = begin(tmp_path, 2, source)
    pid = tmp_path / "pid"
    until = time.monotonic() + 30
    while not (pid.exists() and pid.read_text().endswith("\n")):
        assert time.monotonic() < until and job.process.poll() is None
        time.sleep(0.05)
    os.kill(job.process.pid if target == "the launcher" else int(pid.read_text()), signal.SIGINT)
    assert job.finish(40).status != 0


def test_on_one_rank_pytest_is_as_it_was(tmp_path: Path) -> None:
    source = """
        def test_alone(comm, request):
            assert comm.size == 1 and comm.all_reduce(np.ones(2)).tolist() == [1.0, 1.0]
            assert not request.config.pluginmanager.has_plugin("pycomm_ranks")
    """
    outcome = ended(tmp_path, 1, source)
    assert outcome.status == 0 and summary(outcome) == {"test_alone": "PASSED"}, outcome
