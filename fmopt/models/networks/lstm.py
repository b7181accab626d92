"""An LSTM language model: embedding → LSTM layers (Hochreiter and Schmidhuber, 1997) → projection, its weights tied to the
embedding (Press and Wolf, 2017).

In the place of keys and values its cache holds the state of each layer, as [rows, 1, 1, width]: what a layer says (h) as
key, what it remembers (c) as value. It does not grow. The layers have no biases, so that padding on the left, embedded as
zeros, leaves the state of zeros in which every text begins exactly as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import CausalLMOutputWithPast

IGNORED = -100  # a label that the loss leaves out


class LstmConfig(PretrainedConfig):
    """Sizes of an LSTM language model."""

    model_type = "lstm"

    def __init__(
        self, vocab_size: int = 1000, hidden_size: int = 256, num_hidden_layers: int = 2, dropout: float = 0.1,
        pad_token_id: int | None = None, bos_token_id: int | None = None, eos_token_id: int | None = None,
        tie_word_embeddings: bool = True, **others: Any,
    ) -> None:  # fmt: skip
        super().__init__(**others)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        self.tie_word_embeddings = tie_word_embeddings


class LstmLayer(nn.Module):
    """One layer. Its weights lie as ONNX's LSTM takes them, [1, 4 · width, width]: input, output, forget gate, new value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.of_input, self.of_state = (nn.Parameter(torch.empty(1, 4 * width, width)) for _ in range(2))

    def forward(self, states: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """States [rows, words, width] and the state (h, c), each [1, rows, width], after the last word."""
        if h.shape[-1] != self.width or c.shape[-1] != self.width:  # also tells a trace that the size never varies
            raise ValueError(f"the state is {h.shape[-1]} wide and the layer {self.width}; it is another network's")
        if torch.compiler.is_exporting():
            return self._as_onnx(states, h, c)
        weights = [self._as_torch(weight) for weight in (self.of_input, self.of_state)]
        return torch.lstm(states, (h, c), weights, False, 1, 0.0, self.training, False, True)

    def _as_onnx(self, states: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # torch would trace its own operator step by step, for just the number of words that it sees.
        rows, words, width = states.shape
        said, h, c = torch.onnx.ops.symbolic_multi_out(
            "LSTM", (states.transpose(0, 1), self.of_input, self.of_state, None, None, h, c), {"hidden_size": width},
            dtypes=[states.dtype] * 3, shapes=[(words, 1, rows, width), (1, rows, width), (1, rows, width)],
        )  # fmt: skip
        return said[:, 0].transpose(0, 1), h, c

    @staticmethod
    def _as_torch(weight: torch.Tensor) -> torch.Tensor:
        into, out, forget, new = weight[0].chunk(4)
        return torch.cat([into, forget, new, out])


class LstmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # both name a generate
    """P(w_t | w_1 … w_t-1) by the state that the words before left."""

    config_class = LstmConfig
    base_model_prefix = "lstm"
    _tied_weights_keys = {"projection.weight": "words.weight"}  # noqa: RUF012  as transformers has it

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(LstmLayer(width) for _ in range(config.num_hidden_layers))
        self.projection = nn.Linear(width, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LstmLayer):
            for weight in module.parameters():
                initialization.uniform_(weight, -(module.width**-0.5), module.width**-0.5)
        if isinstance(
            module, nn.Embedding
        ):  # Zaremba et al. (2014); with less, gates see nothing of the words at first
            initialization.uniform_(module.weight, -0.1, 0.1)

    def get_input_embeddings(self) -> nn.Module:
        """The words' embeddings; the name is transformers'."""
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        """What says how likely each word is; the name is transformers'."""
        return self.projection

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None, labels: torch.Tensor | None = None,
        use_cache: bool | None = None, return_dict: bool = True,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:  # fmt: skip
        """`logits` [rows, words, vocabulary] after each of the new words `input_ids` [rows, words]; `attention_mask`
        [rows, words so far] is 0 on padding, which lies before a row's first word or after its last. `labels` are the words
        themselves. `past_key_values` is brought up to date in place."""
        states = self.words(input_ids)
        if attention_mask is not None:
            states = states * attention_mask[:, -input_ids.shape[1] :, None].to(states.dtype)
        cache = DynamicCache() if past_key_values is None else past_key_values
        for number, layer in enumerate(self.layers):
            states, *state = layer(self.dropout(states), *_state(cache, number, states))
            _keep(cache, number, state)
        states = self.dropout(states)
        logits = loss = None
        if labels is None:
            logits = self.projection(states)
        else:
            wanted = labels[:, 1:] != IGNORED
            logits = self.projection(states[:, :-1][wanted])
            loss = nn.functional.cross_entropy(logits, labels[:, 1:][wanted])
        settings = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache if use_cache is not False else None
        )
        return settings if return_dict else settings.to_tuple()

    def prepare_inputs_for_generation(  # type: ignore[override]  # the rest of transformers' arguments are in `others`
        self, input_ids: torch.Tensor, past_key_values: DynamicCache | None = None,
        attention_mask: torch.Tensor | None = None, **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """What `generate` gives to the next call: all of a prompt, then one word at a time."""
        begun = past_key_values is not None and _has(past_key_values, 0)
        given = {"past_key_values": past_key_values, "attention_mask": attention_mask, "use_cache": True}
        return {"input_ids": input_ids[:, -1:] if begun else input_ids, **given}


def _has(cache: Any, number: int) -> bool:
    """Whether a layer has read something."""
    return number < len(cache.layers) and bool(cache.layers[number].is_initialized)


def _state(cache: DynamicCache, number: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, c), each [1, rows, width], that a layer goes on from; zeros where nothing was read yet."""
    if not _has(cache, number):
        zeros = states.new_zeros(1, states.shape[0], states.shape[2])
        return zeros, zeros
    kept: Any = cache.layers[number]
    return kept.keys[:, 0].transpose(0, 1).contiguous(), kept.values[:, 0].transpose(0, 1).contiguous()


def _keep(cache: DynamicCache, number: int, state: Sequence[torch.Tensor]) -> None:
    said, remembered = (part.transpose(0, 1)[:, None] for part in state)
    if _has(cache, number):
        kept: Any = cache.layers[number]
        kept.keys, kept.values = said, remembered  # in place of the last ones: a state does not grow
    else:
        cache.update(said, remembered, number)
