"""The shipped finder of faces agrees with the published program."""

import pytest
import torch

from flowcore.tasks.finders.faces import network

from .published import recording

RECORDED = recording("blazeface")  # every seventh place, by LiteRT


@pytest.mark.parametrize("name", ["portrait", "noise"])
def test_logits_and_numbers_are_those_recorded(name):
    picture = RECORDED[f"{name}.image"].permute(2, 0, 1)[None].float() / 255
    logits, numbers = network()(picture)
    torch.testing.assert_close(logits[0, ::7], RECORDED[f"{name}.logits"].flatten(), atol=2e-4, rtol=0)
    torch.testing.assert_close(numbers[0, ::7], RECORDED[f"{name}.regressors"], atol=2e-4, rtol=0)
