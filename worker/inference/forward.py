"""
The forward passes of the two towers, over packed rows: no padding goes through the language model.

The modules and weights are those that transformers has loaded, and are changed: matrices that are multiplied with the
same input are joined. What else differs from the passes of transformers is said with each.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

BLOCK = 1024
"""Rows that go through the MLP of the language model at a time on a CPU."""


class VisionTower:
    """SigLIP and the projector. The patches are embedded by a matrix product, not a convolution."""

    def __init__(self, tower: Any, projector: Any) -> None:
        self.width: int = tower.config.hidden_size
        self._positions = tower.embeddings.position_embedding.weight
        self._patch_bias = tower.embeddings.patch_embedding.bias
        self._patch_weight = tower.embeddings.patch_embedding.weight.flatten(1)
        self._projector = projector
        self.layers = list(tower.encoder.layers)
        for layer in self.layers:
            _join_attention(layer.self_attn)

    def __call__(self, patches: Tensor) -> Tensor:
        """
        Features of the last layer, before its norm, projected.

        patches: (n, patches of a tile, values of a patch), normalised pixels.
        returns: (n, patches of a tile, width of the language model).
        """
        hidden = linear(patches, self._patch_weight, self._patch_bias).add_(self._positions)
        for layer in self.layers:
            hidden = vision_layer(layer, hidden)
        return self._projector(hidden)  # type: ignore[no-any-return]


def vision_layer(layer: Any, hidden: Tensor) -> Tensor:
    """(n, patches, width) to the same."""
    attention = layer.self_attn
    joint = linear(layer.layer_norm1(hidden), attention.weight, attention.bias)
    queries, keys, values = (
        part.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for part in joint.chunk(3, dim=2)
    )
    if hidden.device.type == "cpu":
        queries, keys, values = (part.contiguous() for part in (queries, keys, values))
    attended = scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    hidden = attention.out_proj(attended.transpose(1, 2).flatten(2)).add_(hidden)
    inner = layer.mlp.fc1(layer.layer_norm2(hidden))
    is_exact = inner.device.type == "cpu" and inner.dtype is torch.float32
    activation = _gelu if is_exact and layer.mlp.config.hidden_act == "gelu_pytorch_tanh" else layer.mlp.activation_fn
    return layer.mlp.fc2(activation(inner)).add_(hidden)  # type: ignore[no-any-return]


def _gelu(values: Tensor) -> Tensor:
    """GELU by tanh: 1 + tanh(x) is twice the logistic function of 2x, which a CPU computes in half the time."""
    slope = 2 * math.sqrt(2 / math.pi)
    inner = (values * values).mul_(slope * 0.044715).add_(slope).mul_(values)
    return inner.sigmoid_().mul_(values)


Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding: (tokens, 1, width of a head) each."""

KVCache = list[tuple[Tensor, Tensor]]
"""Of each layer, keys and values: (tokens, heads of those, width of a head), the keys turned."""


@dataclass(frozen=True)
class PackedSequences:
    """Where rows begin and end that lie one behind the other."""

    lengths: Sequence[int]
    device: torch.device

    @cached_property
    def ends(self) -> Tensor:
        """(rows + 1,) int32: 0, and the end of each row; made without waiting for the device."""
        ends = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        return ends.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else ends

    @cached_property
    def one_each(self) -> Tensor:
        """The `ends` of rows of one token."""
        return torch.arange(len(self.lengths) + 1, dtype=torch.int32, device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        """(tokens,): each token's place in its row."""
        return torch.cat([torch.arange(length, device=self.device) for length in self.lengths])


class LanguageModel:
    """
    Qwen2 over packed rows, each of which attends to itself alone.

    Of the last layer, queries and what follows them are computed for the last token of each row only. RMSNorm is
    torch's, which rounds once where transformers' rounds twice.
    """

    def __init__(self, text: Any) -> None:
        self._text = text
        self.layers = list(text.layers)
        for layer in self.layers:
            _join_attention(layer.self_attn)

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """(n,) ids to (n, width)."""
        embedding = self._text.embed_tokens
        return embedding(torch.as_tensor(ids, device=embedding.weight.device))  # type: ignore[no-any-return]

    def turns(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """Of tokens at their positions, (tokens,)."""
        cos, sin = self._text.rotary_emb(torch.empty(0, dtype=dtype, device=positions.device), positions[None])
        return cos[0, :, None], sin[0, :, None]

    def normed(self, hidden: Tensor) -> Tensor:
        """What the head sees of the last layer's output."""
        return _norm(self._text.norm, hidden)

    def __call__(self, hidden: Tensor, packing: PackedSequences, kept: KVCache | None = None) -> Tensor:
        """
        (tokens, width) of embeddings to (rows, width): what the head sees of each row's last token.

        kept: gets the keys and values of each layer.
        """
        turns = self.turns(packing.positions, hidden.dtype)
        for layer in self.layers[:-1]:
            hidden = text_layer(layer, hidden, turns, packing, kept)
        return self.normed(_last_text_layer(self.layers[-1], hidden, turns, packing, kept))


def text_layer(
    layer: Any, hidden: Tensor, turns: Rotary, packing: PackedSequences, kept: KVCache | None = None
) -> Tensor:
    """(tokens, width) to the same."""
    queries, keys, values = attention_inputs(layer, hidden, turns)
    _keep(kept, keys, values)
    attended = _attend_causally(queries, keys, values, packing, layer.self_attn.scaling)
    return layer_output(layer, hidden, attended)


def attention_inputs(layer: Any, hidden: Tensor, turns: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, width) to queries, keys and values, (tokens, heads, width of a head), turned by their positions."""
    attention = layer.self_attn
    joint = linear(_norm(layer.input_layernorm, hidden), attention.weight, attention.bias)
    queries, keys, values = _heads(joint.split(attention.sizes, dim=1), attention)
    return apply_rotary(queries, turns), apply_rotary(keys, turns), values


def _last_text_layer(
    layer: Any, hidden: Tensor, turns: Rotary, packing: PackedSequences, kept: KVCache | None
) -> Tensor:
    attention = layer.self_attn
    width = attention.sizes[0]
    last = packing.ends[1:].long() - 1
    normed = _norm(layer.input_layernorm, hidden)
    joint = linear(normed, attention.weight[width:], attention.bias[width:])
    keys, values = _heads(joint.split(attention.sizes[1:], dim=1), attention)
    (queries,) = _heads((linear(normed[last], attention.weight[:width], attention.bias[:width]),), attention)
    queries, keys = apply_rotary(queries, (turns[0][last], turns[1][last])), apply_rotary(keys, turns)
    _keep(kept, keys, values)
    attended = _attend_to_rows(queries, keys, values, packing, attention.scaling)
    return layer_output(layer, hidden[last], attended)


def _keep(kept: KVCache | None, keys: Tensor, values: Tensor) -> None:
    if kept is not None:
        kept.append((keys, values.contiguous()))  # a copy: as they are, they would hold the queries, too


def layer_output(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """What a layer makes of its input, (tokens, width), and of what its attention gave, with the heads apart."""

    def mlp(part: Tensor) -> Tensor:
        normed = _norm(layer.post_attention_layernorm, part)
        gate = layer.mlp.act_fn(layer.mlp.gate_proj(normed))
        return layer.mlp.down_proj(gate.mul_(layer.mlp.up_proj(normed))).add_(part)  # type: ignore[no-any-return]

    return _in_blocks(mlp, layer.self_attn.o_proj(attended.flatten(1)).add_(hidden))


def _in_blocks(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """What a function makes of (n, width), which is the same row by row; a CPU's cache holds what lies in between."""
    return function(rows) if rows.is_cuda else torch.cat([function(part) for part in rows.split(BLOCK)])


def _attend_causally(queries: Tensor, keys: Tensor, values: Tensor, packing: PackedSequences, scale: float) -> Tensor:
    """(tokens, heads, width of a head), keys and values with fewer heads, to the same as the queries."""
    if is_flash(queries):
        longest = max(packing.lengths)
        attended = varlen_attn(
            queries, keys, values, packing.ends, packing.ends, longest, longest,
            scale=scale, window_size=(-1, 0), enable_gqa=True,
        )  # fmt: skip
        return cast(Tensor, attended)
    rows = zip(*(part.split(packing.lengths) for part in (queries, keys, values)), strict=True)
    return torch.cat([_attend_one(q, k, v, scale, is_causal=True) for q, k, v in rows])


def _attend_to_rows(queries: Tensor, keys: Tensor, values: Tensor, packing: PackedSequences, scale: float) -> Tensor:
    """One query for each row, (rows, heads, width of a head), which sees all of it."""
    if is_flash(queries):
        attended = varlen_attn(
            queries, keys, values, packing.one_each, packing.ends, 1, max(packing.lengths),
            scale=scale, enable_gqa=True,
        )  # fmt: skip
        return cast(Tensor, attended)
    rows = zip(queries.split(1), keys.split(packing.lengths), values.split(packing.lengths), strict=True)
    return torch.cat([_attend_one(q, k, v, scale, is_causal=False) for q, k, v in rows])


def _attend_one(queries: Tensor, keys: Tensor, values: Tensor, scale: float, *, is_causal: bool) -> Tensor:
    queries, keys, values = (part.transpose(0, 1)[None] for part in (queries, keys, values))
    attended = scaled_dot_product_attention(queries, keys, values, is_causal=is_causal, scale=scale, enable_gqa=True)
    return attended[0].transpose(0, 1)


def is_flash(queries: Tensor) -> bool:
    """Whether rows may be told by their ends: FlashAttention, on GPUs since Ampere, in half precision."""
    is_half = queries.dtype in (torch.float16, torch.bfloat16)
    return is_half and queries.is_cuda and torch.cuda.get_device_capability(queries.device) >= (8, 0)


def _heads(parts: Sequence[Tensor], attention: Any) -> list[Tensor]:
    return [part.unflatten(1, (-1, attention.head_dim)) for part in parts]


def apply_rotary(heads: Tensor, turns: Rotary) -> Tensor:
    cos, sin = turns
    first, second = heads.chunk(2, dim=2)
    return heads * cos + torch.cat((-second, first), dim=2) * sin


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _join_attention(attention: Any) -> None:
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    attention.sizes = [part.out_features for part in parts]
    attention.weight = torch.cat([part.weight for part in parts])
    attention.bias = torch.cat([part.bias for part in parts])
    del attention.q_proj, attention.k_proj, attention.v_proj
