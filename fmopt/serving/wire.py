"""What requests hold, checked: those of OpenAI's interface for embeddings and completions, and the task's own."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fmopt.core.errors import DataError

MOST_INPUTS = 2048  # of one request, as OpenAI has it
Text = Annotated[str, Field(max_length=10_000_000)]
Texts = Annotated[
    list[Text],
    Field(min_length=1, max_length=MOST_INPUTS),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]  # or one text


class _Request(BaseModel):
    """A body of which keys that are not known are passed over: clients send more than anybody needs."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None


class EmbeddingsRequest(_Request):
    """POST /v1/embeddings."""

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class CompletionsRequest(_Request):
    """POST /v1/completions."""

    prompt: Texts
    max_tokens: int | None = Field(None, ge=1, le=1 << 20)
    temperature: float | None = Field(None, ge=0, le=100, strict=False)
    top_p: float | None = Field(None, gt=0, le=1, strict=False)
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stream: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """As a bundle takes them."""
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        named = {
            "max_new_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed,
            "stop": stop or None,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None}


class File(BaseModel):
    """An image or a sound."""

    model_config = ConfigDict(extra="forbid")

    base64: str


class PredictRequest(_Request):
    """POST /predict: texts, pairs of texts, or files."""

    inputs: Annotated[
        list[Text | Annotated[list[Text], Field(min_length=2, max_length=2)] | File],
        Field(min_length=1, max_length=MOST_INPUTS),
    ]

    @property
    def samples(self) -> list[Any]:
        """As a bundle takes them; DataError for a file that is not base64."""
        return [_sample(one, number) for number, one in enumerate(self.inputs, start=1)]


def _sample(one: str | list[str] | File, number: int) -> Any:
    if isinstance(one, str):
        return one
    if isinstance(one, list):
        return one[0], one[1]
    try:
        return base64.b64decode(one.base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"item {number}: it is not base64 ({error})") from error
