"""Weights rounded to whole numbers, a scale for every block of a column, as ONNX Runtime's MatMulNBits stores them."""

from __future__ import annotations

import numpy as np

FACTORS = np.linspace(0.70, 1.05, 8, dtype=np.float32)  # of the scale that just holds a block's largest weight
CHUNK = 1 << 22  # weights looked at together


def rounded(weights: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed uint8 [N, blocks, block · bits / 8] and scales float32 [N, blocks] of weights float32 [K, N].

    Among several scales each block gets the one by which its weights move least, in squares: a large weight that is
    clipped a little costs less than many small ones that are rounded coarsely. There are no zero points; of the two signs
    that a scale can have, the largest weight gets the side that reaches further.
    """
    rows, columns = weights.shape
    blocks = -(-rows // block)
    packed = np.empty((columns, blocks, block * bits // 8), np.uint8)
    scales = np.empty((columns, blocks), np.float32)
    step = max(1, CHUNK // (blocks * block))
    for start in range(0, columns, step):
        part = np.zeros((min(step, columns - start), blocks * block), np.float32)
        part[:, :rows] = weights[:, start : start + step].T
        part = part.reshape(-1, block)
        whole, scale = _best(part, bits)
        at = slice(start, start + step)
        packed[at] = packed_numbers(whole, bits).reshape(packed[at].shape)
        scales[at] = scale.reshape(scales[at].shape)
    return packed, scales


def _best(part: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from 0 on (float32, the middle is zero) and scales of blocks [count, block]."""
    half = np.float32(1 << (bits - 1))
    largest = np.take_along_axis(part, np.abs(part).argmax(axis=1)[:, None], axis=1)
    least = np.full((len(part), 1), np.inf, np.float32)
    whole, kept = np.empty_like(part), np.empty_like(largest)
    for factor in FACTORS:
        scale = largest * (factor / -half)
        scale[scale == 0] = 1
        tried = np.clip(np.rint(part / scale), -half, half - 1)
        lost = np.square(tried * scale - part).sum(axis=1, keepdims=True)
        better = lost < least
        least, kept = np.where(better, lost, least), np.where(better, scale, kept)
        np.copyto(whole, tried, where=better)
    return whole + half, kept


def packed_numbers(whole: np.ndarray, bits: int) -> np.ndarray:
    """Numbers from 0 on [..., count] as bytes [..., count · bits / 8, rounded up]: of several that share a byte the first lies
    lowest, as MatMulNBits reads weights and zero points."""
    numbers, together = whole.astype(np.uint8), 8 // bits
    filled = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, -numbers.shape[-1] % together)])
    made = filled[..., ::together].copy()
    for place in range(1, together):
        made |= filled[..., place::together] << (place * bits)
    return made
