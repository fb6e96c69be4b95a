"""Backend "pycomm" of torch.distributed: every collective, users' programs beside gloo, starts and ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, Outcome, python_path, run, script

pytest.importorskip("torch")

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(110)


def succeeded(outcome: Outcome) -> Outcome:
    assert outcome.status == 0, outcome
    return outcome


def test_every_collective_gives_what_torch_defines() -> None:
    outcome = succeeded(run(3, HERE / "collectives_main.py", limit_s=90))
    (cases,) = re.findall(r"^(\d+) cases$", outcome.stdout, re.MULTILINE)
    assert int(cases) > 1000


def test_programs_end_as_they_do_on_gloo() -> None:
    outcome = succeeded(run(4, HERE / "programs_main.py", "gloo", "pycomm", limit_s=100))
    rows = [json.loads(line) for line in outcome.stdout.splitlines() if line.startswith("[")]
    numbers = {
        backend: {name: values for b, name, values in rows if b == backend} for backend in ("gloo", "pycomm")
    }
    assert len(numbers["pycomm"]) >= 11
    assert set(numbers["gloo"]) == set(numbers["pycomm"])
    for name, values in numbers["pycomm"].items():
        exact = "fp16" not in name  # gloo adds halves, rounding at every step
        near = pytest.approx(numbers["gloo"][name], rel=1e-5, abs=1e-6 if exact else 1e-3)
        assert values == near, name
    assert numbers["pycomm"]["hook_of_ours"] == numbers["pycomm"]["ddp"]
    assert numbers["pycomm"]["fsdp_memory_of_ours"] == numbers["pycomm"]["fsdp2"]


def test_torchrun_starts_ranks_without_mpi(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import sys, torch, torch.distributed as dist, pycomm.torch
        dist.init_process_group("pycomm")
        x = torch.ones(3) * dist.get_rank()
        dist.all_reduce(x)
        sys.stdout.write(f"rank {dist.get_rank()}: {x.tolist()}\\n")
        dist.destroy_process_group()
        """,
    )
    outcome = torchrun(3, program)
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(line for line in outcome.stdout.splitlines() if line.startswith("rank")) == [
        f"rank {rank}: [3.0, 3.0, 3.0]" for rank in range(3)
    ]


def torchrun(ranks: int, program: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), str(program)]
    environment = {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT, check=False
    )


def test_a_script_without_a_line_of_ours_runs(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import sys, torch, torch.distributed as dist
        dist.init_process_group()
        x = torch.ones(1)
        dist.all_reduce(x)
        print(type(dist.group.WORLD).__name__, x.item(), sys.argv[1:])
        dist.destroy_process_group()
        """,
    )
    outcome = succeeded(run(2, "-m", "pycomm.torch.run", str(program), "--lr", "3"))
    assert outcome.stdout.splitlines() == ["PycommProcessGroup 2.0 ['--lr', '3']"] * 2


FAILURES = """
    import datetime, time
    import torch
    import torch.distributed as dist
    import pycomm.torch

    def mismatch(group):
        dist.all_reduce(torch.ones(3 + rank), group=group)

    def timeout(group):
        if rank == 0:
            dist.barrier(group)
        time.sleep(2)

    def abort(group):
        if rank == 1:
            group.abort()
        time.sleep(0.2)
        dist.barrier(group)

    def wrong_size(group):
        dist.all_gather_into_tensor(torch.ones(5), torch.ones(2), group=group)

    def message_that_does_not_fit(group):
        dist.send(torch.ones(3), 1, group) if rank == 0 else dist.recv(torch.ones(4), 0, group)

    def bitwise_of_floats(group):
        dist.all_reduce(torch.ones(1), dist.ReduceOp.BAND, group)

    def sparse(group):
        dist.all_reduce(torch.ones(2, 2).to_sparse(), group=group)

    pycomm.init()
    dist.init_process_group("pycomm")
    rank = dist.get_rank()
    for failure in (
        mismatch, timeout, abort, wrong_size, message_that_does_not_fit, bitwise_of_floats, sparse
    ):
        group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=1))
        try:
            failure(group)
        except pycomm.PycommError as error:
            print(f"{failure.__name__} {rank} {type(error).__name__}: {error}", flush=True)
        dist.barrier()  # the default group is as good as before
"""
SAID = [
    r"mismatch 0 MismatchError: .*3.*4",
    r"mismatch 1 MismatchError: .*3.*4",
    r"timeout 0 Timeout: .*barrier.*rank 1",
    r"abort 0 Aborted: .*rank 1 called abort",
    r"abort 1 Aborted: .*rank 1 called abort",
    r"wrong_size 0 InvalidArgument: all_gather: the output has 5 elements; expected 2 times the input's 2",
    r"message_that_does_not_fit 1 InvalidArgument: recv: rank 0 sent 3 elements .*; expected 4",
    r"bitwise_of_floats 1 InvalidArgument: band of torch.float32",
    r"sparse 0 InvalidArgument: a torch.sparse_coo tensor",
]


def test_what_goes_wrong_is_said_in_time_and_breaks_its_group_alone(tmp_path: Path) -> None:
    outcome = run(2, script(tmp_path, FAILURES), limit_s=40)
    for said in SAID:
        assert re.search(said, outcome.stdout), f"no '{said}' in\n{outcome}"
