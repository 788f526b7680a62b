"""How a family's stock pipelines read prompts, and where the words of placeholders stand in the text they make.

Legend: B prompts, L layers, S stages, K positions, W width of the text as a layer reads it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from escdiff.backbone.family.residuals import Residuals
from escdiff.backbone.family.spelling import Part, Spelled, locate

MASK = "encoder_attention_mask"  # argument of models whose texts are padded
Place = tuple[Part, int, int]  # whose vector number k belongs at which token
Frame = Callable[[DiffusionPipeline, Mapping[str, Any]], tuple[str, str, int]]


@dataclass(frozen=True)
class Stream:
    """A part of the pipeline's text: whose tokens it holds and which prompt they are of.

    Attributes:
        clip: as long as CLIP reads, whatever `max_sequence_length` is.
        frame: of a pipeline and the arguments of its `encode_prompt`, what it writes before and behind each prompt,
            and how many of the first tokens it then drops.
    """

    tokenizer: str
    encoder: str
    prompt: str
    clip: bool = False
    frame: Frame | None = None


@dataclass(frozen=True)
class Reading:
    """What a family's `encode_prompt` takes and gives.

    Attributes:
        streams: one behind the other in the text.
        embeds: where it returns the text and, if it returns one, the negative prompt's.
        arguments: of the model, other than the text, and where it returns them.
        lower: it reads small letters only.
        guidance: argument of the pipeline that scales classifier-free guidance.
        options: arguments of the pipeline's call without which it would change prompts or sizes.
    """

    streams: tuple[Stream, ...]
    embeds: tuple[int, ...]
    arguments: Mapping[str, int] = field(default_factory=dict)
    lower: bool = False
    guidance: str = "guidance_scale"
    options: Mapping[str, Any] = field(default_factory=dict)

    def places(
        self, pipeline: DiffusionPipeline, texts: Mapping[str, Sequence[Spelled]], given: Mapping[str, Any], length: int
    ) -> list[list[Place]]:
        """Of every prompt, where its placeholders' words stand in the text.

        Args:
            texts: "prompt" and, where they differ from it, "prompt_2" and "prompt_3", spelled.
            given: arguments of `encode_prompt`.
            length: its `max_sequence_length`.

        Raises:
            UserError: see `locate`.
        """
        first = texts["prompt"]
        rows, offset = [[] for _ in first], 0
        for stream in self.streams:
            size = pipeline.tokenizer_max_length if stream.clip else length
            if getattr(pipeline, stream.encoder) is not None:
                tokenizer = getattr(pipeline, stream.tokenizer)
                frame = stream.frame(pipeline, given) if stream.frame else ("", "", 0)
                for row, text in zip(rows, texts.get(stream.prompt, first), strict=True):
                    found = locate(text, tokenizer, size, *frame)
                    row += [(part, index, offset + token) for part, index, token in found]
            offset += size
        return rows


def only_encoder(pipeline: DiffusionPipeline, reading: Reading) -> nn.Module:
    """The text encoder of a pipeline that has one."""
    (stream,) = reading.streams
    return getattr(pipeline, stream.encoder)


def undropped(
    rows: Sequence[Sequence[Place]], pipeline: DiffusionPipeline, reading: Reading, given: Mapping[str, Any]
) -> list[list[Place]]:
    """Places in what the text encoder reads, of places in the text that the pipeline makes of it."""
    (stream,) = reading.streams
    drop = stream.frame(pipeline, given)[2] if stream.frame else 0
    return [[(part, index, token + drop) for part, index, token in row] for row in rows]


def residuals_at(
    rows: Sequence[Sequence[Place]], vectors: Mapping[str, Tensor], shape: tuple[int, int, int], count: int = 0
) -> Residuals:
    """The vectors at their places, with gradients.

    Args:
        vectors: by `Part.attribute`, (B|1, L|1, S|1, K, W).
        shape: (L, S, W).
        count: positions of each prompt at least; what it does not use says nowhere.
    """
    layers, stages, width = shape
    count = max([count, *map(len, rows)])
    like = next(iter(vectors.values()))
    values, positions = [], torch.full((len(rows), count), -1)
    for number, row in enumerate(rows):
        own = []
        for column, (part, index, token) in enumerate(row):
            value = vectors[part.attribute]
            own.append(value[min(number, len(value) - 1), :, :, index].expand(layers, stages, width))
            positions[number, column] = token
        nothing = like.new_zeros(layers, stages, count - len(row), width)
        values.append(torch.cat([torch.stack(own, 2), nothing], 2) if own else nothing)
    return Residuals(torch.stack(values), positions.to(like.device))
