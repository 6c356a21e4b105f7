"""
The forward passes of the vision tower and the language model.

The modules and weights are those that transformers loaded, with the projections of queries, keys and values joined
into one matrix. Each docstring names further differences from transformers' forward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from worker.inference.attention import KVCache, PackedSequences, Rotary, apply_rotary, attend

CPU_MLP_BLOCK = 1024
"""Tokens that go through an MLP of the language model at a time on a CPU: what it makes stays in the cache."""


class VisionTower:
    """SigLIP and the projector. A matrix product embeds the patches, not a convolution."""

    def __init__(self, tower: Any, projector: Any) -> None:
        self._positions = tower.embeddings.position_embedding.weight
        self._patch_bias = tower.embeddings.patch_embedding.bias
        self._patch_weight = tower.embeddings.patch_embedding.weight.flatten(1)
        self._projector = projector
        self._layers = list(tower.encoder.layers)
        for layer in self._layers:
            _join_qkv(layer.self_attn)

    def __call__(self, patches: Tensor) -> Tensor:
        """
        Return the features of the last layer, before its norm, projected.

        patches: (tiles, patches, values of a patch), normalised pixels.
        returns: (tiles, patches, width of the language model).
        """
        hidden = linear(patches, self._patch_weight, self._patch_bias).add_(self._positions)
        for layer in self._layers:
            hidden = vision_layer(layer, hidden)
        return self._projector(hidden)  # type: ignore[no-any-return]


def vision_layer(layer: Any, hidden: Tensor) -> Tensor:
    """Apply a layer of the vision tower: (tiles, patches, width) to the same."""
    attention = layer.self_attn
    qkv = linear(layer.layer_norm1(hidden), attention.weight, attention.bias)
    queries, keys, values = (
        part.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for part in qkv.chunk(3, dim=2)
    )
    attended = scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    hidden = attention.out_proj(attended.transpose(1, 2).flatten(2)).add_(hidden)
    inner = layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(hidden)))
    return layer.mlp.fc2(inner).add_(hidden)  # type: ignore[no-any-return]


class LanguageModel:
    """
    Qwen2 over packed sequences, each of which attends to itself alone.

    The last layer computes queries, and what follows them, for the last token of each sequence only. RMSNorm is
    torch's, which rounds once where transformers' rounds twice.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.layers = list(model.layers)
        for layer in self.layers:
            _join_qkv(layer.self_attn)

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embed token ids: (n,) to (n, width)."""
        embedding = self._model.embed_tokens
        return embedding(torch.as_tensor(ids, device=embedding.weight.device))  # type: ignore[no-any-return]

    def rotary_at(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """Return the rotary embedding of tokens at positions, (tokens,)."""
        cos, sin = self._model.rotary_emb(torch.empty(0, dtype=dtype, device=positions.device), positions[None])
        return cos[0, :, None], sin[0, :, None]

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the input of the output head, from the output of the last layer."""
        return _norm(self._model.norm, hidden)

    def __call__(self, hidden: Tensor, sequences: PackedSequences, kv_cache: KVCache | None = None) -> Tensor:
        """
        Return the input of the output head for the last token of each sequence.

        hidden: (tokens, width), the embeddings.
        kv_cache: receives the keys and values of each layer.
        returns: (sequences, width).
        """
        rotary = self.rotary_at(sequences.positions, hidden.dtype)
        for layer in self.layers[:-1]:
            hidden = text_layer(layer, hidden, rotary, sequences, kv_cache)
        return self.final_norm(_last_text_layer(self.layers[-1], hidden, rotary, sequences, kv_cache))


def text_layer(
    layer: Any, hidden: Tensor, rotary: Rotary, sequences: PackedSequences, kv_cache: KVCache | None = None
) -> Tensor:
    """Apply a layer of the language model: (tokens, width) to the same."""
    queries, keys, values = project_qkv(layer, hidden, rotary)
    _store(kv_cache, keys, values)
    attended = attend(queries, keys, values, sequences, sequences, layer.self_attn.scaling, is_causal=True)
    return finish_layer(layer, hidden, attended)


def _last_text_layer(
    layer: Any, hidden: Tensor, rotary: Rotary, sequences: PackedSequences, kv_cache: KVCache | None
) -> Tensor:
    """Apply the last layer: (tokens, width) to (sequences, width), for the last token of each sequence."""
    attention = layer.self_attn
    width = attention.sizes[0]
    last = sequences.cu_seqlens[1:].long() - 1
    normed = _norm(layer.input_layernorm, hidden)
    kv = linear(normed, attention.weight[width:], attention.bias[width:])
    keys, values = _split_heads(kv.split(attention.sizes[1:], dim=1), attention)
    (queries,) = _split_heads((linear(normed[last], attention.weight[:width], attention.bias[:width]),), attention)
    queries, keys = apply_rotary(queries, (rotary[0][last], rotary[1][last])), apply_rotary(keys, rotary)
    _store(kv_cache, keys, values)
    one_each = PackedSequences([1] * len(queries), sequences.device)
    attended = attend(queries, keys, values, one_each, sequences, attention.scaling)
    return finish_layer(layer, hidden[last], attended)


def project_qkv(layer: Any, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries, rotated keys and values, (tokens, heads, head width) each, of (tokens, width)."""
    attention = layer.self_attn
    qkv = linear(_norm(layer.input_layernorm, hidden), attention.weight, attention.bias)
    queries, keys, values = _split_heads(qkv.split(attention.sizes, dim=1), attention)
    return apply_rotary(queries, rotary), apply_rotary(keys, rotary), values


def finish_layer(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """Return the output of a layer from its input, (tokens, width), and its attention's output."""
    hidden = layer.self_attn.o_proj(attended.flatten(1)).add_(hidden)
    blocks = (hidden,) if hidden.is_cuda else hidden.split(CPU_MLP_BLOCK)
    outputs = [_mlp(layer, block) for block in blocks]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _mlp(layer: Any, hidden: Tensor) -> Tensor:
    normed = _norm(layer.post_attention_layernorm, hidden)
    gate = layer.mlp.act_fn(layer.mlp.gate_proj(normed))
    return layer.mlp.down_proj(gate.mul_(layer.mlp.up_proj(normed))).add_(hidden)  # type: ignore[no-any-return]


def _store(kv_cache: KVCache | None, keys: Tensor, values: Tensor) -> None:
    if kv_cache is not None:
        kv_cache.append((keys, values.contiguous()))  # a view would keep the joined projection alive


def _split_heads(parts: Sequence[Tensor], attention: Any) -> list[Tensor]:
    return [part.unflatten(1, (-1, attention.head_dim)) for part in parts]


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _join_qkv(attention: Any) -> None:
    """Replace the three projections of an attention module by one weight and one bias."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    attention.sizes = [part.out_features for part in parts]
    attention.weight = torch.cat([part.weight for part in parts])
    attention.bias = torch.cat([part.bias for part in parts])
    del attention.q_proj, attention.k_proj, attention.v_proj
