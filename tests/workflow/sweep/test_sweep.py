"""What a sweep is asked for, where it searches, what a killed run leaves, and what its page shows."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fmopt.cli.app import main
from fmopt.core.errors import ConfigError
from fmopt.core.recipe import Recipe, Step
from fmopt.core.results import Estimate, Verdict
from fmopt.core.target import Target
from fmopt.evaluation.winners_curse import most_seen
from fmopt.workflow.job.request import Training
from fmopt.workflow.search.candidates import generation_candidates, quick_candidates, rounded_candidates
from fmopt.workflow.sweep import suite
from fmopt.workflow.sweep.cell import sentence
from fmopt.workflow.sweep.page import write_sweep
from fmopt.workflow.sweep.plan import ModelEntry, Place, SweepPlan, places, read_plan, same_search
from fmopt.workflow.sweep.record import Cell, Failure, Sweep, Tried
from fmopt.workflow.sweep.space import BASE, space_of
from fmopt.workflow.sweep.study import HopelessError, Study

TARGET = Target(
    name="a",
    title="A",
    kind="cpu",
    arch="x86_64",
    cores=2,
    memory_gb=8,
    precisions=("fp32", "int8"),
    runtimes=("onnxruntime",),
)
HOSTILE = "<script>alert(1)</script>"


def planned_space(*, prunes: bool = False):
    return space_of(quick_candidates(TARGET), "quick", Training(), prunes=prunes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trials = 3", "names no models"),
        ("models = []", "names no models"),
        ('models = ["a"]\nsampel = "tpe"', "'sampel' that a plan does not have"),
        ('models = ["a"]\nsampler = "grid"', "sampler"),
        ('models = ["a"]\ntrials = 0', "trials"),
        (
            'models = ["a"]\n[budget]\nmax_drops = "1pt"',
            "in [budget] that a plan does not have; did you mean 'max_drop'?",
        ),
        ('models = ["a"]\n[budget]\nmax_drop = "much"', "much"),
        ("models = [", "is not a plan of a sweep"),
    ],
)
def test_a_bad_plan_is_one_line_and_exit_code_2(tmp_path: Path, capsys, text, said):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    assert main(["sweep", str(path), "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err.strip()
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_said_before_any_work(tmp_path: Path, capsys, monkeypatch):
    path = tmp_path / "plan.toml"
    path.write_text(f'models = ["{tmp_path}/nowhere"]\ndata = ["{tmp_path}/none.csv"]')
    assert main(["sweep", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    assert main(["sweep", str(path)]) == 2
    assert "pip install 'fmopt[sweep]'" in capsys.readouterr().err


def test_cells_are_the_product_and_have_names_of_their_own():
    plan = SweepPlan(
        models=(ModelEntry(model="a/bert"), ModelEntry(model="b/bert"), ModelEntry(model="c", data="own.csv")),
        targets=("host", "pi5"),
        data=("x.csv",),
    )
    names = [place.name for place in places(plan)]
    assert names[:4] == ["bert-host-x.csv", "bert-pi5-x.csv", "bert-host-x.csv~2", "bert-pi5-x.csv~2"]
    assert names[4:] == ["c-host-own.csv", "c-pi5-own.csv"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    plan = SweepPlan(models=(ModelEntry(model="a"),))
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(ConfigError, match="another command"):
        suite.require_own_plan(tmp_path, plan)
    (tmp_path / "record.json").unlink()
    found([], plan=plan).save(tmp_path)
    suite.require_own_plan(tmp_path, plan.model_copy(update={"trials": 99}))
    with pytest.raises(ConfigError, match="another plan"):
        suite.require_own_plan(tmp_path, plan.model_copy(update={"seed": 1}))


def test_a_plan_survives_its_json(tmp_path: Path):
    path = tmp_path / "plan.toml"
    path.write_text('models = ["m", {model = "n", data = "d"}]\n[budget]\nmax_drop = "2%"\nmin_speedup = 2')
    plan = read_plan(path)
    assert plan.budget.min_speedup == 2.0
    assert same_search(SweepPlan.model_validate_json(plan.model_dump_json()), plan)


@pytest.mark.parametrize("recipes", [quick_candidates(TARGET), generation_candidates(TARGET)])
def test_every_recipe_of_the_plan_is_a_point_of_the_space(recipes):
    space = space_of(recipes, "quick", Training(), prunes=False)
    for recipe, chosen in space.planned.values():
        assert space.recipe(chosen) == recipe
        assert all(value in space.values[name] for name, value in chosen.items() if name != BASE)
    assert len(space) > len(recipes)


def test_choices_become_options_of_the_recipe():
    space = planned_space(prunes=True)
    _, chosen = space.planned["onnxruntime-static-int8"]
    made = space.recipe({**chosen, "quantize_static.calibrator": "mse", "float_groups": 2, "quantize_embeddings": True})
    assert [step.use for step in made.steps] == ["mixed_precision", "quantize_embeddings", "simplify"]
    rounded = made.steps[0].build()
    assert (rounded.smooth, rounded.calibrator, rounded.groups) == ("search", "mse", 2)
    assert made.name != "onnxruntime-static-int8"
    narrow = space.recipe({**chosen, "pruned_speedup": 1.6})
    assert narrow.steps[0] == Step(use="prune_structured", options={"speedup": 1.6})


OF_DECODERS = (*generation_candidates(TARGET), *rounded_candidates("standard"))


@pytest.mark.parametrize("recipes", [quick_candidates(TARGET), OF_DECODERS])
def test_no_two_recipes_have_one_name(recipes):
    """A trial whose name is known is not done again: two recipes of one name would pass for each other."""
    space, draw = space_of(recipes, "standard", Training(), prunes=False), random.Random(0)
    made = {recipe.name: {recipe.model_dump_json()} for recipe, _ in space.planned.values()}
    for base, one in space.bases.items():
        for _ in range(300):
            chosen = {BASE: base, **{knob: draw.choice(space.values[knob]) for knob in one.knobs}}
            try:
                recipe = space.recipe(chosen)
            except ConfigError:
                continue
            made.setdefault(recipe.name, set()).add(recipe.model_dump_json())
    assert len(made) > 3 * len(space.bases)
    assert {name: several for name, several in made.items() if len(several) > 1} == {}


def test_an_option_that_a_pass_refuses_is_no_recipe():
    space = planned_space()
    _, chosen = space.planned["onnxruntime-static-int8"]
    with pytest.raises(ConfigError):
        space.recipe({**chosen, "quantize_static.smooth": 7.0})


def test_the_plan_comes_first_and_a_hopeless_trial_is_pruned(tmp_path: Path):
    space, seen = planned_space(), []
    study = Study(tmp_path, "cell", space, 2, "tpe", 0)

    def attempt(chosen, trial):
        seen.append(space.recipe(chosen).name)
        if len(seen) == 2:
            raise HopelessError("slower than full precision")
        return 1.0, 2.0

    for _ in space.planned:
        study.step(attempt)
    assert seen == list(space.planned)
    assert study.waiting() == 0
    pruned = study.finished()[1]
    assert (pruned.state.name, pruned.user_attrs["reason"]) == ("PRUNED", "slower than full precision")


def test_a_killed_trial_is_done_again_and_no_finished_one(tmp_path: Path):
    space = planned_space()
    child = os.fork()
    if child == 0:
        study = Study(tmp_path, "cell", space, 1, "nsga2", 0)
        study.step(lambda chosen, trial: (1.0,))
        study.step(lambda chosen, trial: os.kill(os.getpid(), signal.SIGKILL))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    study, seen = Study(tmp_path, "cell", space, 1, "nsga2", 0), []

    def attempt(chosen, trial):
        seen.append(space.recipe(chosen).name)
        return (1.0,)

    assert len(study.finished()) == 1
    while study.waiting():
        study.step(attempt)
    assert sorted(seen) == sorted(list(space.planned)[1:])
    assert len(seen) == len(set(seen))


def test_the_reserve_grows_with_the_number_of_candidates():
    drop = Estimate(point=0.002, low=-0.006, high=0.010)
    lines = [most_seen(drop, 0.01, times, 0.95) for times in (1, 10, 100)]
    assert lines[0] == 0.005
    assert lines[0] > lines[1] > lines[2]
    exact = Estimate(point=0.0, low=0.0, high=0.0)
    assert most_seen(exact, 0.01, 100, 0.95) == 0.005


def test_hundreds_of_candidates_bring_luck_no_more_often_than_the_plan():
    """All lose exactly what is allowed; how often is one of them taken for better than it is?"""
    rng, limit, error, plan, many = np.random.default_rng(0), 0.01, 0.004, 10, 300
    half = 1.6448536 * error
    line = most_seen(Estimate(point=0, low=-half, high=half), limit, many / plan, 0.95)
    by_plan = (rng.normal(limit, error, (20_000, plan)).min(1) <= limit / 2).mean()
    by_many = (rng.normal(limit, error, (20_000, many)).min(1) <= line).mean()
    without = (rng.normal(limit, error, (2_000, many)).min(1) <= limit / 2).mean()
    assert by_many == pytest.approx(by_plan, rel=0.15)
    assert without > 0.99


def test_it_says_when_it_found_nothing_better():
    def said(winner: str, planned: str | None, ahead: Estimate | None = None) -> str:
        record = SimpleNamespace(baselines=[SimpleNamespace(name="fp32")], winner=winner, reference="fp32")
        return sentence(record, planned, ahead, 7, {"int8"})

    assert said("int8", "int8").startswith(
        "The sweep found no variant that is at least as fast as the fixed plan's int8"
    )
    assert "full precision, fp32" in said("fp32", None)
    assert "no faster by more than chance" in said("new", "int8", Estimate(point=1.01, low=0.98, high=1.04))
    assert "1.20× (1.15–1.25) as fast" in said("new", "int8", Estimate(point=1.2, low=1.15, high=1.25))


def found(cells: list[Cell], plan: SweepPlan | None = None, failures: tuple[Failure, ...] = ()) -> Sweep:
    plan = plan or SweepPlan(models=(ModelEntry(model="m"),))
    return Sweep(
        fmopt="0", command=HOSTILE, plan=plan, places=places(plan), cells=cells, failures=list(failures), host={},
        versions={}, date="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_the_page_escapes_whatever_names_hold(tmp_path: Path):
    place = Place(name="m-host", entry=ModelEntry(model="m"), target="host", data=None)
    one = Estimate(point=1.5, low=1.4, high=1.6)
    row = Tried(
        name=HOSTILE, runtime="onnxruntime", precision="int8", steps=[HOSTILE], status="measured", front=True, p50_ms=1.0,
        speedup=one, drop=Estimate(point=0.0, low=0.0, high=0.01), size_bytes=1000,
    )  # fmt: skip
    ended = row.model_copy(update={"name": "slow", "status": "refused", "reason": HOSTILE, "front": False})
    cell = Cell(
        place=place, title=HOSTILE, target=HOSTILE, data=HOSTILE, unit="pt", reference="fp32", winner=HOSTILE, planned=None,
        ahead=None, verdict=Verdict(), test_drop=None, speedup=one, looked_at=1, sentence=HOSTILE, tried=[row, ended],
        minutes=2.0, warnings=[HOSTILE],
    )  # fmt: skip
    page = write_sweep(found([cell], failures=(Failure(place=place, reason=HOSTILE),)), tmp_path).read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "1.40–1.60" in page
    assert "1 measured, 1 refused" in page
    assert Sweep.load(tmp_path).cells == [cell]


def test_recipes_that_differ_in_bits_share_a_base():
    recipes = [one for one in generation_candidates(TARGET) if one.runtime == "onnxruntime" and "weights" in one.name]
    space = space_of(recipes, "quick", Training(), prunes=False)
    assert len(space.bases) == 1
    (_, chosen) = next(iter(space.planned.values()))
    made = space.recipe({**chosen, "quantize_weights.bits": 4, "quantize_weights.block": 64})
    assert isinstance(made, Recipe)
    assert (made.precision, made.steps[0].build().block) == ("int4", 64)
