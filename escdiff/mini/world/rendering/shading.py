"""Colour of what a ray has hit: pattern, Blinn-Phong light, two kinds of gloss."""

import torch
from torch import Tensor

from escdiff.mini.world.geometry.bodies import painted
from escdiff.mini.world.rendering import materials
from escdiff.mini.world.rendering.tracing import Tracer
from escdiff.mini.world.world import TEXTURED

FINISHES = {"matte": 0, "glossy": 1, "metallic": 2}


def shade(traced: Tracer, image: Tensor, pixel: Tensor, t: Tensor) -> Tensor:
    """Linear colour (N, 3) of hits: picture `image`, `pixel`, length `t` (N,). With ambient occlusion."""
    view = traced.direction[image, pixel]
    p = traced.origin[image] + view * t[:, None]
    n, light = traced.normal(p, image), traced.light[image]
    albedo = _albedo(traced, p, n, image)
    facing = (n * light).sum(-1).clamp_min(0)
    # Light from all of the sky: full on what faces up, none on what faces down.
    sky = 0.5 + 0.5 * n[:, 1]
    # Ambient occlusion (Evans 2006): where something is nearer than the step ahead, light is shut out.
    hollow = (traced.distance(p + 0.22 * n, image) / 0.22).clamp(0.25, 1)
    # Blinn's half vector (1977): the normal that would mirror the light into the camera.
    half = light - view
    half = half / half.norm(dim=-1, keepdim=True)
    spec = (n * half).sum(-1).clamp_min(0)
    # Schlick's approximation (1994) has the fifth power; the third leaves a rim that shows at 128 pixels.
    fresnel = (1 + (n * view).sum(-1)).clamp(0, 1) ** 3
    finish = torch.tensor([FINISHES[thing.material.finish] for thing in traced.things])[image]
    gloss = torch.tensor([float(thing.material.gloss) for thing in traced.things])[image]
    diffuse = albedo * ((0.72 * facing + 0.34 * sky + 0.06) * hollow)[:, None]
    # Little gloss: a wide, faint sheen. Much: a small, bright light and a bright rim.
    glossy = (0.3 + 0.75 * gloss) * spec ** (14 + 90 * gloss * gloss) + (0.04 + 0.3 * gloss) * fresnel * hollow
    mirrored = 2 * (n * -view).sum(-1, keepdim=True) * n + view  # the reflected ray sees a plain studio
    studio = 0.3 - 0.2 * gloss + (0.75 + 0.4 * gloss) * torch.sigmoid((mirrored[:, 1] - 0.25) * (2 + 12 * gloss))
    # A metal has no colour but that of what it mirrors, tinted by its own.
    metal = albedo * (0.25 * facing + 0.95 * studio * hollow)[:, None]
    metal = metal + (0.25 * albedo + 0.3) * ((0.25 + 0.75 * gloss) * spec ** (8 + 50 * gloss))[:, None]
    glossy = diffuse + glossy[:, None]
    return torch.where((finish == 1)[:, None], glossy, torch.where((finish == 2)[:, None], metal, diffuse))


def _albedo(traced: Tracer, p: Tensor, n: Tensor, image: Tensor) -> Tensor:
    """Colour (N, 3) in linear light: colours mixed by the pattern in object space."""
    p, n = (torch.stack(traced.to_object(v, image), -1) for v in (p, n))
    color = torch.empty(len(p), 3)
    for i, thing in enumerate(traced.things):
        hits = image == i
        m, count = thing.material, int(hits.sum())
        first, second = torch.tensor(m.rgb), torch.tensor(m.rgb2)
        if m.pattern == TEXTURED:
            color[hits] = materials.textured(m.seed, p[hits], first, second)
        else:
            full = [torch.full((count,), float(v)) for v in (m.scale, m.angle, m.seed)]
            mix = materials.weight(m.pattern, p[hits], n[hits], *full)
            color[hits] = first + (second - first) * mix[:, None]
        marks = painted(thing, p[hits])
        if marks is not None:
            color[hits] += (marks[0] - color[hits]) * marks[1][:, None]
    # Colours are named in sRGB; light adds up in linear values.
    return color.clamp(0, 1) ** 2.2
