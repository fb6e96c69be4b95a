"""pycomm.launch: the command it makes, and what the ranks and the caller then see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycomm import launch

OPENMPI = launch.Launcher(Path("/opt/mpi/bin/mpirun"), "openmpi")
HYDRA = launch.Launcher(Path("/opt/mpi/bin/mpirun"), "hydra")


def command(
    launcher: launch.Launcher, line: str, *, cores: int = 4, environ: dict[str, str] | None = None
) -> str:
    request = launch.parse(line.split())
    words = launch.mpirun_command(launcher, request, cores=cores, environ=environ or {}, python="python3")
    return " ".join(words)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pycomm.launch", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60)


def test_open_mpi_is_unbound_and_may_oversubscribe() -> None:
    assert command(OPENMPI, "-n 2 -m trainer fit --steps 3") == (
        "/opt/mpi/bin/mpirun -n 2 --bind-to none --map-by :OVERSUBSCRIBE python3 -m trainer fit --steps 3"
    )


def test_idle_ranks_yield_only_when_they_outnumber_the_cores() -> None:
    assert "mpi_yield_when_idle 1" in command(OPENMPI, "-n 5 -m trainer", cores=4)
    assert "mpi_yield_when_idle" not in command(OPENMPI, "-n 4 -m trainer", cores=4)


@pytest.mark.parametrize("option", ["--host a,b", "-H a,b", "--hostfile hosts", "--map-by ppr:1:node"])
def test_placement_by_the_user_is_left_alone(option: str) -> None:
    made = command(OPENMPI, f"-n 8 {option} -m trainer")
    assert "OVERSUBSCRIBE" not in made
    assert "yield" not in made
    assert f"{option} python3 -m trainer" in made


def test_placement_by_a_scheduler_is_left_alone() -> None:
    made = command(OPENMPI, "-n 8 -m trainer", environ={"SLURM_JOB_ID": "7"})
    assert "OVERSUBSCRIBE" not in made


def test_binding_by_the_user_replaces_ours() -> None:
    assert command(OPENMPI, "-n 2 --bind-to core -m trainer").count("--bind-to") == 1


def test_hydra_gets_no_option_of_open_mpi() -> None:
    assert command(HYDRA, "-n 8 -ppn 2 -m trainer") == "/opt/mpi/bin/mpirun -n 8 -ppn 2 python3 -m trainer"


def test_root_is_allowed_under_open_mpi_alone() -> None:
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert launch.launch_environment(OPENMPI, {}, root=True) == allowed
    assert launch.launch_environment(OPENMPI, {}, root=False) == {}
    assert launch.launch_environment(HYDRA, {}, root=True) == {}


def test_words_after_the_program_belong_to_it() -> None:
    request = launch.parse(["-n", "2", "--tag-output", "-m", "trainer", "-n", "9", "--", "x.py"])
    assert request == launch.Request(2, ("--tag-output",), ("-m", "trainer", "-n", "9", "--", "x.py"))


def test_a_script_of_any_name_follows_two_dashes(tmp_path: Path) -> None:
    script = tmp_path / "program"
    script.touch()
    assert launch.parse(["-n", "1", "--", str(script), "-v"]).program == (str(script), "-v")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("-n 0 -m trainer", "at least 1, got '0'"),
        ("-n -2 -m trainer", "at least 1, got '-2'"),
        ("-n two -m trainer", "at least 1, got 'two'"),
        ("-n", "at least 1, got ''"),
        ("-m trainer", "-n N is missing"),
        ("", "-n N is missing"),
        ("-n 2", "no program"),
        ("-n 2 -m", "no program"),
        ("-n 2 --tag-output --", "no program"),
        ("-n 2 absent.py", "no script 'absent.py'"),
    ],
)
def test_a_wrong_command_line_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(launch.LaunchError, match=complaint.replace("(", r"\(")):
        launch.parse(line.split())


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_launcher_beside_our_libmpi_comes_first(tmp_path: Path) -> None:
    ours = program(tmp_path / "ours/bin/mpirun", "#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    other = program(tmp_path / "other/bin/mpirun", "#!/bin/sh\necho 'HYDRA build details:'\n")
    environ = {"PATH": str(other.parent)}
    libmpi = tmp_path / "ours/lib/python3/site-packages/pycomm/../../../libmpi.so.40"
    assert launch.find_launcher(libmpi, environ) == launch.Launcher(ours, "openmpi")


def test_the_root_is_no_prefix() -> None:
    candidates = launch.launcher_candidates(Path("/lib/x86_64-linux-gnu/libmpi.so.40"), {"PATH": ""})
    assert Path("/bin/mpirun") not in candidates


def test_path_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python/bin/python3"))
    other = program(tmp_path / "other/bin/mpiexec", "#!/bin/sh\necho 'HYDRA build details:'\n")
    environ = {"PATH": str(other.parent)}
    assert launch.find_launcher(tmp_path / "lib/libmpi.so.12", environ) == launch.Launcher(other, "hydra")


def test_a_missing_launcher_names_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python/bin/python3"))
    with pytest.raises(launch.LaunchError, match=f"looked in {tmp_path}/mpi/bin, {tmp_path}/python/bin and"):
        launch.find_launcher(tmp_path / "mpi/lib/libmpi.so.12", {"PATH": ""})


RANK = 'int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "-1")))'


def test_ranks_run_under_this_python_and_the_command_is_printed(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(
        f"import os, sys\nrank = {RANK}\n"
        "sys.stdout.write(f'{rank} {sys.executable} {sys.argv[1:]}\\n')\n"
    )
    done = run(tmp_path, "-n", "3", "hello.py", "a b", "-n")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:3]) == [f"{r} {sys.executable} ['a b', '-n']" for r in range(3)]
    assert "pycomm.launch: " in done.stderr
    assert "'a b' -n" in done.stderr


def test_the_exit_status_of_a_rank_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text(f"import os, sys\nsys.exit(3 if {RANK} == 1 else 0)\n")
    assert run(tmp_path, "-n", "2", "fail.py").returncode == 3


def test_a_refusal_is_short_and_has_status_2(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "0", "-m", "trainer")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pycomm.launch: -n needs a count of ranks of at least 1, got '0'\n")
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_every_rank(tmp_path: Path) -> None:
    (tmp_path / "sleep.py").write_text(
        f"import os, pathlib, time\nrank = {RANK}\n"
        "pathlib.Path(f'pid{rank}').write_text(str(os.getpid()))\ntime.sleep(50)\n"
    )
    line = [sys.executable, "-m", "pycomm.launch", "-n", "2", "sleep.py"]
    job = subprocess.Popen(line, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        pids = [read_pid(tmp_path / f"pid{rank}") for rank in range(2)]
        os.killpg(job.pid, signal.SIGINT)
        job.communicate(timeout=30)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0
    assert [pid for pid in pids if runs(pid)] == []


def runs(pid: int) -> bool:
    """Whether a process still runs; a dead one may wait for its new parent to notice."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")


def read_pid(path: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise TimeoutError(f"no rank wrote {path}")
