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
        print(os.getpid(), flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            assert comm.broken is None
            print("interrupted", flush=True)
    """
    job = start(1, script(tmp_path, program))
    assert job.process.stdout is not None
    pid = int(job.process.stdout.readline())
    time.sleep(0.3)  # into the call
    os.kill(pid, signal.SIGINT)
    outcome = job.finish(30)
    assert (outcome.status, outcome.stdout) == (0, "interrupted\n"), outcome
