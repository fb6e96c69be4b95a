"""The test-suite of torch.distributed, as torch's own wheel has it, on backend "pycomm".

    python tests/torch/distributed_suite.py [test_NAME ...]

The suite leaves out what it does not expect of a backend that it does not know by name. So it is loaded three
times: under our name, as what it runs for gloo, and as what it runs for MPI; the group is "pycomm" each time.
Ranks are processes that meet in a file, without MPI. Prints what passed, and what did not run or pass and
why; ends with 1 for a failure that is not in EXCEPTIONS, and for an exception that passes. Not collected by
pytest: it takes some minutes (`make torch-suite`). It needs the package expecttest, as torch's tests do.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import unittest
from collections import defaultdict
from pathlib import Path

POSES = ("pycomm", "gloo", "mpi")
RANKS = "8"  # fewer, and the suite leaves out tests of groups

# Tests that fail on this backend, and why that is right.
ONLY_GLOO = (
    "torch lets no backend but gloo have a monitored_barrier; here Timeout of a barrier names who is missing"
)
EXCEPTIONS = {
    "test_get_backend": "passes under our own name; under the others it expects theirs",
    "test_monitored_barrier_failure_order": ONLY_GLOO,
    "test_monitored_barrier_gloo": ONLY_GLOO,
    "test_monitored_barrier_gloo_rank_0_timeout": ONLY_GLOO,
    "test_monitored_barrier_gloo_subgroup": ONLY_GLOO,
    "test_monitored_barrier_wait_all_ranks": ONLY_GLOO,
    "test_sparse_all_reduce_sum": "tensors are dense here: expected, and said",
}


def main(names: list[str]) -> int:
    outcomes: dict[str, dict[str, str]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        for pose in POSES:
            result = Path(folder) / f"{pose}.json"
            command = [sys.executable, __file__, "--pose", pose, str(result), *names]
            subprocess.run(command, env=environment(pose, folder), check=True)
            for name, outcome in json.loads(result.read_text()).items():
                outcomes[name][pose] = outcome
    passed = [name for name, found in outcomes.items() if "passed" in found.values()]
    failed = [name for name, found in outcomes.items() if "failed" in found.values()]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, found in outcomes.items():
        if not {"passed", "failed"} & set(found.values()):
            reasons["; ".join(sorted(set(found.values())))].append(name)
    for reason, left_out in sorted(reasons.items()):
        print(f"not run: {reason}\n    {' '.join(left_out)}")
    wrong = 0
    for name in failed:
        poses = ", ".join(pose for pose, outcome in outcomes[name].items() if outcome == "failed")
        print(f"failed (as {poses}): {name}: {EXCEPTIONS.get(name, 'NOT EXPECTED')}")
        wrong += name not in EXCEPTIONS
    for name in sorted(set(EXCEPTIONS) & set(outcomes) - set(failed)):
        print(f"did not fail, expected to: {name}")
        wrong += 1
    left_out_count = sum(map(len, reasons.values()))
    print(f"{len(set(passed) - set(failed))} passed, {len(failed)} failed, {left_out_count} not run")
    return int(wrong > 0)


def environment(pose: str, folder: str) -> dict[str, str]:
    """What the suite reads when it is imported."""
    ours = {"BACKEND": pose, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "TEMP_DIR": folder}
    return {**os.environ, **ours, "OMP_NUM_THREADS": "1"}


def run_as(pose: str, result: Path, names: list[str]) -> None:
    """Runs the tests that the suite has for a backend of that name; writes what became of each."""
    import torch.distributed
    from torch.testing._internal import common_distributed

    for backends in common_distributed.DistTestCases.backend_feature.values():
        backends.add(pose)
    from torch.testing._internal.distributed import distributed_test

    import pycomm.torch

    init = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda **given: init(**{**given, "backend": pycomm.torch.BACKEND})
    case = distributed_test.DistributedTest._DistTestBase

    class Suite(distributed_test.TestDistBackend, case):  # type: ignore[misc,valid-type]
        def setUp(self) -> None:
            super().setUp()
            # Not spawned: to import torch takes each of them longer than most tests.
            self._start_processes(multiprocessing.get_context("fork").Process)

    chosen = names or unittest.defaultTestLoader.getTestCaseNames(Suite)
    outcomes = Outcomes(unittest.runner._WritelnDecorator(sys.stderr), True, 2)
    unittest.TestSuite(Suite(name) for name in chosen).run(outcomes)
    outcomes.printErrors()
    result.write_text(json.dumps(outcomes.found))


class Outcomes(unittest.TextTestResult):
    """By name of the test: passed, failed, or why it was left out."""

    def __init__(self, *settings: object) -> None:
        super().__init__(*settings)  # type: ignore[arg-type]
        self.found: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addSuccess(test)
        self.found[test._testMethodName] = "passed"

    def addFailure(self, test: unittest.TestCase, error: object) -> None:  # noqa: N802
        super().addFailure(test, error)  # type: ignore[arg-type]
        self.found[test._testMethodName] = "failed"

    def addError(self, test: unittest.TestCase, error: object) -> None:  # noqa: N802
        super().addError(test, error)  # type: ignore[arg-type]
        self.found[test._testMethodName] = "failed"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self.found[test._testMethodName] = reason


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pose"]:
        run_as(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main(sys.argv[1:]))
