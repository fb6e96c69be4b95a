"""A dry run says what the run would do, and starts nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pycomm.testing import run_threads
from trainer import MODELS, DataParallel, FitConfig, fit
from trainer.__main__ import main
from trainer.dry_run import dry_run, needs

ZERO2 = ["--strategy", "zero2"]


def linear(**options: object) -> FitConfig:
    return FitConfig(data="linear", model="linear", **options)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_samples_of_a_step_are_shared_as_the_sampler_shares_them(ranks: int) -> None:
    facts = needs(linear(global_batch=10, epochs=3), ranks)
    assert facts["samples_per_rank"] == sorted({10 // ranks, -(-10 // ranks)})
    assert (facts["steps_per_epoch"], facts["steps"]) == (80, 240)
    assert facts["parameters"] == 2


@pytest.mark.parametrize(
    ("optimizer", "options", "per_element"),
    [("sgd", {}, 0), ("sgd", {"momentum": 0.9}, 4), ("adagrad", {}, 4), ("adam", {"amsgrad": True}, 12)],
)
def test_the_state_of_an_optimizer_is_measured(optimizer: str, options: dict, per_element: int) -> None:
    facts = needs(linear(optimizer=optimizer, optimizer_options=options), 2)
    assert facts["bytes_per_rank"]["optimizer"] == per_element * facts["parameters"]


def test_buckets_are_those_of_data_parallel() -> None:
    config = linear(bucket_mb=2000 / 2**20, model_options={"hidden": [30, 20]})
    config.model = "mlp"
    model = MODELS.build("mlp", inputs=1, outputs=1, hidden=[30, 20])
    optimizer = torch.optim.Adam(model.parameters())

    def rank(comm: object) -> list[int]:
        with DataParallel(model, comm, optimizer, bucket_bytes=2000) as parallel:
            optimizer.step()
            return [len(flat) for flat in parallel._gradients._buckets.flat]

    sizes = run_threads(1, rank)[0]
    assert len(sizes) == 2
    assert [bucket["elements"] for bucket in needs(config, 5)["buckets"]] == sizes


@pytest.mark.parametrize(("ranks", "exact"), [(1, False), (2, False), (3, False), (4, True)])
@pytest.mark.parametrize("strategy", ["data_parallel", "zero1", "zero2", "zero3"])
def test_memory_is_what_a_run_then_holds(strategy: str, ranks: int, exact: bool, tmp_path: Path) -> None:
    config = linear(
        strategy=strategy, bucket_mb=2000 / 2**20, steps=1, threads=1, out=tmp_path, global_batch=6,
        model_options={"hidden": [30, 20, 30]}, exact=exact,
    )  # fmt: skip
    config.model = "mlp"
    facts = needs(config, ranks)
    memory = run_threads(ranks, lambda comm: fit(config, comm))[0]["memory"]
    expected, got = facts["bytes_per_rank"], memory["bytes_per_rank"]
    assert got["parameters"] == expected["parameters"]
    assert got["gradients"] == expected["gradients"]
    # Of the rank with the most; and Adam counts the steps of each slice in 4 bytes.
    share = 8 * ranks * 64 * len(facts["buckets"]) if strategy != "data_parallel" else 0
    assert 0 <= got["optimizer"] - expected["optimizer"] <= share + 4 * 8
    by_ranks = {held["ranks"]: held[strategy] for held in facts["held_by_ranks"]}
    assert by_ranks[ranks] == sum(expected.values())
    formulas = {
        "data_parallel": 4 + 4 + 8,
        "zero1": 4 + 4 + 8 / ranks,
        "zero2": 4 + 4 / ranks + 8 / ranks,
        "zero3": 4 / ranks + 4 / ranks + 8 / ranks,
    }
    assert memory["formula"] == pytest.approx(formulas[strategy])


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_memory_of_shared_parameters_is_divided_by_the_ranks(strategy: str, tmp_path: Path) -> None:
    options = {"strategy": strategy, "bucket_mb": 2000 / 2**20, "steps": 1, "threads": 1, "global_batch": 8}
    config = linear(**options, out=tmp_path, model_options={"hidden": [30, 20, 30]})
    config.model, config.strategy_options = "mlp", {"share_params": True}
    facts = needs(config, 4)
    got = run_threads(4, lambda comm: fit(config, comm))[0]["memory"]["bytes_per_rank"]
    assert facts["bytes_per_rank"]["parameters"] == got["parameters"]
    alone = needs(replace(config, strategy_options={}), 4)
    assert alone["bytes_per_rank"]["parameters"] // 4 == got["parameters"]
    held = {by["ranks"]: by for by in facts["held_by_ranks"]}
    assert held[4][strategy] == sum(facts["bytes_per_rank"].values())
    assert held[4]["data_parallel"] == alone["held_by_ranks"][2]["data_parallel"]  # has all of them


def test_payload_and_traffic_follow_the_codec() -> None:
    facts = needs(linear(), 5)
    assert facts["buckets"] == [{"elements": 128, "dtype": "float32", "bytes": 512}]
    for codec, payload, ring in (("none", 512, 819.2), ("fp16", 256, 409.6), ("bf16", 256, 409.6)):
        assert (facts["payload_bytes"][codec], facts["ring_bytes_per_rank"][codec]) == (payload, ring)
    assert facts["ring_stages"] == 8


@pytest.mark.parametrize(
    ("strategy", "options", "gathered", "stages"),
    [
        ("zero1", {}, 1, 8),
        ("zero2", {"share_params": True}, 0, 4),
        ("zero3", {}, 1, 12),  # all of it is the root, which is gathered once
        ("zero3", {"blocks": ["Linear"]}, 2, 12),
    ],
)
def test_gathered_parameters_have_no_codec(strategy: str, options: dict, gathered: int, stages: int) -> None:
    name = "linear" if "blocks" not in options else "mlp"
    config = linear(strategy=strategy, strategy_options=options)
    config.model, config.model_options = name, {"hidden": []} if name == "mlp" else {}
    facts = needs(config, 5)
    (bucket,) = facts["buckets"]
    traffic = facts["ring_bytes_per_rank"]
    assert traffic["fp16"] == pytest.approx(4 / 5 * bucket["bytes"] * (0.5 + gathered))
    assert traffic["none"] == pytest.approx(4 / 5 * bucket["bytes"] * (1 + gathered))
    assert facts["ring_stages"] == stages


@pytest.mark.parametrize(
    ("strategy", "options", "reduced", "gathered"),
    [
        ("data_parallel", {"accumulate": 3}, 1, 1),
        ("zero1", {"accumulate": 3}, 1, 1),
        ("zero2", {"accumulate": 3}, 3, 1),
        ("zero3", {"accumulate": 3}, 3, 3),
        ("zero2", {"exact": True}, 1, 1),
        ("zero3", {"exact": True}, 1, 2),  # of 8 shards a rank of 4 has two
    ],
)
def test_micro_batches_that_are_sharded_travel_each(
    strategy: str, options: dict, reduced: int, gathered: int
) -> None:
    facts = needs(linear(strategy=strategy, **options), 4)
    (bucket,) = facts["buckets"]
    assert facts["payload_bytes"]["none"] == reduced * bucket["bytes"]
    assert facts["ring_bytes_per_rank"]["none"] == 3 / 4 * bucket["bytes"] * (reduced + gathered)
    blocks = 2 if strategy == "zero3" else 1  # which are gathered in forward and in backward
    assert facts["ring_stages"] == 3 * (reduced + blocks * gathered)


def test_the_table_shows_what_json_holds() -> None:
    table, facts = dry_run(linear(), 3), json.loads(dry_run(linear(), 3, "json"))
    assert facts == needs(linear(), 3)
    assert "42 or 43 per rank and step" in table and facts["samples_per_rank"] == [42, 43]
    assert "ring stages             4 per bucket" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "2"], "ranks belongs to dry_run"),
        (["--ranks", "0"], "ranks belongs to dry_run"),
        (["--dry_run", "--ranks", "0"], "ranks: expected 1 or more, got 0"),
        (
            ["--dry_run", "--strategy", "single"],
            "knows what data_parallel, zero1, zero2, zero3 need, not strategy 'single'",
        ),
        (["--dry_run", "--data", "none"], "no data 'none'"),
        (["--dry_run=xml"], "xml"),
        (["--dry_run", "--trace", "t.json"], "trace belongs to a run"),
        (["--dry_run", "--steps", "10", "--warmup_steps", "20"], "warmup_steps: expected 0 to 9"),
        (["--dry_run", "--epochs", "1", "--warmup_steps", "20"], "warmup_steps: expected 0 to 6"),
        (["--dry_run", "--patience", "2", "--eval_every", "5"], "patience needs a validation split"),
        (["--dry_run", "--strategy_options.a", "1"], "strategy 'data_parallel': got an unexpected keyword"),
        (["--dry_run", *ZERO2, "--overlap", "off"], "expected overlap auto or on, got off"),
        (["--dry_run", *ZERO2, "--grad_reduction", "rank_mean"], "expected grad_reduction global_mean"),
        (["--dry_run", *ZERO2, "--strategy_options.pool", "0"], "pool: expected 1 bucket or more, got 0"),
        (["--dry_run", *ZERO2, "--strategy_options.pool", "x"], "pool: expected 1 bucket or more, got 'x'"),
        (["--dry_run", "--bucket_mb", "1e-9"], "bucket_bytes"),
        (
            ["--dry_run", "--exact", "--ranks", "3"],
            "8 logical shards cannot be shared out evenly among 3 ranks",
        ),
    ],
)
def test_wrong_arguments_are_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--data", "linear", "--model", "linear", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["OMPI_COMM_WORLD_", "PMI_"])
def test_under_a_launcher_one_rank_prints_what_all_would_need(
    prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        monkeypatch.setenv(f"{prefix}SIZE", "2")
        monkeypatch.setenv(f"{prefix}RANK", str(rank))
        main(["fit", "--data", "linear", "--model", "linear", "--dry_run"])
    out = capsys.readouterr().out
    assert out.count("ring stages") == 1
    assert "global batch 128, 64 per rank" in out


def test_small_models_are_shown_in_kb() -> None:
    table = dry_run(linear(), 2)
    assert "buckets                 1: 0.51 kB" in table
    assert "0.00 MB" not in table


def test_a_dry_run_starts_neither_mpi_nor_training(environment: dict[str, str], tmp_path: Path) -> None:
    program = f"""
import sys
from trainer.__main__ import main
main("fit --data linear --model linear --dry_run --ranks 100 --out {tmp_path}/run".split())
import pycomm
assert not pycomm.is_initialized() and "mpi4py.MPI" not in sys.modules
"""
    environment["OMPI_COMM_WORLD_SIZE"] = "2"  # as under a launcher
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    assert "ring stages             198 per bucket" in finished.stdout
    assert not (tmp_path / "run").exists()
