"""Stock pipelines over tiny backbones, and one way to call them."""

import inspect

import torch

SIZE = 128


def make_pipeline(backbone, kind=None, **parts):
    """A stock pipeline over a backbone's parts."""
    stock = backbone.pipeline()
    kind = kind or type(stock)
    given = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
    takes = inspect.signature(kind).parameters
    pipeline = kind(**{name: value for name, value in (stock.components | given | parts).items() if name in takes})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline, prompt, seed=3, steps=4, guidance=3.0, **options):
    """Latents (B, C, h, w); `pipeline` may be a controlled one."""
    count = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    options = {"output_type": "latent", "height": SIZE, "width": SIZE} | options
    return pipeline(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generators, **options).images


def hooks(model):
    """How many hooks a model and its parts have."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
