"""Proves that the sanitizers would report: compiles one known fault at a time and demands a report of it.

    python build_support/planted_faults.py asan ubsan tsan

For each sanitizer a copy of one source, with the fault, takes the place of the original in the sanitizer's
build tree (the option PYCOMM_PLANTED in CMakeLists.txt); the sources themselves are not touched. Ends with
status 1 when a fault goes unreported.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    what: str
    source: str
    right: str  # occurs once in the source
    wrong: str
    test: str  # a C++ test that meets it
    report: str  # what the sanitizer says, a pattern


FAULTS = {
    "asan": [
        Fault(
            "a message is copied with one byte too many",
            "csrc/transport/inproc.cc",
            "std::memcpy(receive.into.data(), send.from.data(), bytes);",
            "std::memcpy(receive.into.data(), send.from.data(), bytes + 1);",
            "engine_all_reduces_by_every_algorithm_copying",
            r"AddressSanitizer: heap-buffer-overflow",
        )
    ],
    "ubsan": [
        Fault(
            "a signed sum overflows",
            "csrc/algorithm/binomial.cc",
            "self & -self;",
            "(self + 2147483647) & self & -self;",
            "every_plan_is_right_for_1_to_33_ranks",
            r"runtime error: signed integer overflow",
        )
    ],
    "tsan": [
        Fault(
            "a receive is marked done in relaxed order, so that its bytes are not ordered behind the mark",
            "csrc/transport/inproc.cc",
            "receive.done.store(true, std::memory_order_release);",
            "receive.done.store(true, std::memory_order_relaxed);",
            "engine_all_reduces_by_every_algorithm_copying",
            r"ThreadSanitizer: data race",
        ),
        Fault(
            "shared memory is given back in relaxed order, so that it is rewritten while it is read",
            "csrc/transport/shm_incoming.cc",
            "if (slot != kNoSlot) line_->line.slots[slot].store(Slot::done, std::memory_order_release);",
            "if (slot != kNoSlot) line_->line.slots[slot].store(Slot::done, std::memory_order_relaxed);",
            "shm_more_messages_than_slots_wait_their_turn",
            r"ThreadSanitizer: data race",
        ),
        Fault(
            "a segment of plain memory is lent in relaxed order, so that it is read before it is copied in",
            "csrc/engine/loans.cc",
            "loan.shared->granted.store(next + 1, std::memory_order_release);",
            "loan.shared->granted.store(next + 1, std::memory_order_relaxed);",
            "loans_serve_every_mapped_algorithm_on_any_mix_of_memory",
            r"ThreadSanitizer: data race",
        ),
    ],
}


def plant(fault: Fault) -> None:
    """Write the source with the fault. Fails when the right text is not there exactly once."""
    text = (ROOT / fault.source).read_text()
    if text.count(fault.right) != 1:
        raise SystemExit(f"{fault.source} has {text.count(fault.right)} times '{fault.right}', expected once")
    target = ROOT / "build" / "planted" / fault.source
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text.replace(fault.right, fault.wrong))


def build(sanitizer: str, planted: str) -> None:
    configure = ["cmake", "--preset", sanitizer, f"-DPYCOMM_PLANTED={planted}"]
    subprocess.run(configure, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", "--preset", sanitizer, "--", "--quiet"], cwd=ROOT, check=True)


def reported(sanitizer: str, fault: Fault) -> bool:
    program = ROOT / "build" / sanitizer / "pycomm_tests"
    run = subprocess.run([program, fault.test], capture_output=True, text=True, timeout=600)
    if run.returncode != 0 and re.search(fault.report, run.stdout + run.stderr):
        print(f"{sanitizer} reports that {fault.what}")
        return True
    print(f"{sanitizer} does not report that {fault.what}: status {run.returncode}", file=sys.stderr)
    print((run.stdout + run.stderr)[-2000:], file=sys.stderr)
    return False


def main(sanitizers: Sequence[str]) -> int:
    missed = 0
    for sanitizer in sanitizers:
        try:
            for fault in FAULTS[sanitizer]:
                plant(fault)
                build(sanitizer, fault.source)
                missed += not reported(sanitizer, fault)
        finally:
            build(sanitizer, "")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
