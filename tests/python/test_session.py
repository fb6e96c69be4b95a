"""Becoming a rank and ceasing to be one, without a launcher: import, init, shutdown, wrong launchers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.helpers import python_path, script

pytestmark = pytest.mark.timeout(60)

LAUNCHER_VARIABLES = ("OMPI_", "PMI", "PMIX_", "MPI_", "SLURM_", "PYCOMM_")


def python(source: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program that no launcher started."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    env = {**env, "PYTHONPATH": python_path(), **variables}
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            *([source] if isinstance(source, Path) else ["-c", textwrap.dedent(source)]),
        ],
        cwd=tempfile.gettempdir(),
        env=env,
        capture_output=True,
        text=True,
        timeout=50,
    )


def clean(source: str | Path, **variables: str) -> str:
    """Its standard output; it must end well and complain of nothing."""
    done = python(source, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_import_starts_no_mpi_and_imports_no_torch() -> None:
    clean("""
        import sys, threading
        import pycomm
        assert not pycomm._core.mpi_info()["initialized"]
        assert "mpi4py.MPI" not in sys.modules and "torch" not in sys.modules
        assert threading.active_count() == 1 and not pycomm.is_initialized()
        assert pycomm.info()["algorithms"] and not pycomm._core.mpi_info()["initialized"]
    """)


def test_without_a_launcher_one_rank_does_everything_without_mpi() -> None:
    clean("""
        import numpy as np, pycomm
        comm = pycomm.init()
        assert (comm.rank, comm.size, comm.local_rank, comm.local_size) == (0, 1, 0, 1)
        assert comm.transport == "none" and comm.progress == "inline" and comm.cores >= 1
        assert comm.broken is None
        assert comm.all_reduce(np.full(3, 4.0), op="avg", scale=0.5).tolist() == [2.0] * 3
        assert comm.reduce_scatter(np.ones(3)).tolist() == [1.0] * 3
        assert comm.all_gather(np.ones((2, 2))).shape == (2, 2)
        assert comm.broadcast(np.ones(3)).tolist() == [1.0] * 3
        comm.barrier()
        assert comm.all_reduce_async(np.ones(2)).wait().tolist() == [1.0] * 2
        assert comm.split(3).size == 1 and comm.split(None) is None
        assert not pycomm._core.mpi_info()["initialized"]
    """)


def test_init_twice_is_the_same_and_shutdown_twice_is_fine() -> None:
    clean("""
        import numpy as np, pycomm
        pycomm.shutdown()
        comm = pycomm.init()
        assert pycomm.init() is comm and pycomm.is_initialized()
        pycomm.shutdown()
        pycomm.shutdown()
        assert not pycomm.is_initialized()
        for call in (comm.barrier, lambda: comm.all_reduce(np.ones(2)), lambda: comm.split(0), lambda:
        comm.barrier_async()):
            try:
                call()
            except pycomm.Aborted as error:
                assert "shut down" in str(error)
            else:
                raise SystemExit("a call after shutdown() went through")
        assert "rank 0 of 1" in repr(comm)
        again = pycomm.init()
        assert again is not comm and again.all_reduce(np.ones(2)).tolist() == [1.0, 1.0]
    """)


def test_works_and_buckets_may_outlive_shutdown() -> None:
    clean("""
        import gc, numpy as np, pycomm
        comm = pycomm.init()
        work = comm.all_reduce_async(np.ones(2))
        buckets = pycomm.Buckets(comm, [pycomm.Slot(3)])
        pycomm.shutdown()
        try:
            work.wait()
        except pycomm.Aborted:
            pass
        del comm, work, buckets
        gc.collect()
    """)


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_launcher_of_another_mpi_is_named(variable: str) -> None:
    done = python("import pycomm; pycomm.init()", **{variable: "4"})
    assert done.returncode != 0
    for part in ("TransportError", f"started 4 processes ({variable})", "pycomm.launch"):
        assert part in done.stderr


def test_a_process_of_a_batch_script_is_one_rank() -> None:
    size = "import pycomm; print(pycomm.init().size)"
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    assert clean(size, **batch) == "1\n"
    # What mpirun says of itself counts, not the step that its daemons are.
    assert clean(size, **batch, OMPI_COMM_WORLD_SIZE="1", SLURM_STEP_NUM_TASKS="2") == "1\n"


def test_mpi4py_alone_makes_a_world_of_one() -> None:
    clean("""
        from mpi4py import MPI
        import numpy as np, pycomm
        comm = pycomm.init(MPI.COMM_WORLD)
        assert comm.size == 1 and comm.all_reduce(np.ones(2)).tolist() == [1.0, 1.0]
        assert not MPI.Is_finalized()
    """)


def test_init_takes_mpi4py_communicators_only() -> None:
    done = python("import pycomm; pycomm.init(comm=7)")
    assert "InvalidArgument: comm is a int; expected an mpi4py communicator" in done.stderr


@pytest.mark.parametrize("value", ["always", "THREAD"])
def test_progress_is_one_of_three(value: str) -> None:
    done = python("import pycomm; pycomm.init()", PYCOMM_PROGRESS=value)
    assert f"PYCOMM_PROGRESS is '{value}'; expected auto, thread or inline" in done.stderr


def test_an_exception_before_the_end_is_shown_and_nothing_hangs() -> None:
    done = python("import pycomm; pycomm.init(); raise KeyError('lost')")
    assert done.returncode == 1 and "KeyError: 'lost'" in done.stderr


def test_abort_ends_the_process_with_its_code() -> None:
    done = python("import pycomm; print('before'); pycomm.abort(7); print('after')")
    assert (done.returncode, done.stdout) == (7, "before\n")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_worker_may_import_pycomm_and_be_a_rank_itself(tmp_path: Path, method: str) -> None:
    program = f"""
        import multiprocessing
        import pycomm

        def child(queue):
            before = pycomm.is_initialized(), pycomm._core.mpi_info()["initialized"]
            queue.put((before, pycomm.init().size))

        if __name__ == "__main__":
            pycomm.init()
            context = multiprocessing.get_context("{method}")
            queue = context.SimpleQueue()
            worker = context.Process(target=child, args=(queue,))
            worker.start()
            print(queue.get())
            worker.join()
            assert worker.exitcode == 0
    """
    assert clean(script(tmp_path, program)) == "((False, False), 1)\n"


FORK = """
    import os, sys, threading, time
    import numpy as np, pycomm

    def in_child(comm, work):
        calls = {
            "barrier": comm.barrier, "split": lambda: comm.split(0), "wait": work.wait,
            "all_reduce": lambda: comm.all_reduce(np.ones(3)), "start": lambda:
            comm.all_reduce_async(np.ones(3)), "abort": lambda: comm.abort("why"), "buckets": lambda:
            pycomm.Buckets(comm, [pycomm.Slot(3)]).flush(),
        }
        for name, call in calls.items():
            try:
                call()
            except pycomm.Aborted as error:
                assert "forked" in str(error), (name, error)
            else:
                raise AssertionError(f"{name} went through in a forked child")
        assert "rank 0 of 2" in repr(comm) and comm.broken is None and not work.done()
        pycomm.shutdown()
"""


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(0)", "pass"])
def test_a_forked_child_of_a_busy_engine_can_do_nothing_and_ends_well(ending: str) -> None:
    """Rank 1 is late, so that rank 0's operation runs while rank 0 forks."""
    assert (
        clean(
            textwrap.dedent(FORK)
            + textwrap.dedent(f"""
        from pycomm.testing import run_threads
        go = threading.Event()

        def rank(comm):
            if comm.rank == 1:
                assert go.wait(30)
                comm.all_reduce(np.ones(100_000))
                return
            work = comm.all_reduce_async(np.ones(100_000))
            time.sleep(0.05)
            pid = os.fork()
            if pid == 0:
                try:
                    in_child(comm, work)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(9)
                del comm, work
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            go.set()
            assert work.wait()[0] == 2

        run_threads(2, rank, progress="thread")
        comm = pycomm.init()
        work = comm.barrier_async()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                pycomm.init()
            except pycomm.Aborted:
                {ending}
            else:
                os._exit(9)
        else:
            assert os.waitpid(pid, 0)[1] == 0
            comm.barrier()
            print("parent goes on")
        """)
        )
        == "parent goes on\n"
    )
