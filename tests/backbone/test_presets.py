"""Backbones by their names in `configs/backbone`."""

import pytest
import torch

from escdiff.backbone.presets import load_preset, preset
from escdiff.support.errors import UserError


def test_a_preset_says_name_precision_and_guidance():
    assert preset("sd15")["guidance"] == 7.5 and preset("sd15")["dtype"] == "bfloat16"
    assert preset("mini")["guidance"] == 3.0
    assert preset("a/b") == preset("nothing") == {}


def test_auto_is_float32_on_a_cpu_and_what_is_given_wins(tiny_folder):
    backbone, guidance = load_preset(str(tiny_folder), "cpu")
    assert (backbone.dtype, guidance) == (torch.float32, 7.5)
    backbone, guidance = load_preset(str(tiny_folder), "cpu", "bfloat16", 2.0)
    assert (backbone.dtype, guidance) == (torch.bfloat16, 2.0)
    with pytest.raises(UserError, match="expected one of"):
        load_preset(str(tiny_folder), "cpu", "float8")
    with pytest.raises(UserError, match="device=abacus"):
        load_preset(str(tiny_folder), "abacus")
