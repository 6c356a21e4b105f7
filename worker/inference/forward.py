"""
The forward pass of the language model, and what it shares with the vision tower.

The modules and weights are those that transformers loaded, with the projections of queries, keys and values joined
into one matrix. Each docstring names further differences from transformers' forward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from worker.inference.attention import KVCache, PackedSequences, Rotary, apply_rotary, attend_causally, attend_with_lse

CPU_MLP_BLOCK = 1024
"""Tokens that go through an MLP at a time on a CPU: what it makes stays in the cache."""


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
            join_qkv(layer.self_attn)

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
        Return the input of the output head for the last token of each sequence: embeddings, (tokens, width), to
        (sequences, width).

        kv_cache: receives the keys and values of each layer.
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
    attended = attend_causally(queries, keys, values, sequences, layer.self_attn.scaling)
    return finish_layer(layer, hidden, attended)


def _last_text_layer(
    layer: Any, hidden: Tensor, rotary: Rotary, sequences: PackedSequences, kv_cache: KVCache | None
) -> Tensor:
    """Apply the last layer: (tokens, width) to (sequences, width), for the last token of each sequence."""
    attention = layer.self_attn
    width = attention.heads[0] * attention.head_dim
    last = sequences.cu_seqlens[1:].long() - 1
    normed = _norm(layer.input_layernorm, hidden)
    queries = linear(normed[last], attention.weight[:width], attention.bias[:width])
    queries = apply_rotary(queries.unflatten(1, (-1, attention.head_dim)), (rotary[0][last], rotary[1][last]))
    kv = linear(normed, attention.weight[width:], attention.bias[width:])
    keys, values = kv.unflatten(1, (-1, attention.head_dim)).chunk(2, dim=1)
    keys = apply_rotary(keys, rotary)
    _store(kv_cache, keys, values)
    one_each = PackedSequences([1] * len(last), sequences.device)
    attended, _ = attend_with_lse(queries, keys, values, one_each, sequences, attention.scaling)
    return finish_layer(layer, hidden[last], attended)


def project_qkv(layer: Any, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries, rotated keys and values, (tokens, heads, head width) each, of (tokens, width)."""
    attention = layer.self_attn
    qkv = linear(_norm(layer.input_layernorm, hidden), attention.weight, attention.bias)
    queries, keys, values = qkv.unflatten(1, (-1, attention.head_dim)).split(attention.heads, dim=1)
    return apply_rotary(queries, rotary), apply_rotary(keys, rotary), values


def finish_layer(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """Return the output of a layer from its input, (tokens, width), and its attention's output."""
    hidden = layer.self_attn.o_proj(attended.flatten(1)).add_(hidden)
    outputs = [_mlp(layer, block) for block in hidden.split(len(hidden) if hidden.is_cuda else CPU_MLP_BLOCK)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _mlp(layer: Any, hidden: Tensor) -> Tensor:
    normed = _norm(layer.post_attention_layernorm, hidden)
    gate = layer.mlp.act_fn(layer.mlp.gate_proj(normed))
    return layer.mlp.down_proj(gate.mul_(layer.mlp.up_proj(normed))).add_(hidden)  # type: ignore[no-any-return]


def _store(kv_cache: KVCache | None, keys: Tensor, values: Tensor) -> None:
    if kv_cache is not None:
        kv_cache.append((keys, values.contiguous()))  # a view would keep the joined projection alive


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def join_qkv(attention: Any) -> None:
    """Replace the three projections of an attention module by one weight and one bias."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    attention.heads = [part.out_features // attention.head_dim for part in parts]
    attention.weight = torch.cat([part.weight for part in parts])
    attention.bias = torch.cat([part.bias for part in parts])
    del attention.q_proj, attention.k_proj, attention.v_proj
