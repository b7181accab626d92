"""Where a sweep searches: the recipes of the fixed plan without their options, and for each the options that it may have.

Every recipe of the plan is a point of the space, so that the search can begin with them. An option has the same name wherever a
pass is used, so that what is learned of it on one runtime serves on another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fmopt.core.recipe import Recipe, Step
from fmopt.passes.base import traits_of
from fmopt.workflow.job.request import Effort, Training
from fmopt.workflow.search.candidates import gradual, pruned

Value = str | float | int | bool | None
BASE = "base"  # the choice that all others depend on

# What each pass may be told; what the plan tells it comes in addition. Values that a pass refuses are pruned.
OPTIONS: dict[str, dict[str, tuple[Value, ...]]] = {
    "quantize_static": {
        "calibrator": ("minmax", "moving_average", "percentile", "entropy", "mse"),
        "smooth": ("search", None, 0.3, 0.5, 0.7),
        "weight_bits": (None, 7, 8),
    },
    "quantize_static_ort": {"items": (32, 128, 300)},
    "quantize_dynamic": {"weights": ("auto", "int8", "int8-7bit", "uint8")},
    "quantize_nncf": {"preset": ("mixed", "performance")},
    "quantize_weights": {
        "bits": (4, 8),
        "block": (16, 32, 64, 128, 256),
        "method": ("rtn", "mse"),
        "head": (True, False),
    },
    "compress_weights": {
        "bits": (4, 8),
        "block": (32, 64, 128),
        "method": ("rtn", "awq", "scale", "gptq"),
        "head": (False, True),
    },
}
TABLES = "quantize_embeddings"  # a step that may be there or not, after the one that quantizes
FLOAT_GROUPS, WIDTHS = "float_groups", "pruned_speedup"
GROUPS = (0, 1, 2, 4, 8)  # of layers that go back to float, the most sensitive first
SPEEDUPS = (1.0, 1.25, 1.6, 2.0, 2.5)  # of a pruned network over the uncut one


class Suggests(Protocol):
    """What draws a value of a choice: an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """One of `choices`."""


@dataclass(frozen=True)
class Base:
    """A recipe without its options: what of it may change, and what it is called."""

    recipe: Recipe  # with the options as the passes have them by default, without tables
    knobs: tuple[str, ...]  # names of the choices that it has
    tuned: int | None  # which step has options; None: none


@dataclass(frozen=True)
class Space:
    """All choices: `values[name]` are the values of a choice, the same for every base that has it."""

    bases: Mapping[str, Base]
    values: Mapping[str, tuple[Value, ...]]
    planned: Mapping[str, tuple[Recipe, Mapping[str, Value]]]  # the plan's recipes by name, with their choices
    effort: Effort
    training: Training

    def suggest(self, trial: Suggests) -> dict[str, Value]:
        """The choices of a trial."""
        chosen: dict[str, Value] = {BASE: trial.suggest_categorical(BASE, tuple(self.bases))}
        for name in self.bases[str(chosen[BASE])].knobs:
            chosen[name] = trial.suggest_categorical(name, self.values[name])
        return chosen

    def recipe(self, chosen: Mapping[str, Value]) -> Recipe:
        """The recipe of some choices; one of the plan's is that recipe, with its name. ConfigError for options that a pass
        does not take."""
        for recipe, choices in self.planned.values():
            if dict(choices) == dict(chosen):
                return recipe
        base = self.bases[str(chosen[BASE])]
        recipe = base.recipe
        if base.tuned is not None:
            steps = list(recipe.steps)
            steps[base.tuned] = _told(steps[base.tuned], chosen)
            if chosen.get(TABLES):
                steps.insert(base.tuned + 1, Step(use=TABLES))
            bits = chosen.get(f"{steps[base.tuned].use}.bits")
            precision = recipe.precision if bits is None else f"int{bits}"
            recipe = recipe.model_copy(update={"steps": tuple(steps), "precision": precision})
        recipe = recipe.model_copy(update={"name": _name(base, chosen, self.planned[str(chosen[BASE])][1])})
        width = float(chosen.get(WIDTHS) or 1.0)
        if width > 1:
            recipe = pruned(recipe, gradual(width, self.effort), recipe.name, self.effort, self.training)
        for step in recipe.steps:
            step.build()
        return recipe

    def __len__(self) -> int:
        """How many different choices there are."""
        total = 0
        for base in self.bases.values():
            count = 1
            for name in base.knobs:
                count *= len(self.values[name])
            total += count
        return total


def space_of(recipes: Sequence[Recipe], effort: Effort, training: Training, *, prunes: bool) -> Space:
    """The space around the plan's recipes. `prunes`: networks can be made narrower here, with this effort."""
    bases: dict[str, Base] = {}
    taken: dict[str, tuple[str, dict[str, Value]]] = {}
    values: dict[str, tuple[Value, ...]] = {}
    for recipe in recipes:
        base, chosen = _apart(recipe, prunes=prunes)
        known = next((name for name, other in bases.items() if _alike(other, base)), None)
        name = known or recipe.name
        bases.setdefault(name, base)
        taken[recipe.name] = (name, chosen)
        for knob, value in chosen.items():
            offered = _offered(knob)
            values[knob] = tuple(dict.fromkeys((*values.get(knob, offered), value)))
    by_name = {recipe.name: recipe for recipe in recipes}
    planned = {name: (by_name[name], {BASE: base, **chosen}) for name, (base, chosen) in taken.items()}
    return Space(bases, values, planned, effort, training)


def _apart(recipe: Recipe, *, prunes: bool) -> tuple[Base, dict[str, Value]]:
    """A recipe as its base and the choices that make it."""
    steps = [step for step in recipe.steps if step.use != TABLES]
    tuned = next((number for number, step in enumerate(steps) if step.use in OPTIONS), None)
    chosen: dict[str, Value] = {}
    if tuned is not None:
        step, built = steps[tuned], steps[tuned].build()
        for option in OPTIONS[step.use]:
            chosen[f"{step.use}.{option}"] = getattr(built, option)
        left = {name: value for name, value in step.options.items() if name not in OPTIONS[step.use]}
        steps[tuned] = Step(use=step.use, options=left)
        if recipe.runtime == "onnxruntime":
            chosen[TABLES] = any(one.use == TABLES for one in recipe.steps)
        if traits_of(step).partly:
            chosen[FLOAT_GROUPS] = 0
        if prunes:
            chosen[WIDTHS] = 1.0
    return Base(recipe.model_copy(update={"steps": tuple(steps)}), tuple(chosen), tuned), chosen


def _alike(one: Base, other: Base) -> bool:
    """Whether two bases differ in name alone, or in the bits that an option says."""
    same = {"name": "", "precision": ""} if any(knob.endswith(".bits") for knob in one.knobs) else {"name": ""}
    return replace(one, recipe=one.recipe.model_copy(update=same)) == replace(
        other, recipe=other.recipe.model_copy(update=same)
    )


def _offered(knob: str) -> tuple[Value, ...]:
    pass_name, _, option = knob.partition(".")
    if option:
        return OPTIONS[pass_name][option]
    return {TABLES: (False, True), FLOAT_GROUPS: GROUPS, WIDTHS: SPEEDUPS}[knob]


def _told(step: Step, chosen: Mapping[str, Value]) -> Step:
    """A step with the options that were chosen; those that are as by default are left out, and so is what only 4 bits have."""
    default = step.build()
    options = dict(step.options)
    for option in OPTIONS[step.use]:
        value = chosen[f"{step.use}.{option}"]
        if value != getattr(default, option):
            options[option] = value
    groups = chosen.get(FLOAT_GROUPS) or 0
    return (
        Step(use=traits_of(step).partly, options={**options, "groups": groups})
        if groups
        else Step(use=step.use, options=options)
    )


def _name(base: Base, chosen: Mapping[str, Value], usual: Mapping[str, Value]) -> str:
    """`onnxruntime-static-int8-mse-smooth-0.5`: the name of the plan's recipe and what differs from its choices, which are
    `usual`. Where bits are chosen, it is the passes before, bits and block, and what differs
    (`onnxruntime-gptq-weights-int4-block-64`). No two recipes may have one name, for a known one is not tried again."""
    several = any(knob.endswith(".bits") for knob in base.knobs)
    before = [step.use.replace("_", "-") for step in base.recipe.steps[: base.tuned]]
    words = [base.recipe.runtime, *before, "weights"] if several else [base.recipe.name]
    for knob in base.knobs:
        value = chosen[knob]
        if knob.endswith(".bits"):
            words.append(f"int{value}")
            continue
        if value == usual[knob] and not (several and knob.endswith(".block")):
            continue
        label = knob.rpartition(".")[2].replace("_", "-")
        if isinstance(value, bool):
            label = "embeddings" if knob == TABLES else label
            words.append(label if value else f"no-{label}")
        else:
            words.append(f"{label}-{'none' if value is None else value}")
    return "-".join(words)
