"""SASRec (Kang and McAuley, Self-Attentive Sequential Recommendation, 2018): a Transformer over the items that someone took,
which says of every item of a catalogue how likely it comes next.

As in the paper: items and positions are embedded, the newest item at the last position; each block is attention to what came
before and a position-wise network, both normalized before and added to what they read; and an item's score is the product of
the last state with the item's own embedding. Otherwise than there, the loss is the cross-entropy over the whole catalogue,
which ranks better than one sampled negative (Klenitskiy and Vasilev, Turning Dross Into Gold Loss, 2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

IGNORED = -100  # a label that the loss leaves out


class SasRecConfig(PretrainedConfig):
    """Sizes of a SASRec; `vocab_size` is the items of the catalogue and, as number 0, the padding."""

    model_type = "sasrec"

    def __init__(
        self, vocab_size: int = 1000, hidden_size: int = 64, num_hidden_layers: int = 2, num_attention_heads: int = 1,
        max_position_embeddings: int = 50, dropout: float = 0.2, initializer_range: float = 0.02, pad_token_id: int = 0,
        tie_word_embeddings: bool = True, **others: Any,
    ) -> None:  # fmt: skip
        super().__init__(**others)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings


class SasRecBlock(nn.Module):
    """Attention of every item to itself and those before, then a network of two layers for each."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.before_attention, self.before_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """States [rows, items, width]; `hidden` [items, items] is the most negative number where an item comes later."""
        normed = self.before_attention(states)
        parts = (states.shape[0], states.shape[1], self.heads, -1)
        query, key, value = (each(normed).view(parts).transpose(1, 2) for each in (self.query, self.key, self.value))
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + hidden).softmax(dim=-1)
        mixed = (self.dropout(weights) @ value).transpose(1, 2).reshape(states.shape)
        states = states + self.dropout(self.output(mixed))
        inner = self.dropout(self.widen(self.before_ffn(states)).relu())
        return states + self.dropout(self.narrow(inner))


class SasRecForSequentialRecommendation(PreTrainedModel):
    """Scores of all items of the catalogue after a history."""

    config_class = SasRecConfig
    base_model_prefix = "sasrec"
    _tied_weights_keys = {"scores.weight": "items.weight"}  # noqa: RUF012  as transformers has it

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        self.items = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(SasRecBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.scores = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The items' embeddings; the name is transformers'."""
        return self.items

    def get_output_embeddings(self) -> nn.Module:
        """What scores items, by the same embeddings; the name is transformers'."""
        return self.scores

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> CausalLMOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """`logits` [rows, vocabulary] after the last item of each row. `input_ids` and `attention_mask` are int64
        [rows, items], padded on the right. `labels` [rows, items] are the items themselves: the loss compares the scores
        after each with the next one. `return_dict` is transformers'."""
        states = self._states(input_ids, attention_mask)
        last = (attention_mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        logits = self.scores(states.gather(1, last).squeeze(1))
        settings = CausalLMOutput(logits=logits)
        if labels is not None:
            wanted = labels[:, 1:] != IGNORED
            loss = nn.functional.cross_entropy(self.scores(states[:, :-1][wanted]), labels[:, 1:][wanted])
            settings = CausalLMOutput(loss=loss, logits=logits)
        return settings if return_dict else settings.to_tuple()

    def _states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # Nothing needs the padding hidden: it comes after a row's items, and no item looks at what comes after it.
        count, most = input_ids.shape[1], self.config.max_position_embeddings
        order = torch.arange(count, device=input_ids.device)
        # The newest item is at the last position, whatever the length of the history.
        places = (order + most - attention_mask.sum(dim=1, keepdim=True)).clamp(0, most - 1)
        states = self.dropout(self.items(input_ids) * self.config.hidden_size**0.5 + self.positions(places))
        hidden = torch.where(order[None, :] > order[:, None], torch.finfo(states.dtype).min, 0.0).to(states.dtype)
        for block in self.blocks:
            states = block(states, hidden)
        return self.norm(states)
