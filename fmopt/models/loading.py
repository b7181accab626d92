"""A checkpoint opened as a torch network, also one that was pruned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Sensitivity
from fmopt.models.networks import known_transformers

if TYPE_CHECKING:
    import torch

    from fmopt.models.families.base import Family


@dataclass
class TorchModel:
    """A network in PyTorch with the metadata needed to export and judge it."""

    net: torch.nn.Module
    metadata: CheckpointMetadata
    family: Family | None  # None: no known block structure; it still quantizes
    history: tuple[str, ...] = ()  # the passes it went through, in order
    sensitivity: tuple[Sensitivity, ...] = ()  # of its groups of Linears, where a pass measured it

    def after(self, step: str) -> TorchModel:
        """The same model, remembering that `step` was done to it."""
        return replace(self, history=(*self.history, step))


def load_network(
    folder: Path, auto_class: str, dtype: str = "fp32", *, rebuild: Callable[[torch.nn.Module], None] | None = None,
    head: Mapping[str, Any] | None = None,
) -> torch.nn.Module:  # fmt: skip
    """The network of a checkpoint folder in eval mode, loaded without network access, pickle or remote code.

    `auto_class` is a transformers class name ("AutoModelForTokenClassification"); `dtype` is fp32, fp16 or bf16. A
    plain encoder ("AutoModel") comes without its pooler where the class allows that, so that `last_hidden_state` is its
    only output. Weights that the checkpoint lacks are a CheckpointError: a random head would give random answers.
    `rebuild` changes the shapes of the empty network, in place, before weights are loaded. `head` is the configuration of
    a head that will be trained: it may be missing, or of other labels.
    """
    import torch

    transformers = known_transformers()
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **(head or {})
    )
    loader = auto_loader(auto_class, config)
    mapping = loader._model_mapping
    if type(config) not in mapping:
        raise CheckpointError(f"{folder}: transformers has no {auto_class} for model_type {config.model_type!r}")
    # The pooler is left out by this class argument, which AutoModel passes on only when we name it.
    kinds: Any = mapping[type(config)]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    kind = next((kind for kind in kinds if kind.__name__ in (config.architectures or ())), kinds[0])
    known = inspect.signature(kind.__init__).parameters
    options = {"add_pooling_layer": False} if auto_class == "AutoModel" and "add_pooling_layer" in known else {}
    with quiet(transformers.utils.logging):
        net, found = (loader if rebuild is None else _rebuilding(kind, rebuild)).from_pretrained(
            folder, config=config, dtype=dtypes[dtype], local_files_only=True, trust_remote_code=False,
            use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=head is not None, **options,
        )  # fmt: skip
    if head is None and (found["missing_keys"] or found["mismatched_keys"]):
        first = sorted(str(key) for key in (*found["missing_keys"], *found["mismatched_keys"]))
        raise CheckpointError(
            f"{folder} has no fitting weights for {len(first)} tensors of {type(net).__name__} "
            f"({', '.join(first[:3])}); train the head first: fmopt finetune"
        )
    if rebuild is not None:
        net.__class__ = kind
    return net.eval()


def auto_loader(auto_class: str, config: Any) -> Any:
    """Of the transformers classes that `auto_class` names, one or several with blanks between, the first that has a network for
    `config`; the last when none has."""
    import transformers

    names = auto_class.split()
    # An encoder of T5 alone (T5EncoderModel) is no AutoModel: that would make a decoder up.
    if names == ["AutoModel"] and str((config.architectures or [""])[0]).endswith("EncoderModel"):
        names = ["AutoModelForTextEncoding", *names]
    loaders: list[Any] = [getattr(transformers, name) for name in names]
    return next((loader for loader in loaders if type(config) in loader._model_mapping), loaders[-1])


def _rebuilding(kind: Any, rebuild: Callable[[torch.nn.Module], None]) -> Any:
    """The class `kind`, except that a new network of it is passed to `rebuild`: from_pretrained then fills that."""

    def __init__(self: Any, config: Any, **options: Any) -> None:  # noqa: N807
        kind.__init__(self, config, **options)
        rebuild(self)

    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})


@contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Keep transformers' progress bar and load report off the user's terminal; what matters becomes an error."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
