"""Trainings that start from an export."""

import pytest
import tiny
import torch

from escdiff.support.errors import UserError
from escdiff.training.loop.initial import start_from


def test_a_part_is_taken_in_the_modules_own_type(tmp_path):
    torch.manual_seed(0)
    stored, module = tiny.make_unet(), tiny.make_unet()
    stored.half().save_pretrained(tmp_path / "unet")
    start_from(module, str(tmp_path), "unet")
    assert module.dtype == torch.float32
    torch.testing.assert_close(dict(module.state_dict()), dict(stored.float().state_dict()))


def test_what_cannot_be_taken_is_one_sentence(tmp_path):
    module = tiny.make_unet()
    with pytest.raises(UserError, match="init=.* given, with no unet in it; give the export"):
        start_from(module, str(tmp_path), "unet")
    tiny.make_unet(width=64).save_pretrained(tmp_path / "unet")
    with pytest.raises(
        UserError, match=r"whose UNet2DConditionModel is not this recipe's \(size mismatch .*sizes"
    ) as told:
        start_from(module, str(tmp_path), "unet")
    assert "\n" not in str(told.value)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="init=.* given, whose unet cannot be read .*copy it again"):
        start_from(module, str(tmp_path), "unet")
