"""
The forward pass of what branches off rows that are there already: several questions about each photo, whose own tokens
are computed once.

A branch attends to its row, in one go with all other branches of that row, and to its own tokens; the two are joined by
their log-sum-exps, as in FlashInfer's cascade attention (arXiv 2501.01005).
"""

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from worker.inference.forward import KVCache, LanguageModel, PackedSequences, attention_inputs, is_flash, layer_output

QUERIES = 64
"""That attend to a row at a time where rows are not told by their ends."""
STEP = 32
"""By so many tokens the room of the branches grows."""


class PrefixCache:
    """Keys and values of the tokens that branches have in common, packed."""

    def __init__(self, kept: KVCache, packing: PackedSequences, rows: Sequence[int], without: int) -> None:
        """
        Of some of the rows of a pass, all but their last tokens, `without` of them. Takes what was kept apart layer by
        layer, so that no more than one layer is there twice.
        """
        ends = [0]
        for length in packing.lengths:
            ends.append(ends[-1] + length)
        parts = [torch.arange(ends[row], ends[row + 1] - without, device=packing.device) for row in rows]
        index = torch.cat(parts)
        self.packing = PackedSequences([len(part) for part in parts], packing.device)
        self.kept: KVCache = []
        while kept:
            keys, values = kept.pop(0)
            self.kept.append((keys[index], values[index]))


class Continuations:
    """
    Tokens that go on from rows, beside each other, filled up to the right: none at first.

    of_row: of each branch, the row it goes on from; in ascending order.
    """

    def __init__(self, text: LanguageModel, rows: PrefixCache, of_row: Sequence[int]) -> None:
        self._text = text
        self._rows = rows
        self._of_row = list(of_row)
        self._lengths = [0] * len(of_row)
        self._own: KVCache = [
            (keys.new_empty(len(of_row), 0, *keys.shape[1:]), values.new_empty(len(of_row), 0, *values.shape[1:]))
            for keys, values in rows.kept
        ]

    def pick(self, places: Sequence[int]) -> "Continuations":
        """Some of the branches, each as often as it is named, to go on apart; places in ascending order."""
        picked = Continuations(self._text, self._rows, [self._of_row[place] for place in places])
        picked._lengths = [self._lengths[place] for place in places]
        index = torch.tensor(places, device=self._rows.packing.device)
        picked._own = [(keys[index], values[index]) for keys, values in self._own]
        return picked

    def extend(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """
        Let each branch go on with tokens of its own, one or more.

        returns: (branches, most tokens, width), what the head sees of each; what is behind a branch's last is void.
        """
        most, device = max(map(len, ids)), self._rows.packing.device
        filled = torch.tensor([[*each, *[each[-1]] * (most - len(each))] for each in ids], device=device)
        starts = [self._rows.packing.lengths[row] for row in self._of_row]
        place = torch.tensor(self._lengths, device=device)[:, None] + torch.arange(most, device=device)
        positions = torch.tensor(starts, device=device)[:, None] + place
        room = self._make_room(max(self._lengths) + most)
        seen = torch.arange(room, device=device) <= place[:, :, None]
        branch = torch.arange(len(ids), device=device)[:, None]
        packing = self._queries(most)
        hidden = self._text.embed(filled.flatten())
        turns = self._text.turns(positions.flatten(), hidden.dtype)
        for layer, of_rows, (own_keys, own_values) in zip(self._text.layers, self._rows.kept, self._own, strict=True):
            queries, keys, values = attention_inputs(layer, hidden, turns)
            own_keys[branch, place] = keys.unflatten(0, (-1, most))
            own_values[branch, place] = values.unflatten(0, (-1, most))
            scale = layer.self_attn.scaling
            to_rows = _attend_to_rows(queries, *of_rows, packing, self._rows.packing, scale)
            attended, sums = _attend(queries.unflatten(0, (-1, most)), own_keys, own_values, scale, seen)
            hidden = layer_output(layer, hidden, _merge(to_rows, (attended.flatten(0, 1), sums.flatten(0, 1))))
        self._lengths = [length + len(each) for length, each in zip(self._lengths, ids, strict=True)]
        return self._text.normed(hidden).unflatten(0, (-1, most))  # type: ignore[no-any-return]

    def _make_room(self, tokens: int) -> int:
        """For so many of each branch; for how many there is."""
        room = self._own[0][0].shape[1]
        if tokens > room:
            more = tokens - room + STEP
            self._own = [(_longer(keys, more), _longer(values, more)) for keys, values in self._own]
        return self._own[0][0].shape[1]

    def _queries(self, of_each: int) -> PackedSequences:
        """How many queries each row gets, from all of its branches."""
        branches = Counter(self._of_row)
        rows = range(len(self._rows.packing.lengths))
        return PackedSequences([branches[row] * of_each for row in rows], self._rows.packing.device)


Attended = tuple[Tensor, Tensor]
"""What attention gives, (..., queries, heads, width of a head), and the log-sum-exp of its scores, without the last."""


def _attend_to_rows(
    queries: Tensor, keys: Tensor, values: Tensor, of_queries: PackedSequences, of_rows: PackedSequences, scale: float
) -> Attended:
    """(queries, heads, width of a head), each of which sees all of its row."""
    if is_flash(queries):
        attended, sums = varlen_attn(
            queries, keys, values, of_queries.ends, of_rows.ends, max(of_queries.lengths), max(of_rows.lengths),
            scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        # documented as (queries, heads), but the kernel gives (heads, queries)
        return cast(Tensor, attended), sums.T if sums.shape[0] == queries.shape[1] else sums
    parts = []
    split = zip(*(part.split(of_rows.lengths) for part in (keys, values)), strict=True)
    for some, (k, v) in zip(queries.split(of_queries.lengths), split, strict=True):
        parts += [_attend(q[None], k[None], v[None], scale) for q in some.split(QUERIES) if len(q)]
    return torch.cat([part[0] for part, _ in parts]), torch.cat([sums[0] for _, sums in parts])


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float, seen: Tensor | None = None) -> Attended:
    """
    (n, queries, heads, width of a head), keys and values with fewer heads; the sums in float32.

    seen: (n, queries, keys), which keys a query sees; all of them if None.
    """
    heads = keys.shape[2]
    grouped = queries.unflatten(2, (heads, -1))
    scores = torch.einsum("nqhgd,nkhd->nhgqk", grouped, keys).float() * scale
    if seen is not None:
        scores.masked_fill_(~seen[:, None, None], float("-inf"))
    sums = scores.logsumexp(-1)
    weights = torch.exp(scores - sums[..., None]).to(values.dtype)
    attended = torch.einsum("nhgqk,nkhd->nqhgd", weights, values)
    return attended.flatten(2, 3), sums.permute(0, 3, 1, 2).flatten(2, 3)


def _merge(first: Attended, second: Attended) -> Tensor:
    """What attention to the keys of both gives."""
    share = torch.sigmoid(first[1] - second[1])[..., None]
    return (first[0] * share + second[0] * (1 - share)).to(first[0].dtype)


def _longer(tensor: Tensor, more: int) -> Tensor:
    return torch.cat((tensor, tensor.new_zeros(len(tensor), more, *tensor.shape[2:])), dim=1)
