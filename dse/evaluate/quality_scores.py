"""From logits to the three quality numbers, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20  # float32 copies of this many logits stay in a core's cache through all passes


@dataclass(frozen=True)
class ReferenceScores:
    """The full-precision model's view of one batch of n tokens over a vocabulary of V.

    Attributes:
        probabilities: (n, V) p, in the model's dtype, which bounds the memory.
        self_term: (n,) float64 sum_v p_v log p_v with the stored p and the exact log p.
        top1: (n,) its most probable token.
        nll: (n_sequences, length - 1) float64, -log p of each next token, in nats.
    """

    probabilities: Tensor
    self_term: Tensor
    top1: Tensor
    nll: Tensor


@dataclass(frozen=True)
class TokenScores:
    """A quantized model against the reference: kl (n,) nats, agrees (n,) bool, nll as above."""

    kl: Tensor
    agrees: Tensor
    nll: Tensor


def reference_scores(logits: Tensor, ids: Tensor, dtype: torch.dtype) -> ReferenceScores:
    """Return what later comparisons need.

    Args:
        logits: (n_sequences, length, V); ids: (n_sequences, length).
        dtype: to store the probabilities in.
    """
    probabilities = torch.empty(logits.flatten(0, 1).shape, dtype=dtype, device=logits.device)
    self_term, top1, log_next = [], [], []
    next_ids = _next_ids(ids)
    for part, log_p, work in _log_softmax(logits):
        probabilities[part] = torch.exp(log_p, out=work)
        self_term.append(_expectation(probabilities[part], log_p, work))
        top1.append(log_p.argmax(-1))
        log_next.append(log_p.gather(-1, next_ids[part, None])[:, 0])
    return ReferenceScores(
        probabilities, torch.cat(self_term), torch.cat(top1), _nll(torch.cat(log_next), ids)
    )


def compare(logits: Tensor, ids: Tensor, reference: ReferenceScores) -> TokenScores:
    """Return KL(reference || model), agreement of the most probable token, and next-token losses.

    KL = sum_v p_v (log p_v - log q_v). The stored p may be rounded to bfloat16; both terms use the same
    rounded p, so the rounding cancels to first order and equal logits give exactly 0.

    Args:
        logits: (n_sequences, length, V) of the quantized model; ids: (n_sequences, length).
        reference: of the same ids.
    """
    cross_term, agrees, log_next = [], [], []
    next_ids = _next_ids(ids)
    for part, log_q, work in _log_softmax(logits):
        cross_term.append(_expectation(reference.probabilities[part], log_q, work))
        agrees.append(log_q.argmax(-1) == reference.top1[part])
        log_next.append(log_q.gather(-1, next_ids[part, None])[:, 0])
    kl = reference.self_term - torch.cat(cross_term)
    return TokenScores(kl, torch.cat(agrees), _nll(torch.cat(log_next), ids))


def kl_of_changes(probabilities: Tensor, changes: Tensor) -> Tensor:
    """Return KL(p || q) (n,) float64 in nats, where q is p with its logits changed.

    KL = log sum_v p_v exp(d_v - m) with m = sum_v p_v d_v, for q_v ~ p_v exp(d_v). No logarithms of p and q
    are subtracted, so that small divergences keep their digits.

    Args:
        probabilities: p (n, V) float32; changes: d (n, V), of any size and up to a constant for each row.
    """
    n_rows = max(1, CHUNK_ELEMENTS // changes.shape[1])
    found = []
    for p, part in zip(probabilities.split(n_rows), changes.split(n_rows), strict=True):
        d = part.float()
        d -= torch.linalg.vecdot(p, d)[:, None]
        kl = torch.log1p(torch.linalg.vecdot(p, d.expm1()).double())
        for row in (~kl.isfinite()).nonzero()[:, 0].tolist():  # exp left the range of float32
            kl[row] = torch.logsumexp(p[row].double().log() + d[row].double(), -1)
        found.append(kl)
    return torch.cat(found)


def _log_softmax(logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (rows, their float32 log-softmax (rows, V), scratch of that shape) over all positions.

    Both tensors are overwritten by the next step.
    """
    rows = logits.flatten(0, 1)
    n_rows = max(1, CHUNK_ELEMENTS // rows.shape[1])
    work = torch.empty((n_rows, rows.shape[1]), dtype=torch.float32, device=rows.device)
    out = torch.empty_like(work)
    for start in range(0, len(rows), n_rows):
        part = slice(start, min(start + n_rows, len(rows)))
        n = part.stop - start
        work[:n] = rows[part]
        yield part, torch.log_softmax(work[:n], -1, out=out[:n]), work[:n]


def _expectation(probabilities: Tensor, values: Tensor, work: Tensor) -> Tensor:
    """Return sum over the last axis of p * values: products in float32, result float64."""
    return work.copy_(probabilities).mul_(values).sum(-1).double()


def _next_ids(ids: Tensor) -> Tensor:
    """Return the token after each position (n,), flattened; the last of a sequence gets a stand-in."""
    return ids.roll(-1, dims=1).flatten().long()


def _nll(log_next: Tensor, ids: Tensor) -> Tensor:
    """Drop the last position of each sequence, which has no next token."""
    return -log_next.double().view(ids.shape)[:, :-1]
