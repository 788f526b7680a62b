"""The seam: what the rest of the program asks of a family of models.

Legend: B batch, L layers, S stages, K positions, T tokens, D width of the text as the model takes it, W width of the
text as a layer reads it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from diffusers import SchedulerMixin
from torch import Tensor, nn

from escdiff.backbone.family.latents import Latents
from escdiff.backbone.family.noise import Noise
from escdiff.backbone.family.reading import Reading
from escdiff.backbone.family.residuals import Residuals, check_positions
from escdiff.conditioning import Binding, ConditioningSpace
from escdiff.support.errors import UserError


class Family(ABC):
    """A kind of diffusion model: its layers, how a prompt reaches them, what it predicts.

    Example:
        family = family_of(model)
        space = family.space(model)
        with family.attach(model, space):
            model(..., encoder_hidden_states=family.pack(model, space, text, residuals))

    Attributes:
        name: such as "sd3".
        models: classes of diffusers that belong to it, by name.
        pipelines: stock pipelines over them, by name.
        noise: makes the noise target from the checkpoint's scheduler.
        latents: how the model reads them.
        reading: how the pipelines read prompts; None where `escdiff.conditioning` does.
        splices: whether learned words may also stand inside its text encoder, see `splicing`.
    """

    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    pipelines: ClassVar[tuple[str, ...]]
    noise: ClassVar[Callable[[SchedulerMixin], Noise]]
    latents: ClassVar[Latents] = Latents()
    reading: ClassVar[Reading | None] = None
    splices: ClassVar[bool] = False

    @abstractmethod
    def cells(self, model: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Names of the modules of each layer, in execution order."""

    @abstractmethod
    def text_width(self, model: nn.Module) -> int:
        """D."""

    def layer_width(self, model: nn.Module) -> int:
        """W; equal to D where nothing stands between the text encoder and the layers."""
        return self.text_width(model)

    def enter(self, model: nn.Module, states: Tensor) -> Tensor:
        """(..., W) of the text encoder's states (..., D), as the layers read them."""
        return states

    def time_factor(self, model: nn.Module) -> float:
        """What the model's own timestep is multiplied by to be one of 0-1000."""
        return 1.0

    @abstractmethod
    def attach(self, model: nn.Module, space: ConditioningSpace) -> Binding:
        """Let a packed text reach each layer; any other text passes unchanged.

        Removing the binding leaves the stock model, bit for bit.

        Raises:
            UserError: the space is of another model; later, in the forward pass, a text packed for another space.
        """

    @abstractmethod
    def write(self, text_BTD: Tensor, residuals: Residuals) -> Tensor:
        """See `pack`, which has checked both."""

    def pack(self, model: nn.Module, space: ConditioningSpace, text_BTD: Tensor, residuals: Residuals) -> Tensor:
        """One tensor (B, T', D) of a text and its layers' residuals, to be given to the attached model as its text.

        Stock pipelines take it as `prompt_embeds`.

        Raises:
            UserError: a text or residuals of another model, naming both sides.
        """
        self.check_text(model, text_BTD)
        _, layers, stages, _, width = residuals.values.shape
        ours = (space.num_layers, space.num_stages, self.layer_width(model))
        if (layers, stages, width) != ours:
            raise UserError(
                f"residuals of {layers} layers, {stages} stages and width {width} were given; this {self.name} has "
                "{} layers, {} stages and width {}: use those made for it".format(*ours)
            )
        check_positions(residuals, text_BTD.shape[1])
        return self.write(text_BTD, residuals.expand(len(text_BTD)))

    def layers(self, model: nn.Module) -> tuple[str, ...]:
        """Names of all modules that read the text, in execution order."""
        return tuple(name for cell in self.cells(model) for name in cell)

    def space(self, model: nn.Module, stages: Sequence[int] = (0, 1000)) -> ConditioningSpace:
        """A cell per layer, and stages with these bounds."""
        return ConditioningSpace(self.cells(model), tuple(stages))

    def check_text(self, model: nn.Module, text: Tensor) -> None:
        """Refuse text that another kind of model reads.

        Raises:
            UserError: naming both widths.
        """
        width = self.text_width(model)
        if text.ndim != 3 or text.shape[2] != width:
            raise UserError(
                f"text of shape {tuple(text.shape)} was given; this {self.name} reads (batch, tokens, {width}): "
                "encode the prompt with its own text encoders"
            )

    def check_space(self, model: nn.Module, space: ConditioningSpace) -> None:
        """Refuse a space of another model.

        Raises:
            UserError: naming both sides.
        """
        ours, theirs = self.cells(model), space.cells
        if ours != theirs:
            odd = sorted(set(space.layer_names) ^ set(self.layers(model)))
            where = f"they differ in {odd[0]!r}" if odd else "they are cut or ordered in other ways"
            raise UserError(
                f"a space of {len(theirs)} layers was given, this {self.name} ({type(model).__name__}) has "
                f"{len(ours)}; {where}: build the space from this model"
            )
