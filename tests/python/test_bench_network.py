"""The benchmark between hosts: what it runs, what it refuses, what it does where there can be none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import hosts, network


def result_of(names: list[str], transports: list[list[str]]) -> dict[str, Any]:
    return {"hosts": names, "transports": transports}


def test_shared_memory_between_hosts_is_a_fault() -> None:
    clean = [["none", "shm", "mpi"], ["shm", "none", "mpi"], ["mpi", "mpi", "none"]]
    names = ["h0", "h0", "h1"]
    assert network.crossing(result_of(names, clean)) == []
    assert network.pairs(result_of(names, clean))[2] == "rank 2 on h1: mpi mpi none"
    clean[0][2] = "shm"
    fault = "rank 0 on h0 shares memory with rank 2 on h1"
    assert network.crossing(result_of(names, clean)) == [fault]


def test_where_there_can_be_no_hosts_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert network.main([]) == network.CANNOT
    assert "bench network: hosts on one machine need root" in capsys.readouterr().err
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(hosts, "TOOLS", ("sh", "no-such-tool"))
    assert network.main([]) == network.CANNOT
    assert "need no-such-tool" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--hosts", "1"], ["--ranks", "0"]])
def test_one_host_is_no_network(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        network.main(arguments)
    assert end.value.code == 2
    assert "expected --hosts from 2 and --ranks from 1, got" in capsys.readouterr().err


def test_a_result_without_a_folder_is_refused_before_there_are_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "hosts", lambda *_: pytest.fail("made hosts"))
    path = tmp_path / "none" / "result.json"
    with pytest.raises(SystemExit) as end:
        network.main(["--json", str(path)])
    assert end.value.code == 2
    assert f"--json {path}: there is no such folder" in capsys.readouterr().err


@pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))
def test_collectives_are_timed_between_hosts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    limits = ["--min", "4K", "--max", "4K", "--seconds", "0.01", "--iters", "3", "--json", str(path)]
    status = network.main(["--rate", "5gbit", "--impl", "pycomm,mpi", *limits])
    if status == network.CANNOT:
        pytest.skip(capfd.readouterr().err)
    assert status == 0, capfd.readouterr()
    result = json.loads(path.read_text())
    assert (result["hosts"], result["nodes"], result["rate"]) == (["h0", "h1"], 2, "5gbit")
    assert result["transports"] == [["none", "mpi"], ["mpi", "none"]]
    assert result["command"].startswith("python -m bench network --rate 5gbit --impl pycomm,mpi ")
    assert [(row["impl"], row["wrong"]) for row in result["rows"]] == [("pycomm", 0), ("mpi", 0)]
    assert [row["of"] for row in result["roofline"]] == ["the wire"]
    assert "rank 0 on h0: none mpi" in capfd.readouterr().out
