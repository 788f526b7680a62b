"""After a fit Lightning moves the method to the CPU, the backbone stays on the GPU: a concept mixes the two nowhere."""

import pytest
import torch

from escdiff.methods.adi import ADI
from escdiff.methods.break_a_scene import BreakAScene
from escdiff.methods.custom_diffusion import CustomDiffusion
from escdiff.methods.dreambooth import DreamBooth
from escdiff.methods.e4t import E4T
from escdiff.methods.elite import ELITE
from escdiff.methods.fastcomposer import FastComposer
from escdiff.methods.instantbooth import InstantBooth
from escdiff.methods.ip_adapter import IPAdapter
from escdiff.methods.matte import MATTE
from escdiff.methods.neti import NeTI
from escdiff.methods.portraitbooth import PortraitBooth
from escdiff.methods.prospect import ProSpect
from escdiff.methods.reversion import ReVersion
from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI

PLAIN = (TI, XTI, ProSpect, ReVersion, ADI, NeTI, MATTE, BreakAScene, CustomDiffusion, DreamBooth)
READERS = (E4T, ELITE, FastComposer, InstantBooth)  # of a tower's patches


class OnGPU(torch.Tensor):
    """Stands in for a tensor on a GPU: computes with its like alone, until it is moved."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return args[0].as_subclass(torch.Tensor)
        given = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, torch.Tensor)]
        if not all(isinstance(x, cls) for x in given):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("kind", [*PLAIN, *READERS, IPAdapter, PortraitBooth], ids=lambda kind: kind.__name__)
def test_a_concept_is_made_beside_a_backbone_on_another_device(backbone, towers, monkeypatch, kind):
    settings = {"vision": str(towers[0])} if kind in READERS else {}
    method = kind(backbone, **settings) if kind is not IPAdapter else kind(backbone, str(towers[1]))
    expected, prompts = method.concept(), backbone.prompts
    weight = prompts.embedding_weight.detach().as_subclass(OnGPU)
    monkeypatch.setattr(type(prompts), "embedding_weight", property(lambda self: weight))
    found = method.concept()
    assert found.notes == expected.notes
    assert all(torch.equal(found.vectors[name], value) for name, value in expected.vectors.items())
