"""Random numbers by place instead of by turn: number j of stream i is the same whatever else is drawn.

So a draw for some thousand anchors can be cut into slices, or asked again for a few of them, and nothing changes.
"""

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15  # the odd number nearest to 2⁶⁴ over the golden ratio
BITS = 53  # of a float64


def uniform(seed: int, streams: Tensor, places: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), one for each stream and place.

    Args:
        seed: any integer; another seed has other streams.
        streams: [n] numbers of the streams.
        places: [K] or [n, K], which numbers of each stream, from 0.

    Returns:
        [n, K] in float64.
    """
    origin = torch.full_like(streams, _signed(seed))
    state = splitmix64(splitmix64(origin, torch.zeros_like(streams)), streams)
    bits = _right(splitmix64(state[:, None], places), 64 - BITS)
    return (bits.double() + 0.5) / 2**BITS


def splitmix64(state: Tensor, place: Tensor) -> Tensor:
    """Output number `place`, from 0, of the generator splitmix64 (Steele, Lea and Flood 2014) started at `state`.

    Both are int64 and broadcast; so is the result: 64 bits, the first of them taken for a sign.
    """
    mixed = state + (place + 1) * _signed(GAMMA)
    mixed = (mixed ^ _right(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _right(mixed, 27)) * _signed(0x94D049BB133111EB)
    return mixed ^ _right(mixed, 31)


def _right(bits: Tensor, places: int) -> Tensor:
    """Shift to the right and fill with zeros; `>>` would repeat the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63
