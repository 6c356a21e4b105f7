"""
Attention over packed sequences, by a variable-length kernel where the device has one, else sequence by sequence.

Queries are (tokens, heads, head width); keys and values are the same with fewer heads (grouped-query attention).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from torch.nn.functional import scaled_dot_product_attention

QUERY_BLOCK = 64
"""Queries of a sequence that `attend_with_lse` takes at a time without the kernel; it holds all their scores."""
Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding, (tokens, 1, head width) each."""
KVCache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (tokens, heads, head width) each; the keys are rotated."""
AttentionWithLse = tuple[Tensor, Tensor]
"""The output of attention, (..., heads, head width), and the log-sum-exp of its scores, float32 (..., heads)."""


@dataclass(frozen=True)
class PackedSequences:
    """Sequences stored one after another, without padding."""

    lengths: Sequence[int]
    device: torch.device

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """(sequences + 1,) int32: 0 and the end offset of each sequence. The host does not wait for the copy."""
        cu_seqlens = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        is_cuda = self.device.type == "cuda"
        return cu_seqlens.pin_memory().to(self.device, non_blocking=True) if is_cuda else cu_seqlens

    @cached_property
    def positions(self) -> Tensor:
        """(tokens,): the position of each token in its sequence."""
        return torch.cat([torch.arange(length, device=self.device) for length in self.lengths])


def supports_varlen(queries: Tensor) -> bool:
    """Return whether FlashAttention takes these queries: in half precision, on GPUs since Ampere."""
    is_half = queries.dtype in (torch.float16, torch.bfloat16)
    return is_half and queries.is_cuda and torch.cuda.get_device_capability(queries.device) >= (8, 0)


def apply_rotary(heads: Tensor, rotary: Rotary) -> Tensor:
    """Rotate queries or keys, (tokens, heads, head width), by their positions."""
    cos, sin = rotary
    first, second = heads.chunk(2, dim=2)
    return heads * cos + torch.cat((-second, first), dim=2) * sin


def attend_causally(queries: Tensor, keys: Tensor, values: Tensor, sequences: PackedSequences, scale: float) -> Tensor:
    """Attend from each token to itself and to those before it in its sequence; return the shape of the queries."""
    if supports_varlen(queries):
        return cast(
            Tensor, _attend_varlen(queries, keys, values, sequences, sequences, scale=scale, window_size=(-1, 0))
        )
    parts = []
    for sequence in zip(*(heads.split(sequences.lengths) for heads in (queries, keys, values)), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in sequence)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


def attend_with_lse(
    queries: Tensor, keys: Tensor, values: Tensor, q_packing: PackedSequences, k_packing: PackedSequences, scale: float
) -> AttentionWithLse:
    """Attend from each sequence of queries, which may be empty, to all of its sequence of keys."""
    if supports_varlen(queries):
        options = {"scale": scale, "return_aux": AuxRequest(lse=True)}
        attended, lse = _attend_varlen(queries, keys, values, q_packing, k_packing, **options)
        # documented as (queries, heads), but the kernel returns (heads, queries)
        return attended, lse.T if lse.shape[0] == queries.shape[1] else lse
    parts = []
    split = queries.split(q_packing.lengths), keys.split(k_packing.lengths), values.split(k_packing.lengths)
    for q, k, v in zip(*split, strict=True):
        parts += [attend_padded(block[None], k[None], v[None], scale) for block in q.split(QUERY_BLOCK) if len(block)]
    return torch.cat([attended[0] for attended, _ in parts]), torch.cat([lse[0] for _, lse in parts])


def attend_padded(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None = None
) -> AttentionWithLse:
    """
    Attend in a padded batch, (n, tokens, heads, head width); softmax in float32.

    mask: (n, queries, keys) bool, true where a query may attend to a key; None allows all.
    """
    grouped = queries.unflatten(2, (keys.shape[2], -1))
    scores = torch.einsum("nqhgd,nkhd->nhgqk", grouped, keys).float() * scale
    if mask is not None:
        scores.masked_fill_(~mask[:, None, None], float("-inf"))
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse[..., None]).to(values.dtype)
    attended = torch.einsum("nhgqk,nkhd->nqhgd", weights, values)
    return attended.flatten(2, 3), lse.permute(0, 3, 1, 2).flatten(2, 3)


def merge_attention(first: AttentionWithLse, second: AttentionWithLse) -> Tensor:
    """Return what attention to the keys of both would give."""
    weight = torch.sigmoid(first[1] - second[1])[..., None]
    return (first[0] * weight + second[0] * (1 - weight)).to(first[0].dtype)


def _attend_varlen(
    q: Tensor, k: Tensor, v: Tensor, q_packing: PackedSequences, k_packing: PackedSequences, **options: Any
) -> Any:
    longest = max(q_packing.lengths), max(k_packing.lengths)
    return varlen_attn(q, k, v, q_packing.cu_seqlens, k_packing.cu_seqlens, *longest, enable_gqa=True, **options)
