"""Jobs of several processes, started as users start them, with a time limit and no process left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pycomm
from bench.hosts import Network

# Transports between ranks that are threads.
BETWEEN_THREADS = [name for name, row in pycomm.info()["transports"].items() if row["between"] == "threads"]

ROOT = Path(__file__).resolve().parents[1]
_MARK = "PYCOMM_TEST_JOB"  # in the environment of every process of a job


@dataclass
class Job:
    """A running `pycomm.launch`."""

    process: subprocess.Popen[str]
    mark: str
    started_s: float = field(default_factory=time.monotonic)

    def finish(self, limit_s: float) -> Outcome:
        """Wait for the end. A job that is not over after `limit_s` seconds is killed, and fails the test."""
        try:
            stdout, stderr = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            where = _places(self.pids())
            self._ask_for_stacks()
            self.kill()
            stdout, stderr = self.process.communicate(timeout=10)
            raise AssertionError(f"not over after {limit_s} s\n{where}\n{_shown(stdout, stderr)}") from None
        ended_s = time.monotonic()
        outcome = Outcome(self.process.returncode, stdout, stderr, self.started_s, ended_s)
        left = self._survivors()
        if left:
            self.kill()
            raise AssertionError(f"processes {left} outlived their job\n{outcome}")
        return outcome

    def pids(self) -> list[int]:
        """The processes of this job that run now."""
        needle = f"{_MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if needle in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
            except OSError:  # it ended meanwhile
                continue
        return found

    def kill(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _ask_for_stacks(self) -> None:
        """Ends what runs Python by a signal at which it writes all its threads' stacks to stderr."""
        ranks = [pid for pid in self.pids() if "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))]
        for pid in ranks:
            os.kill(pid, signal.SIGABRT)
        until = time.monotonic() + 3
        while set(ranks) & set(self.pids()) and time.monotonic() < until:
            time.sleep(0.02)

    def _survivors(self) -> list[int]:
        until = time.monotonic() + 2
        while left := self.pids():
            if time.monotonic() > until:
                return left
            time.sleep(0.02)
        return []


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int
    stdout: str
    stderr: str
    started_s: float  # on the clock of time.monotonic(), which the ranks share
    ended_s: float

    def __str__(self) -> str:
        took = self.ended_s - self.started_s
        return f"exit status {self.status} after {took:.1f} s\n{_shown(self.stdout, self.stderr)}"


def _shown(stdout: str, stderr: str) -> str:
    return f"---- stdout\n{stdout}\n---- stderr\n{stderr}"


def _places(pids: Sequence[int]) -> str:
    lines = []
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            place = Path(f"/proc/{pid}/wchan").read_text()
        except OSError:
            continue
        lines.append(f"process {pid} in {place}: {command}")
    return "\n".join(lines)


def start(
    ranks: int,
    program: Path | str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    network: Network | None = None,
    options: Sequence[str] = (),
) -> Job:
    """Start a program under `pycomm.launch`: a script, or "-m" and a module; in equal parts on the hosts of a
    network, if one is given. The options are mpirun's."""
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": python_path(),
        "PYTHONFAULTHANDLER": "1",
        _MARK: mark,
        **(env or {}),
    }
    enter = network.enter if network else ()
    placed = network.launch(ranks // len(network.names)) if network else []
    command = [*enter, sys.executable, "-m", "pycomm.launch", "-n", str(ranks), *placed, *options]
    command += [str(program), *arguments]
    process = subprocess.Popen(
        command,
        cwd=tempfile.gettempdir(),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Job(process, mark)


def python_path() -> str:
    """Where children find this very pycomm, and the tests."""
    ours = str(Path(pycomm.__file__).resolve().parents[1])
    return os.pathsep.join(dict.fromkeys([ours, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))


def run(
    ranks: int,
    program: Path | str,
    *arguments: str,
    limit_s: float = 60,
    env: Mapping[str, str] | None = None,
    network: Network | None = None,
    options: Sequence[str] = (),
) -> Outcome:
    """Start a program and wait for its end."""
    job = start(ranks, program, *arguments, env=env, network=network, options=options)
    return job.finish(limit_s)


@contextmanager
def files_of(most_bytes: int) -> Iterator[None]:
    """Within it, writes beyond that fail in this process as they do on a full disk, with another errno. Not
    for a whole test: pytest writes its report to a file that may be longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def script(folder: Path, source: str) -> Path:
    """A program with this source."""
    path = folder / f"program_{uuid.uuid4().hex[:8]}.py"
    path.write_text(textwrap.dedent(source))
    return path
