"""Negative mining: embeddings in, indices of negatives out. The caller turns indices into text.

FaceNet's words (Schroff et al. 2015), on cosine similarity, with a margin m:
*easy* s(a,n) < s(a,p) − m; *semi-hard* s(a,p) − m ≤ s(a,n) < s(a,p); *hard* s(a,n) ≥ s(a,p).

A strategy proposes a short list of candidates for each anchor (see `strategies`); one filter takes the false negatives
out; the most preferred of the rest are taken. Anchors for which the list may be too short get a longer one. So the
result is what a look at all candidates would give, and there is never a [Q, M] matrix.
"""

from gate_lessons.miner.hardness import difficulty, hardness, semi_hard_band, within_relative_margin
from gate_lessons.miner.in_batch import IN_BATCH, Triplets, mine_in_batch
from gate_lessons.miner.mining import FALLBACKS, Mined, check_parameters, mine
from gate_lessons.miner.mixture import parse
from gate_lessons.miner.strategies import STRATEGIES

__all__ = [
    "FALLBACKS",
    "IN_BATCH",
    "STRATEGIES",
    "Mined",
    "Triplets",
    "check_parameters",
    "difficulty",
    "hardness",
    "mine",
    "mine_in_batch",
    "parse",
    "semi_hard_band",
    "within_relative_margin",
]
