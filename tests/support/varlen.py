"""What torch's documentation says of `varlen_attn`, in plain steps: in place of a GPU's kernel."""

import math

import torch
from torch.nn.attention.varlen import AuxRequest


def varlen_attn(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    enable_gqa: bool,
    window_size: tuple[int, int] = (-1, -1),
    return_aux: AuxRequest | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Check the arguments, and attend sequence by sequence."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (cu_seqlens_q[0], cu_seqlens_q[-1], cu_seqlens_k[0], cu_seqlens_k[-1]) == (0, len(queries), 0, len(keys))
    assert (int(cu_seqlens_q.diff().max()), int(cu_seqlens_k.diff().max())) == (max_q, max_k)
    assert keys.shape == values.shape
    assert enable_gqa
    assert window_size in ((-1, -1), (-1, 0))
    groups = queries.shape[1] // keys.shape[1]
    attended, lse = torch.empty_like(queries), torch.empty(queries.shape[1], len(queries))
    for row in range(len(cu_seqlens_q) - 1):
        of_row = slice(int(cu_seqlens_q[row]), int(cu_seqlens_q[row + 1]))
        k, v = (part[cu_seqlens_k[row] : cu_seqlens_k[row + 1]].repeat_interleave(groups, 1) for part in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", queries[of_row], k) * scale
        if window_size == (-1, 0):
            scores += torch.full_like(scores[0], -math.inf).triu(1)
        lse[:, of_row] = scores.logsumexp(-1)
        attended[of_row] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return (attended, lse) if return_aux else attended
