"""Plug-and-Play: a new prompt in the layout of a source picture.

Tumanyan, Geyer, Bagon, Dekel 2023, "Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation". The
source rides along; in the U-Net's upward half its self-attention (queries and keys) and one block's features stand in
for those of the picture that is painted.
Theirs: self-attention of the decoder's layers 4 to 11 for the first half of the steps, the features of layer 4 for the
first 80 %, guidance 7.5 to 10, a real picture inverted in 999 steps with an empty prompt.
Ours: the layers by how much smaller than the latents they are, so that they are the same on any model; the inversion
has the caption and as many steps as the painting, and its latents are read at every step, as in the second published
code.
Not here: the negative prompt of the source, mixed in with a falling weight.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from escdiff.conditioning.attention import default_factor
from escdiff.control.base import Run, Step
from escdiff.control.inversion import Trajectory
from escdiff.control.rider import Rider
from escdiff.support.errors import UserError


class PlugAndPlay(Rider):
    """Paints a prompt in the layout of a source.

    Args:
        attention: share of the steps, from the first, with the source's self-attention.
        features: share of the steps with the source's features.
        factor: how many times smaller than the latents the features are; self-attention is taken from there to the
            latents' own size. None: as on Stable Diffusion, where it is 4.

    Raises:
        UserError: a share outside of [0, 1]; when called, a pipeline that the source does not go with.
    """

    def __init__(
        self, source: Trajectory, attention: float = 0.5, features: float = 0.8, factor: int | None = None
    ) -> None:
        super().__init__(source)
        for name, share in (("attention", attention), ("features", features)):
            if not 0 <= share <= 1:
                raise UserError(f"{name}={share} was given; expected a share of the steps in [0, 1]")
        self.attention, self.features, self.factor = attention, features, factor

    @contextmanager
    def attach(self, run: Run) -> Iterator[None]:
        if not self.attention and not self.features:  # the stock pipeline, from the source's noise
            self.check(run)
            yield
            return
        memory = run.memory[self] = {"attention": False, "features": False}

        def replaced(kind: str, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if not memory[kind]:
                return output
            shared = output.clone()  # of the same memory format, on which the last bits of what follows depend
            shared[:-1] = output[-1:]
            return shared

        attention, features = injected_layers(run.unet, self.factor)
        with super().attach(run), ExitStack() as stack:
            for kind, modules in (("attention", attention), ("features", features)):
                for module in modules:
                    hook = module.register_forward_hook(lambda *a, kind=kind: replaced(kind, *a))
                    stack.callback(hook.remove)
            yield

    def before(self, step: Step, latents: Tensor) -> Tensor:
        memory = step.run.memory.get(self, {})
        for kind in memory:
            memory[kind] = step.index < round(getattr(self, kind) * step.total)
        return super().before(step, latents)


def injected_layers(unet: nn.Module, factor: int | None = None) -> tuple[list[nn.Module], list[nn.Module]]:
    """`to_q` and `to_k` of self-attention, and the convolutions whose output is the features, in the upward half.

    Raises:
        UserError: the upward half has no attention at this factor.
    """
    factor = default_factor(unet) if factor is None else factor
    depth = len(unet.up_blocks)
    levels = {2 ** (depth - 1 - i): block for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")}
    if factor not in levels:
        available = ", ".join(str(level) for level in sorted(levels))
        raise UserError(f"factor={factor} was given; this U-Net's upward half has attention at factors {available}")
    attention = []
    for level, block in levels.items():
        if level <= factor:  # of the coarsest block, the layers behind the features
            transformers = block.attentions[1:] if level == factor else block.attentions
            layers = [inner.attn1 for transformer in transformers for inner in transformer.transformer_blocks]
            attention += [part for layer in layers for part in (layer.to_q, layer.to_k)]
    return attention, [levels[factor].resnets[1].conv2]
