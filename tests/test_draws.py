import math

import numpy as np
import pytest
import torch

from gate_lessons.miner.draws import splitmix64, uniform


def test_splitmix64_gives_the_published_sequence():
    """The first numbers of the reference implementation (Vigna, xoshiro's seeding) for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = splitmix64(torch.tensor([1234567]), torch.arange(4))
    assert [number % 2**64 for number in found.tolist()] == published


def _obvious(seed: int, stream: int, place: int) -> float:
    """The same with Python's whole numbers."""

    def mix(state: int, place: int) -> int:
        z = (state + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    return ((mix(mix(mix(seed % 2**64, 0), stream), place) >> 11) + 0.5) / 2**53


@pytest.mark.parametrize("seed", [0, 1, 2**62, -5])
def test_numbers_hang_on_seed_stream_and_place_only(seed):
    streams, places = torch.tensor([0, 3, 10**9]), torch.tensor([0, 1, 7, 10**6])
    whole = uniform(seed, streams, places)
    assert whole.tolist() == [[_obvious(seed, s, p) for p in places.tolist()] for s in streams.tolist()]
    assert torch.equal(uniform(seed, streams[[2, 0]], places[[3, 1]]), whole[[2, 0]][:, [3, 1]])
    own = torch.stack([places, places.flip(0), places])
    assert torch.equal(uniform(seed, streams, own)[1], whole[1].flip(0))


@pytest.mark.parametrize("way", ["places", "streams", "seeds"])
def test_numbers_are_uniform_and_independent(way):
    """χ² of pairs of neighbours in a grid of 20 by 20; 400 cells, within four standard deviations."""
    count = 40_000
    if way == "places":
        found = uniform(5, torch.tensor([8]), torch.arange(count))[0]
    elif way == "streams":
        found = uniform(5, torch.arange(count), torch.tensor([8]))[:, 0]
    else:
        found = torch.cat([uniform(seed, torch.arange(400), torch.tensor([8]))[:, 0] for seed in range(count // 400)])
    cells = np.histogram2d(found[:-1].numpy(), found[1:].numpy(), bins=20, range=[[0, 1], [0, 1]])[0]
    expected = (count - 1) / 400
    statistic = ((cells - expected) ** 2 / expected).sum()
    assert found.min() > 0 and found.max() < 1
    assert abs(statistic - 399) < 4 * math.sqrt(2 * 399)
