"""Losses as pure functions of embeddings: [B, d] in, a scalar out.

They own no model and no state, take raw (unnormalised) embeddings, and work through cosine similarity. Margins are
margins of cosine similarity: FaceNet's squared distance is 2 − 2·cos, so its margin of 0.2 is 0.1 here.
Where a loss takes `return_parts=True`, it also returns the similarities and per-row losses, detached, by name.
"""

from gate_lessons.losses.common import (
    EPS,
    Parts,
    Temperature,
    check_margin,
    check_temperature,
    cosine,
    cosine_matrix,
    matryoshka,
    unit,
)
from gate_lessons.losses.ranking import (
    DIRECTIONS,
    debiased_ranking,
    guide_mask,
    hardness_weighted_ranking,
    info_nce,
    multi_direction_ranking,
    multiple_negatives_ranking,
    symmetric_ranking,
)
from gate_lessons.losses.scored import angle, cosent, cosine_regression
from gate_lessons.losses.triplets import (
    adaptive_triplet,
    batch_all_triplet,
    batch_hard_triplet,
    batch_semi_hard_triplet,
    triplet,
)

__all__ = [
    "DIRECTIONS",
    "EPS",
    "Parts",
    "Temperature",
    "adaptive_triplet",
    "angle",
    "batch_all_triplet",
    "batch_hard_triplet",
    "batch_semi_hard_triplet",
    "check_margin",
    "check_temperature",
    "cosent",
    "cosine",
    "cosine_matrix",
    "cosine_regression",
    "debiased_ranking",
    "guide_mask",
    "hardness_weighted_ranking",
    "info_nce",
    "matryoshka",
    "multi_direction_ranking",
    "multiple_negatives_ranking",
    "symmetric_ranking",
    "triplet",
    "unit",
]
