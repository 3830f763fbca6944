"""The soak's rule: a leak is seen in the second half, a spike or the warming up are none; and a short soak runs."""

from __future__ import annotations

import random

import pytest

from tests.chaos.load import Load
from tests.chaos.soak import BOUNDS, LOAD, growth

TIMES = [15.0 * number for number in range(240)]
RSS = "gateway RSS, MiB"


def noise(seed: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.uniform(-1, 1) for _ in TIMES]


def test_noise_is_flat() -> None:
    assert growth(RSS, TIMES, [90 + each for each in noise(1)]).flat


def test_warming_up_in_the_first_half_is_flat() -> None:
    values = [60 + 30 * min(1.0, at / 1_200) + each for at, each in zip(TIMES, noise(2), strict=True)]

    assert growth(RSS, TIMES, values).flat


def test_single_spikes_are_flat() -> None:
    values = [90 + each + (200 if index % 50 == 49 else 0) for index, each in enumerate(noise(3))]

    assert growth(RSS, TIMES, values).flat


@pytest.mark.parametrize("name", BOUNDS)
def test_a_slow_leak_is_seen(name: str) -> None:
    number, share = BOUNDS[name]
    start = 50.0
    # Twice the bound in half of the time.
    leak = 4 * max(number, share * start * 2) / TIMES[-1]

    assert not growth(name, TIMES, [start + leak * at for at in TIMES]).flat


def test_the_load_of_a_soak_is_on_every_transport_and_trims() -> None:
    assert LOAD.sets == Load().sets
    assert set(LOAD.lossy) == set(LOAD.streams)
