"""A candidate as a value: an ordered tuple of passes and a runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import Field

from fmopt.core import plugins
from fmopt.core.errors import ConfigError
from fmopt.core.received import read_toml
from fmopt.core.results import Frozen


class Step(Frozen):
    """One pass by name, with its options.

    >>> str(fmopt.Step(use="quantize_static", options={"calibrator": "mse"}))
    'quantize_static(calibrator=mse)'
    """

    use: str
    options: dict[str, Any] = Field(default_factory=dict)

    def build(self) -> Any:
        """The pass itself; ConfigError names an option that it does not have."""
        kind = plugins.find("passes", self.use)
        fields = {field.name for field in dataclasses.fields(kind)}
        for option in self.options:
            if option not in fields:
                raise ConfigError(f"pass {self.use!r} has no option {option!r}{plugins.did_you_mean(option, fields)}")
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()})

    def __str__(self) -> str:
        """`quantize_static(calibrator=mse)`."""
        options = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.use}({options})" if options else self.use


class Recipe(Frozen):
    """One candidate: passes in order, then a runtime with its options.

    >>> steps = (fmopt.Step(use="drop_layers"), fmopt.Step(use="quantize_dynamic"))
    >>> fmopt.Recipe(name="smaller", runtime="onnxruntime", precision="int8", steps=steps).steps[0].use
    'drop_layers'
    """

    name: str
    runtime: str
    precision: str = "fp32"  # for tables: the narrowest precision that computes
    steps: tuple[Step, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)


def read_recipe(path: Path) -> Recipe:
    """A recipe from a TOML of the user's.

    ```toml
    name = "mine"
    runtime = "onnxruntime"
    precision = "int8"
    [[steps]]
    use = "quantize_dynamic"
    [[steps]]
    use = "quantize_embeddings"
    ```
    """
    if not path.is_file():
        raise ConfigError(f"there is no recipe file {path}")
    return checked(read_toml(path, "a recipe", lambda content: Recipe(**{"name": path.stem, **content})))


def checked(recipe: Recipe) -> Recipe:
    """The recipe, whose runtime and passes there are, with these options; ConfigError for one that there is not."""
    plugins.find("runtimes", recipe.runtime)
    for step in recipe.steps:
        step.build()
    return recipe
