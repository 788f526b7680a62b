"""Controls, and how they act on one call of a stock diffusers pipeline.

No pipeline is forked. During a call, a pre-hook of the U-Net and the scheduler's `scale_model_input` and `step` are
wrapped on the instance: there a control may change the latents before the U-Net reads them and after the scheduler's
step. Afterwards everything is as it was. Legend: B pictures, R rows of the U-Net's batch (B, or 2B with guidance).
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from escdiff.conditioning.attention import frozen, uncompiled
from escdiff.control.phrases import Prompts
from escdiff.support.errors import UserError


class Control:
    """Steers the sampling; override any of the three. Controls compose: each gets what the one before it returned."""

    def attach(self, run: "Run") -> AbstractContextManager:
        """Checks and hooks for one call of the pipeline, in the order of the controls.

        Raises:
            UserError: the control cannot serve this call.
        """
        return nullcontext()

    def before(self, step: "Step", latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the U-Net is about to read them; the same tensor leaves the step stock.

        A control may return all R rows, if the two halves of guidance should differ; the first B go on.
        """
        return latents

    def after(self, step: "Step", latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) after the scheduler's step."""
        return latents


@dataclass(eq=False)
class Run:
    """One call of a pipeline.

    Attributes:
        batch: B, prompts times pictures per prompt.
        options: arguments of the call, by name.
        memory: what controls keep for this call, each under itself.
    """

    pipeline: DiffusionPipeline
    unet: nn.Module
    batch: int
    prompts: Prompts
    options: Mapping[str, Any]
    memory: dict = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, args: tuple, options: Mapping[str, Any]) -> "Run":
        """Raises:
        UserError: a pipeline without a U-Net, or a call without a prompt.
        """
        unet = getattr(pipeline, "unet", None)
        if unet is None or not hasattr(getattr(pipeline, "scheduler", None), "scale_model_input"):
            raise UserError(f"a {type(pipeline).__name__} was given; expected a Stable Diffusion pipeline with a U-Net")
        arguments = dict(inspect.signature(pipeline.__call__).bind(*args, **options).arguments)
        for name in ("kwargs", "options"):  # what a pipeline passes on
            arguments |= arguments.pop(name, {})
        texts, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
        if texts is None and embeds is None:
            raise UserError("no prompt was given; expected prompt= or prompt_embeds=")
        texts = [texts] if isinstance(texts, str) else texts
        repeats = arguments.get("num_images_per_prompt") or 1
        prompts = None if texts is None else [text for text in texts for _ in range(repeats)]
        batch = len(prompts) if prompts is not None else len(embeds) * repeats
        return cls(pipeline, unwrap_module(unet), batch, Prompts(pipeline, prompts), arguments)


@dataclass(eq=False)
class Step:
    """One denoising step, before or after the U-Net has predicted.

    Attributes:
        index: from 0.
        total: number of steps.
        timestep: what the U-Net is told.
        inputs: the U-Net's other arguments, R rows each; a control may put in others.
        rest: channels (R, C', h, w) that the U-Net reads behind the latents, of an inpainting model.
    """

    run: Run
    index: int
    total: int
    timestep: Tensor
    inputs: dict[str, Any]
    rest: Tensor
    rows: int

    def predict(self, latents: Tensor) -> Tensor:
        """The U-Net's output (B, C, h, w) with the prompts alone, the guided half; gradients reach the latents."""
        return self.predict_rows(latents, slice(self.rows - self.run.batch, self.rows))

    def predict_rows(self, latents: Tensor, rows: slice = slice(None)) -> Tensor:
        """The U-Net's output for these rows of its batch."""
        sample = torch.cat([latents, self.rest[rows].to(latents)], 1)
        return self.run.unet(sample, self.timestep, **self.inputs_of(rows))[0]

    def inputs_of(self, rows: slice) -> dict[str, Any]:
        """The U-Net's other arguments for these rows of its batch."""
        return {name: _rows(value, self.rows, rows) for name, value in self.inputs.items()} | {"return_dict": False}


def controlled(pipeline: DiffusionPipeline, *controls: Control) -> "Controlled":
    """A pipeline whose calls are steered: `controlled(pipe, Conform("red mug; blue chair"))("a red mug and ...")`.

    Takes diffusers' pipelines over a UNet2DConditionModel, concepts loaded or not: Stable Diffusion 1.x, 2.x and XL,
    image to image, inpainting, ControlNet; batches; LoRA loaded before or after; any scheduler, of which a second-order
    one is steered at the first of its two passes per step. A compiled U-Net runs uncompiled while it is steered. The
    pipeline itself stays as it is.

    Raises:
        UserError: when called, what a control cannot serve.
    """
    return Controlled(pipeline, controls)


class Controlled:
    """See `controlled`."""

    def __init__(self, pipeline: DiffusionPipeline, controls: tuple[Control, ...]) -> None:
        self.pipeline, self.controls = pipeline, tuple(controls)

    def __call__(self, *args, **options):
        """Call the pipeline with its own arguments, steered by the controls."""
        if not self.controls:
            return self.pipeline(*args, **options)
        run = Run.of(self.pipeline, args, options)
        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            stack.enter_context(frozen(run.unet))
            for control in self.controls:
                stack.enter_context(control.attach(run))
            stack.enter_context(_Loop(run, self.controls).steering())
            return self.pipeline(*args, **options)


class _Loop:
    """Hooks of controls in a pipeline's loop: at `scale_model_input`, then the U-Net, then `scheduler.step`."""

    def __init__(self, run: Run, controls: tuple[Control, ...]) -> None:
        self.run, self.controls, self.scheduler = run, controls, run.pipeline.scheduler
        self.raw: Tensor | None = None  # latents (R, C, h, w) of this step, in the scheduler's units
        self.ratio = 1.0  # what the U-Net reads, divided by that
        self.changed: Tensor | None = None  # latents (B, C, h, w) that replace the scheduler's
        self.calls, self.step_now, self.busy = 0, None, False

    @contextmanager
    def steering(self) -> Iterator[None]:
        # First of all hooks, so that it sees what the pipeline gives, before a bound U-Net narrows it.
        handle = self.run.unet.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True)
        with ExitStack() as stack:
            stack.callback(handle.remove)
            for name, wrapper in (("scale_model_input", self.scale), ("step", self.step)):
                stack.enter_context(_wrapped(self.scheduler, name, wrapper))
            yield

    def scale(self, stock: Callable, sample: Tensor, *args, **options) -> Tensor:
        scaled = stock(sample, *args, **options)
        self.raw = sample
        self.ratio = float(stock(torch.ones(1, dtype=torch.float64), *args, **options))  # it is linear
        return scaled

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Pre-hook of the U-Net."""
        if self.busy or self.raw is None or self.calls % self.scheduler.order:
            return None
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        sample, timestep = named.pop("sample"), named.pop("timestep")
        batch, channels = self.run.batch, self.raw.shape[1]
        if len(sample) not in (batch, 2 * batch):
            problem = f"runs {len(sample)} rows for {batch} pictures"
            raise UserError(f"a {type(self.run.pipeline).__name__} {problem}; a control expects {batch} or {2 * batch}")
        total = -(-self.run.pipeline.num_timesteps // self.scheduler.order)
        index, inputs, rest = self.calls // self.scheduler.order, dict(named), sample[:, channels:]
        step = self.step_now = Step(self.run, index, total, timestep, dict(inputs), rest, len(sample))
        before = sample[-batch:, :channels]
        latents = before
        self.busy = True
        try:
            for control in self.controls:
                latents = control.before(step, latents)
        finally:
            self.busy = False
        same = all(step.inputs[name] is value for name, value in inputs.items())
        if latents is before and same:
            return None
        if latents is not before:
            latents = latents.detach().to(sample)
            self.changed = (latents[:batch] / self.ratio).to(self.raw)
            rows = latents if len(latents) == len(sample) else latents.repeat(len(sample) // batch, 1, 1, 1)
            sample = torch.cat([rows, rest], 1)
        return (sample, timestep), step.inputs

    def step(self, stock: Callable, output: Tensor, timestep: Tensor, sample: Tensor, *args, **options):
        result = stock(output, timestep, sample if self.changed is None else self.changed, *args, **options)
        self.changed = None
        self.calls += 1
        latents = before = result[0] if isinstance(result, tuple) else result.prev_sample
        for control in self.controls:
            latents = control.after(self.step_now, latents)
        if latents is before:
            return result
        if isinstance(result, tuple):
            return (latents, *result[1:])
        result.prev_sample = latents
        return result


@contextmanager
def _wrapped(owner: Any, name: str, wrapper: Callable) -> Iterator[None]:
    """A method that goes through `wrapper(stock, ...)`, with the stock one's signature, which pipelines look at."""
    stock, before = getattr(owner, name), vars(owner).get(name)
    setattr(owner, name, functools.wraps(stock)(functools.partial(wrapper, stock)))
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)


def _rows(value: Any, total: int, rows: slice) -> Any:
    """These of all rows, in whatever a U-Net takes: tensors, and tuples, lists and dicts of them."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == total else value
    if isinstance(value, list | tuple):
        return type(value)(_rows(part, total, rows) for part in value)
    if isinstance(value, dict):
        return {name: _rows(part, total, rows) for name, part in value.items()}
    return value
