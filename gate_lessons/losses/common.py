"""What every loss shares: cosine similarity, checks of its input, and the Matryoshka wrapper around any of them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Parts = dict[str, Tensor]
Temperature = float | Tensor  # a Tensor when it is learned, see `objectives.LearnableTemperature`
EPS = 1e-8  # a shorter vector counts as this long, so that the zero vector has cosine 0 with everything


def matryoshka(
    loss: Callable[..., Tensor], dims: Sequence[int], weights: Sequence[float] | None = None
) -> Callable[..., Tensor]:
    """Matryoshka representation learning (Kusupati et al. 2022): the same loss on every prefix of the embedding.

    Args:
        loss: any loss of this package, without a memory, whose rows would no longer have length 1.
        dims: prefix lengths, each at most d, for example (64, 32, 16).
        weights: one for each length; 1 each by default, as in sentence-transformers.

    Returns:
        A function with `loss`'s arguments, embeddings given by position: Σ weight · loss on the first `dim` numbers of
        every floating-point tensor among them that has two or more axes.
    """
    weights = [1.0] * len(dims) if weights is None else list(weights)
    if not dims or len(weights) != len(dims):
        raise ValueError(f"one weight for each of at least one dimension: {len(dims)} dims, {len(weights)} weights")

    def nested(*arguments: Tensor, **options) -> Tensor:
        width = arguments[0].shape[-1]
        if not all(1 <= dim <= width for dim in dims):
            raise ValueError(f"Matryoshka dimensions {list(dims)} must lie between 1 and the embedding's {width}")

        def prefix(argument, dim: int):
            is_embedding = isinstance(argument, Tensor) and argument.is_floating_point() and argument.dim() >= 2
            return argument[..., :dim] if is_embedding else argument

        return sum(
            weight * loss(*(prefix(a, dim) for a in arguments), **options)
            for dim, weight in zip(dims, weights, strict=True)
        )

    return nested


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise cosine similarity of [..., d] and [..., d]; 0 where either is the zero vector."""
    return F.cosine_similarity(a, b, dim=-1, eps=EPS)


def cosine_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity [A, B] of every row of a [A, d] with every row of b [B, d]."""
    return unit(a) @ unit(b).T


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; the zero vector stays zero."""
    return x / norm(x).unsqueeze(-1)


def norm(x: Tensor) -> Tensor:
    """Length of every row, at least `EPS`."""
    return torch.linalg.vector_norm(x, dim=-1).clamp_min(EPS)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for logits that are divided by a small temperature; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def result(loss: Tensor, return_parts: bool, **parts: Tensor) -> Tensor | tuple[Tensor, Parts]:
    """The mean of the rows' losses; with `return_parts` also the named parts and the losses, detached."""
    if not return_parts:
        return loss.mean()
    return loss.mean(), {name: part.detach() for name, part in (parts | {"loss": loss}).items()}


def check_pairs(**embeddings: Tensor) -> None:
    """Raise a ValueError unless all have one shape [B, d]."""
    shapes = {name: list(e.shape) for name, e in embeddings.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise ValueError("expected equal shapes [B, d], got " + ", ".join(f"{n} {s}" for n, s in shapes.items()))


def check_temperature(temperature: Temperature) -> None:
    """Raise a ValueError for a temperature that is not above 0."""
    # A learned temperature is positive by construction; looking at its value would make a GPU wait.
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature} (0.05 is a usual value)")


def check_margin(margin: float) -> None:
    """Raise a ValueError for a negative margin."""
    if not margin >= 0:
        raise ValueError(f"margin must be 0 or more, not {margin} (0.1 to 0.5 are usual in cosine similarity)")
