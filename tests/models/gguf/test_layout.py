"""A network in a GGUF file has the tensors that its own metadata say, or is refused before one of them is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fmopt.core.errors import CheckpointError
from fmopt.models.gguf.header import read_header
from fmopt.models.gguf.layout import dimensions_of, interleaved
from tests.conftest import TinyCheckpoint
from tests.gguf_files import changed, gguf_of, renamed

pytest.importorskip("gguf", reason="the package gguf (extra `gguf`) is not installed")


@pytest.fixture(scope="module")
def file(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in float32."""
    return gguf_of(tiny_checkpoint("llama", "text-generation"), tmp_path_factory.mktemp("gguf"))


def test_sizes_are_those_of_the_network(file):
    found = dimensions_of(read_header(file))
    assert (found.layers, found.hidden, found.feed_forward, found.heads, found.kv_heads, found.head_size) == (
        2,
        32,
        64,
        4,
        2,
        8,
    )
    assert (found.architecture, found.tied) == ("llama", False)
    names = found.tensors()
    assert names["blk.1.attn_k.weight"] == ("model.layers.1.self_attn.k_proj.weight", (16, 32))
    assert len(names) == 2 * 9 + 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "gemma", "holds a network of architecture 'gemma'; of GGUF files llama, qwen2, qwen3 are read"),
        ("llama.block_count", 3, r"lacks the tensor blk\.2\.attn_norm\.weight"),
        ("llama.block_count", 1, r"holds blk\.1\.attn_norm\.weight, which no llama that is read here has"),
        ("llama.block_count", 4_000_000_000, "says that it has 4,000,000,000 layers, and has 21 tensors"),
        ("llama.block_count", 0, r"its llama\.block_count is 0"),
        ("llama.embedding_length", 64, r"holds token_embd\.weight of \[320, 32\], and by its own metadata it has \[320, 64\]"),
        ("llama.feed_forward_length", 1 << 31, r"holds blk\.0\.ffn_gate\.weight of \[64, 32\]"),
        ("llama.attention.head_count_kv", 3, "4 heads of size 8, 3 of keys and values"),
        ("llama.attention.head_count_kv", 0, "4 heads of size 8, 0 of keys and values"),
        ("llama.rope.dimension_count", 4, "4 features with positions"),
    ],
)  # fmt: skip
def test_metadata_that_its_tensors_do_not_have(file, tmp_path, key, value, message):
    if isinstance(value, str):
        content = file.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1)
        path = tmp_path / "changed.gguf"
        path.write_bytes(content)
    else:
        path = changed(file, tmp_path / "changed.gguf", key, value)
    with pytest.raises(CheckpointError, match=message) as caught:
        dimensions_of(read_header(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_setting_that_would_be_lost_is_refused(file, tmp_path):
    path = renamed(file, tmp_path / "scaled.gguf", "llama.vocab_size", "llama.rope.scale")
    with pytest.raises(CheckpointError, match=r"says llama\.rope\.scale 320, and nothing here reads that"):
        dimensions_of(read_header(path))


def test_a_tensor_that_would_be_lost_is_refused(file, tmp_path):
    path = renamed(file, tmp_path / "scaled.gguf", "output.weight", "rope_f.weight")
    with pytest.raises(CheckpointError, match=r"holds rope_f\.weight, which no llama .*scaled positions"):
        dimensions_of(read_header(path))


def test_rows_of_a_head_lie_in_turn():
    rows = np.arange(8)[:, None]  # two heads of four: halves (0 1 | 2 3) and (4 5 | 6 7)
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
