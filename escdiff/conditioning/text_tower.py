"""One text encoder with its tokenizer. Stable Diffusion 1.x and 2.x have one such tower, SDXL two.

Legend: R rows encoded, T token position, K vectors per placeholder, D width of this tower.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from escdiff.conditioning.replacing import ChangedEmbedding, Replacing
from escdiff.conditioning.shared_prefix import find_beginnings, run_shared
from escdiff.conditioning.word_ids import WordIds
from escdiff.support.errors import UserError

# What looks like a placeholder, known or not. Known ones may be any text in angle brackets, see `find_placeholders`.
PLACEHOLDER = re.compile(r"<[^\W\d_][\w-]*>")


def normalized(text: str) -> str:
    """One spelling of letters with marks (Unicode NFC): files of some systems are named in the other one."""
    return unicodedata.normalize("NFC", text)


def find_placeholders(prompt: str, known: Iterable[str] = ()) -> list[re.Match]:
    """The known placeholders in a normalized prompt, and everything else that looks like one, in order."""
    return list(_pattern(frozenset(known)).finditer(prompt))


@lru_cache
def _pattern(known: frozenset[str]) -> re.Pattern:
    return re.compile("|".join([*map(re.escape, sorted(known)), PLACEHOLDER.pattern]))


@dataclass(frozen=True)
class Tokens:
    """One tokenized prompt: T ids, the (placeholder, first position) pairs in it, and the text behind the last id."""

    ids: tuple[int, ...]
    slots: tuple[tuple[str, int], ...]
    cut: str = field(default="", compare=False)


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
        # A compiled encoder would be compiled again for the functions that are replaced.
        self.tokenizer, self.text_encoder = tokenizer, unwrap_module(text_encoder)
        self._word_ids = WordIds(tokenizer)
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
        """Token ids of a text of any length, without start and end marks."""
        return self._word_ids(text) if text.strip() else []

    def placeholders(self, prompt: str, known: Iterable[str] = ()) -> list[re.Match]:
        """`find_placeholders`, apart from pseudo-words that somebody added to the tokenizer (textual inversion).

        Raises:
            UserError: a known placeholder is such a pseudo-word too.
        """
        added = self.tokenizer.get_added_vocab()
        for name in known:
            if name in added:
                raise UserError(
                    f"both a concept and a word of the tokenizer (textual inversion) are called {name}; unload one of "
                    "them, or load the concept under another name"
                )
        return [match for match in find_placeholders(prompt, known) if match.group() not in added]

    def tokenize(self, prompt: str, known: Mapping[str, int], required: Sequence[str] = ()) -> Tokens:
        """Token ids with room for every placeholder's vectors.

        Placeholders are cut out *before* byte-pair encoding, which would break them up. The text between is
        encoded piece by piece; as a token never spans a word boundary, the ids are those of the whole.

        Args:
            known: number of vectors K of every placeholder.

        Raises:
            UserError: see `PromptEncoder.encode`.
        """
        prompt = normalized(prompt)
        found = self.placeholders(prompt, known)
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
        ids += self.word_ids(prompt[end:])
        ids, beyond = ids[: self.max_length - 1], ids[self.max_length - 1 :]
        ids += [self.tokenizer.eos_token_id] + [self.tokenizer.pad_token_id] * (self.max_length - len(ids) - 1)
        return Tokens(tuple(ids), tuple(slots), self.tokenizer.decode(beyond) if beyond else "")

    @contextmanager
    def embedding(self, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """While it stands, the word embeddings that this thread reads are `change(ids, embedded)`.

        Raises:
            UserError: nobody read them.
        """
        lookup = ChangedEmbedding(self.text_encoder.get_input_embeddings(), change)
        with Replacing({F.embedding: lookup}):
            yield
        self._check_used(lookup)

    def _check_used(self, lookup: ChangedEmbedding) -> None:
        if not lookup.used:
            kind = type(self.text_encoder).__name__
            raise UserError(f"the words of {kind} did not come from its table of embeddings; expected a CLIP")

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
        options = {"output_hidden_states": self.penultimate or skip is not None}
        lookup = ChangedEmbedding(self.text_encoder.get_input_embeddings(), change) if change else None
        replaced = {F.embedding: lookup} if lookup else {}
        found = find_beginnings(self.text_encoder, ids_RT, first)
        if found and (both := run_shared(self.text_encoder, *found, ids_RT[:, first:], replaced, **options)):
            before, states = both
            hidden = torch.cat([self._hidden(before, skip)[found[1]], self._hidden(states, skip)], 1)
        else:
            with Replacing(replaced) if replaced else nullcontext():
                states = self.text_encoder(ids_RT, **options)
            hidden = self._hidden(states, skip)
        if lookup:
            self._check_used(lookup)
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
