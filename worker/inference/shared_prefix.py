"""
The forward pass of several questions about each photo, which compute the photo's own tokens only once.

A continuation attends to its prefix, in one call with all others of that prefix, and to its own tokens. Their
log-sum-exps merge the two, as in FlashInfer's cascade attention (arXiv 2501.01005).
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from worker.inference.attention import KVCache, PackedSequences, attend_padded, attend_with_lse, merge_attention
from worker.inference.forward import LanguageModel, finish_layer, project_qkv

KV_GROWTH_TOKENS = 32
"""Spare tokens that each continuation gets when its KV cache grows."""


class PrefixCache:
    """Keys and values of the tokens that continuations share, packed."""

    def __init__(self, kv_cache: KVCache, sequences: PackedSequences, indices: Sequence[int], drop_last: int) -> None:
        """
        Take the sequences of a forward pass at some indices, each without its last `drop_last` tokens.

        kv_cache: of the pass; it is emptied layer by layer, so that memory never holds more than one layer twice.
        """
        offsets = [0, *accumulate(sequences.lengths)]
        parts = [torch.arange(offsets[i], offsets[i + 1] - drop_last, device=sequences.device) for i in indices]
        tokens = torch.cat(parts)
        self.sequences = PackedSequences([len(part) for part in parts], sequences.device)
        self.kv_cache: KVCache = []
        while kv_cache:
            keys, values = kv_cache.pop(0)
            self.kv_cache.append((keys[tokens], values[tokens]))


class Continuations:
    """Token sequences, empty at first, that each continue a prefix. Their KV cache is padded on the right."""

    def __init__(self, model: LanguageModel, prefixes: PrefixCache, prefix_indices: Sequence[int]) -> None:
        """prefix_indices: the prefix of each continuation, in ascending order."""
        self._model, self._prefixes, self._prefix_indices = model, prefixes, prefix_indices
        self._lengths = [0] * len(prefix_indices)
        keys, _ = prefixes.kv_cache[0]
        empty = keys.new_empty(len(prefix_indices), 0, *keys.shape[1:])
        self._kv_cache: KVCache = [(empty, empty)] * len(prefixes.kv_cache)

    def select(self, indices: Sequence[int]) -> "Continuations":
        """Return copies of some continuations, in ascending order; an index may come several times."""
        selected = Continuations(self._model, self._prefixes, [self._prefix_indices[index] for index in indices])
        selected._lengths = [self._lengths[index] for index in indices]
        rows = torch.tensor(indices, device=self._prefixes.sequences.device)
        selected._kv_cache = [(keys[rows], values[rows]) for keys, values in self._kv_cache]
        return selected

    def extend(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """
        Append tokens, one or more, to each continuation.

        returns: (continuations, most tokens, width), the input of the output head; undefined past a row's last token.
        """
        prefixes, most = self._prefixes, max(map(len, ids))
        device = prefixes.sequences.device
        padded = torch.tensor([[*row, *[row[-1]] * (most - len(row))] for row in ids], device=device)
        lengths = prefixes.sequences.lengths
        slots = torch.tensor(self._lengths, device=device)[:, None] + torch.arange(most, device=device)
        positions = torch.tensor([lengths[index] for index in self._prefix_indices], device=device)[:, None] + slots
        self._reserve(max(self._lengths) + most)
        mask = torch.arange(self._kv_cache[0][0].shape[1], device=device) <= slots[:, :, None]
        rows = torch.arange(len(ids), device=device)[:, None]
        counts = Counter(self._prefix_indices)
        queries_by_prefix = PackedSequences([counts[index] * most for index in range(len(lengths))], device)
        hidden = self._model.embed(padded.flatten())
        rotary = self._model.rotary_at(positions.flatten(), hidden.dtype)
        for layer, prefix, (own_keys, own_values) in zip(
            self._model.layers, prefixes.kv_cache, self._kv_cache, strict=True
        ):
            scale = layer.self_attn.scaling
            queries, keys, values = project_qkv(layer, hidden, rotary)
            own_keys[rows, slots] = keys.unflatten(0, (-1, most))
            own_values[rows, slots] = values.unflatten(0, (-1, most))
            to_prefix = attend_with_lse(queries, *prefix, queries_by_prefix, prefixes.sequences, scale)
            to_own, own_lse = attend_padded(queries.unflatten(0, (-1, most)), own_keys, own_values, scale, mask)
            attended = merge_attention(to_prefix, (to_own.flatten(0, 1), own_lse.flatten(0, 1)))
            hidden = finish_layer(layer, hidden, attended)
        self._lengths = [length + len(row) for length, row in zip(self._lengths, ids, strict=True)]
        return self._model.final_norm(hidden).unflatten(0, (-1, most))  # type: ignore[no-any-return]

    def _reserve(self, tokens: int) -> None:
        """Make room for so many tokens of each continuation."""
        missing = tokens - self._kv_cache[0][0].shape[1]
        if missing > 0:
            padding = (0, 0, 0, 0, 0, missing + KV_GROWTH_TOKENS)  # behind the tokens
            self._kv_cache = [(pad(keys, padding), pad(values, padding)) for keys, values in self._kv_cache]
