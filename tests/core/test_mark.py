"""The noise of a mark: from a key of 128 bits, standard normal, and the same numbers for all time."""

import math

import numpy as np
import pytest
import torch

from flowcore import FlowError
from flowcore.flows.mark import NUMBERS_AT_ONCE, mark_key, mark_noise, normal_numbers, raw_numbers

KEY = mark_key("The quiet harbor, 1962")


@pytest.mark.slow
def test_no_two_of_many_phrases_have_the_same_noise():
    phrases = (f"our studio secret phrase {number}" for number in range(2**17))  # of 32 bits, two would agree
    first = np.stack([raw_numbers(mark_key(phrase)).random_raw(2) for phrase in phrases])
    assert len(np.unique(first, axis=0)) == 2**17
    assert len(np.unique(first[:, 0])) == 2**17  # by chance one in 2 billion
    assert len(np.unique(normal_numbers(first.flatten()).astype(np.float32).reshape(-1, 2), axis=0)) == 2**17


def test_every_bit_of_a_key_changes_the_first_number():
    keys = [KEY, *((int.from_bytes(KEY, "big") ^ 1 << bit).to_bytes(len(KEY), "big") for bit in range(128))]
    assert len({mark_noise(key, [(1, 1, 1)])[0].item() for key in keys}) == 129


def test_the_first_numbers_of_a_phrase_stay():
    assert KEY.hex() == "77a6b8212489dd623f77d8117420be8e"
    assert raw_numbers(KEY).random_raw(2).tolist() == [16231347075476248970, 17053557186117346712]
    noise, deeper = mark_noise(KEY, [(1, 1, 3), (1, 1, 2)])
    assert noise.flatten().tolist() == [0.4499583840370178, -0.23113733530044556, 0.06842855364084244]
    assert deeper.flatten().tolist() == [0.26029708981513977, 0.04838985204696655]


def test_numbers_are_those_of_box_and_muller():
    raw = np.concatenate([raw_numbers(KEY).random_raw(10_000), np.array([0, 0, 2**64 - 1, 2**64 - 1], np.uint64)])
    u, v = (raw[::2] // 2**11 + 1) / 2**53, raw[1::2] // 2**11 / 2**53
    radius = np.sqrt(-2 * np.log(u))
    expected = np.stack([radius * np.cos(2 * math.pi * v), radius * np.sin(2 * math.pi * v)], 1).flatten()
    np.testing.assert_allclose(normal_numbers(raw), expected, rtol=0, atol=1e-14)


def test_the_noise_is_standard_normal():
    values = mark_noise(KEY, [(3, 1024, 512)])[0].double().flatten()
    n = len(values)
    assert abs(float(values.mean())) < 5 / math.sqrt(n)
    assert abs(float(values.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(values.pow(3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float(values.pow(4).mean()) - 3) < 5 * math.sqrt(96 / n)
    assert abs(float((values[::2] * values[1::2]).mean())) < 5 / math.sqrt(n / 2)  # of both of a pair
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((torch.special.ndtr(values.sort().values) - steps).abs().max()) < 2.7 / math.sqrt(n)


def test_a_large_level_is_drawn_in_pieces_without_a_seam():
    (noise,) = mark_noise(KEY, [(1, 3, NUMBERS_AT_ONCE // 2 + 1)])  # an odd count
    whole = normal_numbers(raw_numbers(KEY).random_raw(noise.numel() + 1))[:-1]
    assert np.array_equal(noise.flatten().numpy(), whole.astype(np.float32))


def test_drawing_is_canceled_by_its_check():
    with pytest.raises(KeyboardInterrupt):
        mark_noise(KEY, [(1, 8, 8)], lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_case_and_spaces_of_a_phrase_do_not_count_and_an_empty_one_is_refused():
    assert mark_key(" the QUIET\tharbor, \uff11962 ") == KEY
    assert mark_key("the quiet harbor 1962") != KEY
    with pytest.raises(FlowError, match="needs a phrase"):
        mark_key(" \n")
