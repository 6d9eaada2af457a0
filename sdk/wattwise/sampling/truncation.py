"""Which tokens stay in the draw: top-k, typical, top-p, min-p, each as llama.cpp defines it.

Candidates are (ids, logits) with the logits float32; "sorted" means likeliest first, equal ones by id. Nothing
here sorts a whole vocabulary unless the setting makes it necessary: the likeliest n are found through the maxima
of n or more groups of tokens, whose n-th largest no token among the likeliest n can lie below.
"""

from __future__ import annotations

import math

import numpy as np

Candidates = tuple[np.ndarray, np.ndarray]
_GROUP = 64
_FIRST_TRY = 256
_FEW = 1024


def sorted_candidates(ids: np.ndarray, logits: np.ndarray) -> Candidates:
    """Likeliest first. The ids come in increasing order."""
    if len(ids) <= _FEW:
        order = np.argsort(-logits, kind="stable")
        return ids[order], logits[order]
    # One integer per candidate that sorts by falling logit, then by place: plain integers sort much faster.
    bits = (logits + np.float32(0)).view(np.uint32)  # the sum turns -0.0 into 0.0
    falling = np.where(bits >> 31, bits, ~bits ^ np.uint32(0x80000000))
    keys = np.sort((falling.astype(np.uint64) << np.uint64(32)) | np.arange(len(ids), dtype=np.uint64))
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return ids[order], logits[order]


def top_k(logits: np.ndarray, k: int) -> Candidates:
    """The k likeliest of the whole vocabulary, sorted."""
    groups = len(logits) // _GROUP
    if k >= len(logits):
        ids = np.arange(len(logits))
    elif groups < k:
        ids = np.flatnonzero(logits >= np.partition(logits, len(logits) - k)[len(logits) - k])
    else:
        peaks = logits[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        ids = np.flatnonzero(logits >= np.partition(peaks, groups - k)[groups - k])
    ids, kept = sorted_candidates(ids, logits[ids])
    return ids[:k], kept[:k]


def probabilities(logits: np.ndarray, peak: np.float32) -> np.ndarray:
    """Softmax, float64."""
    weights = np.exp(logits - peak, dtype=np.float32).astype(np.float64)
    return weights / weights.sum()


def top_p_count(logits: np.ndarray, p: float, total: float, peak: np.float32) -> int:
    """How many of these sorted candidates reach the probability p; all of them if they do not.

    total: sum of exp(logit - peak) over everything that competes, which may be more than these.
    """
    reached = np.cumsum(np.exp(logits - peak), dtype=np.float64)
    return min(int(np.searchsorted(reached, np.float32(p) * total, side="left")) + 1, len(logits))


def min_p_floor(peak: np.float32, p: float) -> np.float32:
    """The least logit that min-p keeps."""
    return np.float32(peak + np.log(np.float32(p)))


def nucleus(logits: np.ndarray, p: float, min_p: float) -> Candidates:
    """top-p, then min-p, over the whole vocabulary, without sorting more of it than needed."""
    peak = logits.max()
    total = float(np.exp(logits - peak).sum(dtype=np.float64))
    if min_p > 0:
        ids = np.flatnonzero(logits >= min_p_floor(peak, min_p))
        ids, kept = sorted_candidates(ids, logits[ids])
        count = top_p_count(kept, p, total, peak)
        return ids[:count], kept[:count]
    wanted = _FIRST_TRY
    while True:
        ids, kept = top_k(logits, wanted)
        count = top_p_count(kept, p, total, peak)
        if count < len(kept) or len(kept) == len(logits):
            return ids[:count], kept[:count]
        wanted *= 16


def top_p_then_min_p(candidates: Candidates, p: float, min_p: float, *, is_sorted: bool) -> Candidates:
    """top-p, then min-p, over some candidates."""
    ids, logits = candidates if is_sorted else sorted_candidates(*candidates)
    peak = logits[0]
    if p < 1:
        count = top_p_count(logits, p, float(np.exp(logits - peak).sum(dtype=np.float64)), peak)
        ids, logits = ids[:count], logits[:count]
    if min_p > 0:
        count = max(int(np.count_nonzero(logits >= min_p_floor(peak, min_p))), 1)
        ids, logits = ids[:count], logits[:count]
    return ids, logits


def typical(candidates: Candidates, p: float) -> Candidates:
    """Those whose surprise is nearest to the entropy, until their probability is more than p."""
    ids, logits = candidates
    chances = probabilities(logits, logits.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(chances)
        entropy = float(np.nansum(chances * surprise))  # a forbidden token has no share in it
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    reached = np.cumsum(chances[order])
    count = min(int(np.searchsorted(reached, p, side="right")) + 1, len(order))
    return ids[order[:count]], logits[order[:count]]


def surprise_cut(logits: np.ndarray, limit_bits: float) -> Candidates:
    """Mirostat 2's cut: the tokens whose surprise is at most this many bits, at least the likeliest."""
    peak = logits.max()
    total_bits = math.log2(float(np.exp(logits - peak).sum(dtype=np.float64)))
    floor = float(peak) - max(limit_bits - total_bits, 0.0) * math.log(2)
    ids = np.flatnonzero(logits >= np.float32(floor))
    return ids, logits[ids]
