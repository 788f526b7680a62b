"""One text encoder with its tokenizer. Stable Diffusion 1.x and 2.x have one such tower, SDXL two.

Legend: R rows encoded, T token position, K vectors per placeholder, D width of this tower.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from escdiff.conditioning.prefix import find_beginnings, run_shared
from escdiff.errors import UserError

PLACEHOLDER = re.compile(r"<[A-Za-z][\w-]*>")


@dataclass(frozen=True)
class Tokens:
    """One tokenized prompt: T ids, and the (placeholder, first position) pairs in it."""

    ids: tuple[int, ...]
    slots: tuple[tuple[str, int], ...]


class TextTower:
    """A frozen CLIP text encoder.

    Args:
        penultimate: read the hidden states before the last layer, without the final norm, as SDXL does.

    Attributes:
        max_length: T, token positions with start and end marks (77).
        width: D.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, penultimate: bool = False
    ) -> None:
        # A compiled encoder would not see the hook that splices.
        self.tokenizer, self.text_encoder = tokenizer, getattr(text_encoder, "_orig_mod", text_encoder)
        self.penultimate = penultimate
        self.max_length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self.width = text_encoder.config.hidden_size

    @property
    def embedding_weight(self) -> Tensor:
        """(V, D) word embeddings of the vocabulary."""
        return self.text_encoder.get_input_embeddings().weight

    @property
    def device(self) -> torch.device:
        """Where token ids go; while an offloading tool keeps the weights away, it moves them itself."""
        device = self.embedding_weight.device
        return torch.device("cpu") if device.type == "meta" else device

    def word_ids(self, text: str) -> list[int]:
        # verbose=False: no warning on long texts, which `tokenize` cuts.
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text.strip() else []

    def placeholders(self, prompt: str) -> list[re.Match]:
        # A pseudo-word that somebody added to the tokenizer (textual inversion) is an ordinary word.
        words = self.tokenizer.get_added_vocab()
        return [match for match in PLACEHOLDER.finditer(prompt) if match.group() not in words]

    def tokenize(self, prompt: str, known: Mapping[str, int], required: Sequence[str] = ()) -> Tokens:
        """Token ids with room for every placeholder's vectors.

        Placeholders are cut out *before* byte-pair encoding, which would break them up. The text between is
        encoded piece by piece; as a token never spans a word boundary, the ids are those of the whole.

        Args:
            known: number of vectors K of every placeholder.

        Raises:
            UserError: see `PromptEncoder.encode`.
        """
        found = self.placeholders(prompt)
        _check_placeholders(prompt, [match.group() for match in found], known, required)
        ids, slots, end = [self.tokenizer.bos_token_id], [], 0
        for match in found:
            ids += self.word_ids(prompt[end : match.start()])
            end = match.end()
            slots.append((match.group(), len(ids)))
            # Any id will do that the text encoder does not look for: the embedding is replaced.
            ids += [self.tokenizer.bos_token_id] * known[match.group()]
            if len(ids) > self.max_length - 1:
                raise UserError(
                    f"the placeholder {match.group()} ends at token {len(ids) - 1} of the prompt {prompt!r}, "
                    f"but the text encoder reads words up to token {self.max_length - 2}: "
                    "shorten the text before it"
                )
        ids = [*(ids + self.word_ids(prompt[end:]))[: self.max_length - 1], self.tokenizer.eos_token_id]
        ids += [self.tokenizer.pad_token_id] * (self.max_length - len(ids))
        return Tokens(tuple(ids), tuple(slots))

    @contextmanager
    def embedding(self, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """While it stands, the word embeddings are `change(ids, embedded)`.

        `CLIPTextModel` takes no `inputs_embeds`, hence a hook.
        """
        table = self.text_encoder.get_input_embeddings()
        hook = table.register_forward_hook(lambda module, args, embedded: change(args[0], embedded))
        try:
            yield
        finally:
            hook.remove()

    def run(
        self, ids_RT: Tensor, change: Callable[[Tensor, Tensor], Tensor] | None = None, first: int = 0,
        skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Hidden states (R, T, D) and, of an encoder with a projection, the pooled ones (R, P).

        Args:
            change: of the word embeddings, see `embedding`. It may be shown the last positions only.
            first: no row is changed or ends before this position, so rows that begin alike share that part.
            skip: layers left out at the end, the `clip_skip` of diffusers' pipelines.
        """
        splicing = self.embedding(change) if change else nullcontext()
        options = {"output_hidden_states": self.penultimate or skip is not None}
        if found := find_beginnings(self.text_encoder, ids_RT, first):
            before, states = run_shared(self.text_encoder, *found, ids_RT[:, first:], splicing, **options)
            hidden = torch.cat([self._hidden(before, skip)[found[1]], self._hidden(states, skip)], 1)
        else:
            with splicing:
                states = self.text_encoder(ids_RT, **options)
            hidden = self._hidden(states, skip)
        return hidden, getattr(states, "text_embeds", None)

    def _hidden(self, states, skip: int | None) -> Tensor:
        if self.penultimate:
            return states.hidden_states[-2 - (skip or 0)]
        if skip is not None:
            inner = getattr(self.text_encoder, "text_model", self.text_encoder)
            return inner.final_layer_norm(states.hidden_states[-1 - skip])
        return states.last_hidden_state


def _check_placeholders(prompt: str, found: Sequence[str], known: Mapping[str, int], required: Sequence[str]) -> None:
    names = ", ".join(sorted(known)) or "none: no concept was given"
    for name in found:
        if name not in known:
            raise UserError(
                f"the prompt {prompt!r} has the unknown placeholder {name}; known here: {names}; "
                "correct it or give a concept that has it"
            )
    for name in required:
        if name not in found:
            raise UserError(f"the prompt {prompt!r} lacks the placeholder {name}: write it where the concept belongs")
