"""Prompts with placeholders: learned vectors enter the text encoder where `<shape>` stands in the text.

Legend: B batch, L layer cell, S stage, K vectors per placeholder, T token position, D width, R rows encoded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from escdiff.conditioning.placement import add_behind, split
from escdiff.errors import UserError

PLACEHOLDER = re.compile(r"<[A-Za-z][\w-]*>")


@dataclass(frozen=True)
class Tokens:
    """One tokenized prompt: T ids, and the (placeholder, first position) pairs in it."""

    ids: tuple[int, ...]
    slots: tuple[tuple[str, int], ...]


class PromptEncoder:
    """Encodes prompts for every cell of a conditioning space with a frozen CLIP text encoder.

    Attributes:
        max_length: T, token positions with start and end marks (77).
        width: D.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.max_length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self.width = text_encoder.config.hidden_size

    @property
    def embedding_weight(self) -> Tensor:
        """(V, D) word embeddings of the vocabulary."""
        return self.text_encoder.get_input_embeddings().weight

    @cached_property
    def embedding_scale(self) -> float:
        """Mean Euclidean norm of the vocabulary's word embeddings, special tokens apart."""
        norms = self.embedding_weight.detach().float().norm(dim=1)
        words = torch.ones_like(norms, dtype=torch.bool)
        words[list(self.tokenizer.all_special_ids)] = False
        return norms[words].mean().item()

    def word_embedding(self, text: str, num_vectors: int | None = None) -> Tensor:
        """(K, D) word embeddings of a word or phrase, one per token; with `num_vectors`, their mean K times.

        Raises:
            UserError: the text has no token.
        """
        ids = self._word_ids(text)
        if not ids:
            raise UserError(f"the text {text!r} has no token; give a word such as 'object'")
        rows = self.embedding_weight.detach()[ids].clone()
        return rows if num_vectors is None else rows.mean(0, keepdim=True).repeat(num_vectors, 1)

    def states_of(self, text: str) -> Tensor:
        """(K, D) hidden states of a word or phrase on its own, one per token."""
        return self.encode_plain([text])[0, 0, 0, 1 : 1 + len(self.word_embedding(text))]

    def encode_plain(self, prompts: Sequence[str]) -> Tensor:
        """(B, 1, 1, T, D) hidden states of prompts without placeholders, equal to the stock pipeline's."""
        return self.encode(prompts)

    def encode(
        self,
        prompts: Sequence[str],
        vectors: Mapping[str, Tensor] | None = None,
        required: Sequence[str] = (),
    ) -> Tensor:
        """The conditioning grid (B, L, S, T, D) of prompts whose placeholders are replaced by word vectors.

        The rows of all cells go through the text encoder in one call, and equal rows once: a prompt without
        placeholder, a vector axis of size 1 (or expanded from it), the same prompt twice. Gradients reach
        `vectors`.

        Args:
            prompts: B texts; longer ones are cut at T tokens, as the stock pipeline does.
            vectors: `{"<shape>": (B|1, L|1, S|1, K, D)}`, or the pairs (B|1, L|1, S|1, K, 2, D) of
                `escdiff.conditioning.placement`. L and S of the result are their common sizes, 1 without.
            required: placeholders that every prompt must contain.

        Raises:
            UserError: a placeholder without vectors, a required one missing, one that reaches beyond the last
                token, or vectors that do not fit B, D or each other.
        """
        if isinstance(prompts, str):
            raise UserError(f"one prompt {prompts!r} was given, expected a list of prompts: put it in a list")
        weight = self.embedding_weight
        vectors, added = split(vectors or {})
        layers, stages = self._grid_size(vectors | added, len(prompts))
        # Collapsed first: a cast would copy the repeated cells.
        vectors = {k: _collapse(value).to(weight.device, weight.dtype) for k, value in vectors.items()}
        known = {name: value.shape[3] for name, value in vectors.items()}
        tokens = [self.tokenize(prompt, known, required) for prompt in prompts]

        rows: dict[tuple, int] = {}  # (tokens, sample, layer, stage) that really differ -> row of the batch
        index = [self._rows_of(sample, vectors, b, rows) for b, sample in enumerate(tokens)]
        if not rows:
            return weight.new_zeros(0, layers, stages, self.max_length, self.width)
        hidden_RTD = self._encode_rows(list(rows), vectors)
        common = torch.broadcast_shapes(*(cells.shape for cells in index))
        index_BLS = torch.stack([cells.expand(common) for cells in index]).to(weight.device)
        grid = hidden_RTD[index_BLS].expand(-1, layers, stages, -1, -1)
        return add_behind(grid, [sample.slots for sample in tokens], added)

    def tokenize(self, prompt: str, known: Mapping[str, int], required: Sequence[str] = ()) -> Tokens:
        """Token ids with room for every placeholder's vectors.

        Placeholders are cut out *before* byte-pair encoding, which would break them up. The text between is
        encoded piece by piece; as a token never spans a word boundary, the ids are those of the whole.

        Args:
            known: number of vectors K of every placeholder.

        Raises:
            UserError: see `encode`.
        """
        self._check_placeholders(prompt, known, required)
        ids, slots, end = [self.tokenizer.bos_token_id], [], 0
        for match in self._placeholders(prompt):
            ids += self._word_ids(prompt[end : match.start()])
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
        ids = [*(ids + self._word_ids(prompt[end:]))[: self.max_length - 1], self.tokenizer.eos_token_id]
        ids += [self.tokenizer.pad_token_id] * (self.max_length - len(ids))
        return Tokens(tuple(ids), tuple(slots))

    def _word_ids(self, text: str) -> list[int]:
        # verbose=False: no warning on long texts, which `tokenize` cuts.
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text.strip() else []

    def _placeholders(self, prompt: str) -> list[re.Match]:
        # A pseudo-word that somebody added to the tokenizer (textual inversion) is an ordinary word.
        words = self.tokenizer.get_added_vocab()
        return [match for match in PLACEHOLDER.finditer(prompt) if match.group() not in words]

    def _check_placeholders(self, prompt: str, known: Mapping[str, int], required: Sequence[str]) -> None:
        found = [match.group() for match in self._placeholders(prompt)]
        names = ", ".join(sorted(known)) or "none: no concept was given"
        for name in found:
            if name not in known:
                raise UserError(
                    f"the prompt {prompt!r} has the unknown placeholder {name}; known here: {names}; "
                    "correct it or give a concept that has it"
                )
        for name in required:
            if name not in found:
                raise UserError(
                    f"the prompt {prompt!r} lacks the placeholder {name}: write it where the concept belongs"
                )

    def _grid_size(self, vectors: Mapping[str, Tensor], batch: int) -> tuple[int, int]:
        for name, value in vectors.items():
            fits = value.ndim == 5 and value.shape[0] in (1, batch)
            if not fits or value.shape[3] == 0 or value.shape[4] != self.width:
                raise UserError(
                    f"the vectors of {name} have shape {tuple(value.shape)}, expected ({batch} or 1, layers, "
                    f"stages, vectors, {self.width}) for {batch} prompts and this text encoder: "
                    "use a concept made for it"
                )
        try:
            layers, stages = torch.broadcast_shapes((1, 1), *(value.shape[1:3] for value in vectors.values()))
        except RuntimeError as error:
            shapes = {name: tuple(value.shape[1:3]) for name, value in vectors.items()}
            raise UserError(f"the vectors fill different grids (layers, stages) {shapes}: use one space") from error
        return layers, stages

    def _rows_of(self, tokens: Tokens, vectors: Mapping[str, Tensor], sample: int, rows: dict) -> Tensor:
        """(L|1, S|1) row numbers of one prompt's cells; new rows are appended to `rows`."""
        used = [vectors[name] for name, _ in tokens.slots]
        layers, stages = torch.broadcast_shapes((1, 1), *(value.shape[1:3] for value in used))
        sample = sample if any(len(value) > 1 for value in used) else 0
        keys = [(tokens, sample, layer, stage) for layer in range(layers) for stage in range(stages)]
        return torch.tensor([rows.setdefault(key, len(rows)) for key in keys]).view(layers, stages)

    def _encode_rows(self, rows: Sequence[tuple], vectors: Mapping[str, Tensor]) -> Tensor:
        """(R, T, D): one call of the text encoder, the vectors put in behind its word embedding.

        `CLIPTextModel` takes no `inputs_embeds`, hence the hook, which stands for this call only.
        """
        device = self.embedding_weight.device
        spliced, where = [], []
        for row, (tokens, *cell) in enumerate(rows):
            for name, position in tokens.slots:
                value = vectors[name]
                cell_KD = value[tuple(min(i, size - 1) for i, size in zip(cell, value.shape, strict=False))]
                spliced.append(cell_KD)
                where += [(row, position + k) for k in range(len(cell_KD))]

        def splice(module, args, embedded_RTD: Tensor) -> Tensor:
            row_N, position_N = torch.tensor(where, device=embedded_RTD.device).unbind(1)
            return embedded_RTD.index_put((row_N, position_N), torch.cat(spliced))

        ids_RT = torch.tensor([tokens.ids for tokens, *_ in rows], device=device)
        hook = self.text_encoder.get_input_embeddings().register_forward_hook(splice) if spliced else None
        try:
            return self.text_encoder(ids_RT)[0]
        finally:
            if hook is not None:
                hook.remove()


def _collapse(vectors_BLSKD: Tensor) -> Tensor:
    """Narrow the layer and stage axes that were expanded from one value (stride 0), to encode it once."""
    for axis in (1, 2):
        if vectors_BLSKD.stride(axis) == 0:
            vectors_BLSKD = vectors_BLSKD.narrow(axis, 0, 1)
    return vectors_BLSKD
