"""Options: from the command line, from a file, and in a run's folder."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycomm.testing import run_threads
from trainer import FitConfig, PredictConfig, TrainerError, fit
from trainer import __main__ as program
from trainer.__main__ import main
from trainer.config import read_config

CHANGED = FitConfig(
    data="linear", model="linear", out=Path("some/where"), epochs=2, batch_per_rank=3, lr=0.5,
    optimizer="sgd", optimizer_options={"momentum": 0.5}, schedule="step", schedule_options={"every": 2},
    warmup_steps=1, eval_every_epochs=1, patience=2, tolerance=0.25, grad_reduction="rank_mean",
    data_options={"validation_fraction": 0.25}, plugin=["json"],
)  # fmt: skip


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[FitConfig]:
    """The configurations that main() would have run."""
    seen: list[FitConfig] = []
    monkeypatch.setattr(program, "_run_fit", lambda config, trace: seen.append(config))
    return seen


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    for config in (FitConfig(), CHANGED):
        config.save(tmp_path / "config.yaml")
        assert read_config(tmp_path / "config.yaml") == config


def test_the_file_of_a_run_starts_the_same_run(tmp_path: Path, parsed: list[FitConfig]) -> None:
    CHANGED.save(tmp_path / "config.yaml")
    main(["fit", "--config", str(tmp_path / "config.yaml")])
    assert parsed == [CHANGED]


def test_options_after_a_file_override_it(tmp_path: Path, parsed: list[FitConfig]) -> None:
    (tmp_path / "run.yaml").write_text("data: linear\nmodel: linear\nlr: 0.5\nsteps: 50\n")
    (tmp_path / "more.yaml").write_text("lr: 0.25\nseed: 3\n")
    main(["fit", "--config", str(tmp_path / "run.yaml"), "--steps", "2"])
    main(["fit", "--config", str(tmp_path / "run.yaml"), "--config", str(tmp_path / "more.yaml")])
    main(["fit", "--steps", "2", "--config", str(tmp_path / "run.yaml")])
    assert [(config.lr, config.steps, config.seed) for config in parsed] == [
        (0.5, 2, 0),
        (0.25, 50, 3),
        (0.5, 50, 0),
    ]


def test_print_config_prints_a_file_that_config_takes(
    tmp_path: Path, parsed: list[FitConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--data", "linear", "--lr", "0.5", "--optimizer_options.eps", "0.5", "--print_config"])
    assert caught.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    main(["fit", "--config", str(tmp_path / "printed.yaml")])
    assert parsed == [FitConfig(data="linear", lr=0.5, optimizer_options={"eps": 0.5})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3\n", ["stepz"]),
        ("data: linear\noptimizer: lion\n", ["optimizer", "lion", "adamw"]),
        ("steps: many\n", ["steps", "many"]),
        ("- 1\n- 2\n", ["config"]),
        ("data: [\n", ["config"]),
    ],
)
def test_a_file_with_a_wrong_key_or_value_names_it(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    message = refused(["fit", "--config", str(tmp_path / "run.yaml")], capsys)
    for word in words:
        assert word in message, message


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in refused(["fit", "--config", str(tmp_path / "nowhere.yaml")], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: linear\nnonesuch: 1\n", r"config.yaml: expected options of fit: .*'nonesuch'"),
        ("steps: abc\n", r'config.yaml: expected options of fit: (?s:.*)"steps"(?s:.*)abc'),
        ("optimizer: lion\n", r'config.yaml: expected options of fit: (?s:.*)"optimizer"(?s:.*)lion'),
        ("- 1\n", r"config.yaml: expected options of fit, got \[1\]"),
        ("data: [\n", r"config.yaml is no YAML file"),
    ],
)
def test_a_runs_folder_with_other_options_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(TrainerError, match=message):
        read_config(tmp_path / "config.yaml")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"config.yaml does not exist: expected the folder given to fit"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_every": 2, "eval_every_epochs": 1}, "give eval_every or eval_every_epochs, not both"),
        ({"patience": 2}, "patience counts evaluations: give eval_every or eval_every_epochs too"),
        ({"patience": 0, "eval_every": 1}, "patience: expected 1 or more, got 0"),
        ({"tolerance": -0.1}, "tolerance: expected 0 or more, got -0.1"),
        ({"warmup_steps": -1}, "warmup_steps: expected 0 or more, got -1"),
        ({"eval_every_epochs": -1}, "eval_every_epochs: expected 0 or more, got -1"),
        ({"save_every": -1}, "save_every: expected 0 or more, got -1"),
        ({"keep": 0}, "keep: expected 1 or more, got 0"),
        ({"batch_per_rank": 0}, "batch_per_rank: expected 1 or more, got 0"),
        ({"tolerance": math.nan}, "tolerance: expected 0 or more, got nan"),
        ({"lr": math.inf}, "lr: expected more than 0, got inf"),
        ({"bucket_mb": math.inf}, "bucket_mb: expected more than 0, got inf"),
        ({"steps": 10, "warmup_steps": 10}, "warmup_steps: expected 0 to 9, less than the run's, got 10"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        FitConfig(**options).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_options": {"cuont": 3}}, r"data 'linear': .*'cuont'; it takes seed, count, test_fraction"),
        ({"data_options": {"seed": 3}}, "data_options: seed is decided by --seed"),
        ({"optimizer_options": {"momentum": 1}}, r"optimizer 'adam': .*'momentum'; it takes lr, betas, eps"),
        ({"optimizer_options": {"lr": 1}}, "optimizer_options: lr is decided by --lr"),
        ({"optimizer_options": {"betas": [2, 0]}}, r"optimizer 'adam' with .*Invalid beta parameter"),
        ({"schedule": "step", "schedule_options": {"every": 0}}, "every: expected 1 or more, got 0"),
        ({"strategy_options": {"evry": 3}}, r"strategy 'data_parallel': .*'evry'; it takes no options"),
        ({"strategy": "zero2", "overlap": "off"}, "expected overlap auto or on, got off"),
        ({"strategy": "zero1", "grad_reduction": "sum"}, "expected grad_reduction global_mean, got sum"),
        ({"strategy": "zero1", "strategy_options": {"share_params": "yess"}}, "true or false, got 'yess'"),
        ({"strategy": "zero2", "strategy_options": {"pool": 1.5}}, "1 bucket or more, got 1.5"),
        ({"patience": 2, "eval_every": 5}, "patience needs a validation split: set data_options"),
        ({"data_options": {"count": np.int64(9)}}, r"data_options.count: expected text, .* got .* of int64"),
        ({"model_options": {"path": Path("x")}}, r"model_options.path: expected text, .* of PosixPath"),
    ],
)
def test_options_are_checked_before_a_run_starts(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        FitConfig(data="linear", model="linear", **options).check()


def test_paths_may_be_text_and_a_plugin_may_be_one() -> None:
    assert FitConfig(out="runs/x", plugin="json") == FitConfig(out=Path("runs/x"), plugin=["json"])
    assert PredictConfig("runs/x", out="p.npy") == PredictConfig(Path("runs/x"), out=Path("p.npy"))


@pytest.mark.parametrize("words", [["json"], ["[json]"], ["[json, csv]"]])
def test_plugins_are_one_word_or_a_list(words: list[str], parsed: list[FitConfig]) -> None:
    main(["fit", "--data", "linear", "--model", "linear", "--plugin", *words])
    assert parsed[0].plugin == (["json", "csv"] if "csv" in words[0] else ["json"])


@pytest.mark.parametrize(
    ("words", "exact"), [(["--exact"], True), (["--exact", "true"], True), (["--exact=false"], False)]
)
def test_what_is_true_or_false_is_a_switch(words: list[str], exact: bool, parsed: list[FitConfig]) -> None:
    main(["fit", *words, "--data", "linear", "--model", "linear"])
    assert parsed[0].exact is exact


def test_what_a_file_has_set_can_be_unset(
    tmp_path: Path, parsed: list[FitConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("data: linear\nmodel: linear\nsteps: 50\neval_every: 5\n")
    arguments = ["fit", "--config", str(tmp_path / "run.yaml")]
    assert "--steps null unsets what a file has set" in refused([*arguments, "--epochs", "1"], capsys)
    assert "--eval_every 0 unsets" in refused([*arguments, "--eval_every_epochs", "1"], capsys)
    main([*arguments, "--epochs", "1", "--steps", "null", "--eval_every_epochs", "1", "--eval_every", "0"])
    assert (parsed[0].steps, parsed[0].epochs, parsed[0].evaluation_steps_for(7)) == (None, 1, 7)


def test_predict_checks_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="threads: expected 1 or more, got 0"):
        PredictConfig(tmp_path, threads=0).check()
    with pytest.raises(TrainerError, match="nowhere does not exist"):
        PredictConfig(tmp_path / "nowhere").check()


def test_evaluation_steps_are_counted_in_steps_or_epochs() -> None:
    assert FitConfig().evaluation_steps_for(7) == 0
    assert FitConfig(eval_every=3).evaluation_steps_for(7) == 3
    assert FitConfig(eval_every_epochs=3).evaluation_steps_for(7) == 21


def test_fit_leaves_its_options_in_its_folder(tmp_path: Path) -> None:
    config = FitConfig(data="linear", model="linear", out=tmp_path / "run", steps=2, lr=0.25, threads=1)
    run_threads(2, lambda comm: fit(config, comm))
    assert read_config(tmp_path / "run" / "config.yaml") == config


def test_the_options_have_a_word_of_help_each() -> None:
    for options in (FitConfig, PredictConfig):
        for option in fields(options):
            assert f"        {option.name}: " in options.__doc__, option.name
