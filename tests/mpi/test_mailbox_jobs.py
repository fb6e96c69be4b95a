"""Mailboxes between processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import run, script, start

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("progress", ["inline", "thread"])
def test_mailboxes_over_mpi(progress: str) -> None:
    outcome = run(3, Path(__file__).parent / "mailbox_main.py", env={"PYCOMM_PROGRESS": progress})
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith("pycomm.launch: ")]
    assert (outcome.status, outcome.stdout, lines) == (0, "well\n", []), outcome


@pytest.mark.parametrize("call", ["box.recv()", "box.send(0, 64)"])
def test_ctrl_c_interrupts_a_blocking_call(call: str, tmp_path: Path) -> None:
    program = f"""
        import os, pycomm
        comm = pycomm.init()
        box = comm.mailbox(1)
        for i in range(64):
            box.send(0, i)
        if "recv" in "{call}":
            for i in range(64):
                box.recv()
        try:
            print(os.getpid(), flush=True)
            {call}
        except KeyboardInterrupt:
            assert comm.broken is None
            print("interrupted", flush=True)
    """
    job = start(1, script(tmp_path, program))
    assert job.process.stdout is not None
    pid = int(job.process.stdout.readline())
    time.sleep(0.3)  # into the call, if it can be
    os.kill(pid, signal.SIGINT)
    outcome = job.finish(30)
    assert (outcome.status, outcome.stdout) == (0, "interrupted\n"), outcome


def test_mail_of_a_rank_that_left_is_received_however_rarely_one_looks(tmp_path: Path) -> None:
    program = """
        import time
        import numpy as np
        import pycomm
        comm = pycomm.init()
        box = comm.mailbox(1)
        content = (np.arange(1500) % 251).astype(np.uint8)
        if comm.rank == 1:
            box.send(0, content)  # opens the connection
            comm.barrier()
            box.send(0, content)  # small: MPI takes it along, whether rank 0 is in a call or not
            pycomm.shutdown()
        else:
            box.recv(1)
            comm.barrier()
            time.sleep(0.3)
            assert box.poll(1) is None  # it reads of the message, and the goodbye
            time.sleep(1.1)
            until = time.monotonic() + 20
            while (message := box.poll(1)) is None:
                assert time.monotonic() < until
                time.sleep(0.01)
            assert np.array_equal(message.content, content)
            print("well", flush=True)
    """
    outcome = run(2, script(tmp_path, program), env={"PYCOMM_PROGRESS": "inline"})
    assert (outcome.status, outcome.stdout) == (0, "well\n"), outcome
