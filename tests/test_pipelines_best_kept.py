"""The best validation: which weights a run leaves, when it stops, and what a resumed run knows of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pipelines_training import Settings, Training, begun
from torch import nn

from pipelines.options.language_model import LanguageModelOptions
from pipelines.options.training import TrainingOptions
from pipelines.training.best_kept import Best, after_resume, kept_folder
from pipelines.training.loop import Validation
from pipelines.training.run_folder import Run
from pipelines.training.schedule import validation_interval


def scored(training: Training, scores: dict[int, float]) -> list[int]:
    """Have the run validate to these scores, and keep its best; the steps that it keeps, as they come."""
    kept: list[int] = []
    loop = training.loop

    def keep(model: nn.Module, folder: Path) -> None:
        kept.append(loop.progress.step)
        save_file({"weight": model.weight.detach().clone()}, folder / "model.safetensors")

    loop.validation = Validation(
        lambda: {"n": scores[loop.progress.step]}, loop.validation.sample, lambda found: found["n"], keep
    )
    return kept


RISING = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5, 10: 2.6, 12: 0.5}


def test_training_stops_when_validation_no_longer_improves(tmp_path, capsys):
    training = Training(tmp_path, validate_every=2, max_steps=12, patience=0.4)
    kept = scored(training, RISING)
    assert training.train() == list(range(10)), "at 10: half of the budget after the best, at 4; at 8 it was a third"
    assert kept == [2, 4] and training.loop.progress.best.step == 4
    shown = capsys.readouterr().out
    assert "stopped after step 10: no validation since step 4 was better, for 40% of the budget (--patience)" in shown
    assert training.run.has_checkpoint and training.run.checkpoints.joinpath("checkpoint-10").is_dir()
    training.loop.say_best()
    assert re.search(
        r"the best validation, of step 4, is saved \(n 1\); the last weights, of step 10 \(n 2.6\), are in ",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize("patience", [0.0, 0.9])
def test_patience_that_lasts(tmp_path, patience):
    training = Training(tmp_path, validate_every=2, max_steps=12, patience=patience)
    scored(training, RISING)
    assert len(training.train()) == 12 and "stopped_early" not in training.run.info
    assert training.loop.progress.best.step == 12


def test_a_run_that_stopped_is_finished_until_it_is_given_more(tmp_path):
    training = Training(tmp_path, validate_every=2, max_steps=12, patience=0.4)
    scored(training, RISING)
    training.train()
    training.run.write_end(10, 1.0, 4, {})
    info = json.loads(training.run.info_file.read_text())
    assert info["finished"] and info["stopped_early"] == {"patience": 0.4, "max_steps": 12, "max_minutes": None}

    def again(**settings: float) -> Run:
        options = TrainingOptions(**{**training.run.options, "resume": True, **settings})
        return Run(tmp_path, options, resume=True)

    assert again().finished and again(max_steps=11).finished
    assert not again(max_steps=13).finished and not again(patience=0.8).finished and not again(patience=0.0).finished
    resumed = Training(
        tmp_path, validate_every=2, max_steps=12, patience=0.8, resume=True, checkpoint_every=3, log_every=2
    )
    kept = scored(resumed, RISING)
    assert resumed.train() == [10, 11] and kept == [12] and "stopped_early" not in resumed.run.info


def test_a_run_that_is_killed_after_it_stopped_does_not_go_on(tmp_path):
    training = Training(tmp_path, validate_every=2, max_steps=12, patience=0.4)
    scored(training, RISING)
    training.train()
    resumed = Training(tmp_path, validate_every=2, max_steps=12, patience=0.4, resume=True)
    scored(resumed, RISING)
    assert resumed.train() == [] and resumed.loop.progress.step == 10 and "stopped_early" in resumed.run.info


def test_a_run_that_stopped_goes_on_with_a_little_more_budget(tmp_path):
    scores = {2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0, 10: 5.0, 12: 6.0}
    training = Training(tmp_path, validate_every=2, max_steps=11, patience=0.5)
    scored(training, scores)
    assert training.train()[-1] == 7, "at 8: six of eleven steps after the best"
    training.run.write_end(8, 1.0, 4, {})
    resumed = Training(tmp_path, validate_every=2, max_steps=12, patience=0.5, resume=True)
    scored(resumed, scores)
    assert resumed.train() == [8, 9], "six of twelve are still half, so that the next validation ends it"


def test_a_run_that_is_killed_after_the_validation_that_would_stop_it_does_not_go_on(tmp_path):
    training = Training(tmp_path, validate_every=2, max_steps=12, patience=0.4, checkpoint_every=2)
    scored(training, RISING)
    training.train(kill_at=9)
    resumed = Training(tmp_path, validate_every=2, max_steps=12, patience=0.4, resume=True)
    scored(resumed, RISING)
    assert resumed.train() == [] and resumed.loop.progress.step == 10


def test_minutes_are_noted_where_the_budget_has_none(tmp_path):
    run = begun(tmp_path, Settings(max_steps=None))
    run.options["patience"] = 0.3
    run.stop_early(0.3)
    assert run.info["stopped_early"] == {"patience": 0.3, "max_steps": None, "max_minutes": 10.0}


def test_a_better_model_that_was_kept_after_the_last_checkpoint_counts(tmp_path):
    """Killed between a checkpoint and the next: the weights in checkpoints/best are those of a later step."""
    training = Training(tmp_path, validate_every=2, checkpoint_every=3, max_steps=12)
    scored(training, RISING)
    training.train(kill_at=4)
    run = training.run
    before = Best(3.0, 2, 0.1, {"n": 3.0})
    assert after_resume(run, before) == Best(1.0, 4, training.loop.progress.best.seconds, {"n": 1.0})
    assert after_resume(run, Best(0.5, 1)) == Best(0.5, 1)
    folder = kept_folder(run)
    assert folder is not None
    (folder / "best.json").unlink()
    assert after_resume(run, before) == before, "of an earlier version"
    for file in folder.iterdir():
        file.unlink()
    assert after_resume(run, before) == Best() and kept_folder(run) is None, "removed: the next one is kept"


def test_an_interrupted_run_keeps_what_an_uninterrupted_one_keeps(tmp_path):
    for name, kill_at in (("whole", None), ("killed", 6)):
        training = Training(tmp_path / name, validate_every=2, max_steps=12, patience=0.4)
        scored(training, RISING)
        training.train(kill_at=kill_at)
    resumed = Training(tmp_path / "killed", validate_every=2, max_steps=12, patience=0.4, resume=True)
    scored(resumed, RISING)
    assert resumed.train()[-1] == 9
    weights = [load_file(tmp_path / name / "checkpoints/best/model.safetensors") for name in ("whole", "killed")]
    assert torch.equal(weights[0]["weight"], weights[1]["weight"])
    states = [json.loads((tmp_path / name / "checkpoints/checkpoint-10/state.json").read_text())
              for name in ("whole", "killed")]  # fmt: skip
    assert all(state["best"] == 1.0 and state["best_of"]["step"] == 4 for state in states)


@pytest.mark.parametrize(
    "rows, measured, settings, steps",
    [
        (2376, 125, {}, 75),  # two epochs
        (100_000, 2000, {}, 500),
        (2376, 2501, {}, 261),  # a twentieth of the time
        (100, 10, {"batch_size": 100}, 20),
        (2376, 125, {"max_steps": 8000}, 200),
        (2376, 125, {"validate_every": 7}, 7),
        (2376, 125, {"validate_every": 0}, 0),
    ],
)
def test_how_often_a_run_validates(rows, measured, settings, steps):
    assert validation_interval(LanguageModelOptions(**{"batch_size": 64, **settings}), rows, measured) == steps
