"""Hosts on one machine: namespaces of their own on a switch whose links have a limited rate.

    with hosts(2) as network:
        subprocess.run([*network.launch(2), "python", "program.py"])  # two ranks on each host

A host is a set of Linux namespaces (network, host name, processes, mounts, System V memory) with a private
/dev/shm, held by one process; the *head*, where mpirun runs, is another one, with the switch. TCP, its
congestion control and the rate of the links are real; cores and caches are shared. What hosts must not share,
they cannot: abstract sockets belong to the network namespace, named memory to the mounts, and no process sees
those of another host. Files are common, as on a cluster's file system.

Nothing of it has a name outside, and all of it ends with the process that made it, kill -9 included: the
holder of the head waits for the end of its standard input, the kernel kills all processes of a namespace
with the first one, and the hosts' namespaces lie within the head's.

Needs root, and `ip`, `tc` (iproute2), `unshare`, `nsenter` (util-linux). Independent of pycomm.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("ip", "tc", "unshare", "nsenter", "mount", "hostname")
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
SUBNET = "10.77.0"
RATE = "1gbit"
HEAD = 254  # the last number of its address; hosts count from 1

# Prints this process's number as the surroundings see it, then waits for the end of its input.
HOLDER = """
set -e
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs tmpfs /dev/shm
hostname "$1"
printf '%s' "$2" >/dev/shm/.hosts
mount --bind /dev/shm/.hosts /etc/hosts
ip link set lo up
echo "$pid"
exec cat >/dev/null
"""

# What mpirun calls instead of ssh: agent HOST COMMAND...
AGENT = """#!/bin/sh
case "$1" in
{cases}
*) echo "no host $1" >&2; exit 1 ;;
esac
shift
exec {enter} sh -c "$*"
"""


class CannotError(RuntimeError):
    """This machine cannot have such hosts; the message says why."""


@dataclass(frozen=True)
class Network:
    """Hosts h0, h1, ... and the head."""

    names: tuple[str, ...]
    enter: tuple[str, ...]  # words before a command that is to run at the head
    agent: str

    def launch(self, ranks: int) -> list[str]:
        """Options with which Open MPI's mpirun, at the head, starts so many ranks on each host.

        Ranks of one host talk to each other as MPI likes, hosts by TCP. They yield when idle: the switch and
        the hosts' kernels need the same cores."""
        places = ",".join(f"{name}:{ranks}" for name in self.names)
        options = f"--host {places} --bind-to none --prtemca plm_ssh_agent {self.agent}"
        options += " --prtemca plm_ssh_no_tree_spawn 1 --prtemca prte_if_include eth0"
        options += " --mca pml ob1 --mca btl tcp,sm,self --mca btl_tcp_if_include eth0"
        options += " --mca mpi_yield_when_idle 1 -x GLOO_SOCKET_IFNAME=eth0"
        return shlex.split(options)


def why_not() -> str | None:
    """Why this machine cannot have hosts, as far as one can tell without making any."""
    if os.geteuid() != 0:
        return "hosts on one machine need root"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"hosts on one machine need {', '.join(missing)}" if missing else None


@contextmanager
def hosts(count: int, rate: str = RATE) -> Iterator[Network]:
    """So many hosts, each with a link of that rate, in the words of tc, both ways. Raises CannotError."""
    if lack := why_not():
        raise CannotError(lack)
    names = tuple(f"h{i}" for i in range(count))
    table = "".join(f"{SUBNET}.{i + 1} {name}\n" for i, name in enumerate(names))
    table = f"127.0.0.1 localhost\n{SUBNET}.{HEAD} head\n{table}"
    with ExitStack() as held:
        head = _node(held, (), "head", table)
        _commands(head, "link add eth0 type bridge", f"address add {SUBNET}.{HEAD}/24 dev eth0")
        _commands(head, "link set eth0 up")
        pids = {name: _node(held, _entering(head), name, table) for name in names}
        for i, (name, pid) in enumerate(pids.items()):
            _connect(head, pid, name, f"{SUBNET}.{i + 1}", rate)
        # What programs leave in their temporary folder must not meet that of another host, or an earlier one.
        enter = (*_entering(head, os.getcwd()), "env", "TMPDIR=/dev/shm")
        yield Network(names, enter, _agent(head, pids))


def _node(held: ExitStack, within: Sequence[str], name: str, table: str) -> int:
    """Makes the namespaces of a node inside others; the number of their first process as those see it."""
    command = [
        *within,
        "unshare",
        *NAMESPACES,
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        HOLDER,
        name,
        name,
        table,
    ]
    pipe = subprocess.PIPE
    holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    held.callback(_end, holder)
    assert holder.stdout is not None and holder.stderr is not None
    pid = holder.stdout.readline()
    if not pid:
        raise CannotError(f"no namespaces for hosts: {holder.stderr.read().strip()}")
    return int(pid)


def _end(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait()
    for stream in (holder.stdout, holder.stderr):
        assert stream is not None
        stream.close()


def _entering(pid: int | str, folder: str = "/") -> tuple[str, ...]:
    return ("nsenter", f"--target={pid}", *NAMESPACES, f"--wd={folder}", "--")


def _commands(head: int, *commands: str, tool: str = "ip") -> None:
    for command in commands:
        words = [*_entering(head), tool, *command.split()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotError(f"{tool} {command}: {done.stderr.strip()}")


def _connect(head: int, pid: int, name: str, address: str, rate: str) -> None:
    """A link between the switch and a host, limited at both ends: what a host sends, and what reaches it."""
    _commands(
        head, f"link add {name} type veth peer name eth0 netns {pid}", f"link set {name} master eth0 up"
    )
    limit = f"root tbf rate {rate} burst 512kb latency 20ms"
    _commands(head, f"qdisc add dev {name} {limit}", tool="tc")
    inside = f"--target {pid} --net -- "
    _commands(head, f"{inside}ip address add {address}/24 dev eth0", tool="nsenter")
    _commands(head, f"{inside}ip link set eth0 up", tool="nsenter")
    _commands(head, f"{inside}tc qdisc add dev eth0 {limit}", tool="nsenter")


def _agent(head: int, pids: dict[str, int]) -> str:
    """Writes the agent into the head's own memory; its path there."""
    cases = "\n".join(f"{name}) pid={pid} ;;" for name, pid in pids.items())
    path = "/dev/shm/agent"
    file = Path(f"/proc/{head}/root{path}")
    file.write_text(AGENT.format(cases=cases, enter=" ".join(_entering("$pid"))))
    file.chmod(0o700)
    return path
