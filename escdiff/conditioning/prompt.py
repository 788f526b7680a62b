"""Prompts with placeholders: learned vectors enter the text encoders where `<shape>` stands in the text.

Legend: B batch, L layer cell, S stage, K vectors per placeholder, T token position, D width, R rows encoded,
P width of the pooled states.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from escdiff.conditioning.text_tower import TextTower, Tokens
from escdiff.support.errors import UserError


class PromptEncoder:
    """Encodes prompts for every cell of a conditioning space with one frozen CLIP text encoder, or SDXL's two.

    With two, word vectors and hidden states are those of both, one behind the other along D, as SDXL's U-Net reads.

    Attributes:
        max_length: T, token positions with start and end marks (77).
        width: D, of all text encoders together.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        text_encoder_2: PreTrainedModel | None = None,
    ) -> None:
        pairs = [(tokenizer, text_encoder), (tokenizer_2, text_encoder_2)][: 1 + (text_encoder_2 is not None)]
        self.towers = [TextTower(*pair, penultimate=len(pairs) > 1) for pair in pairs]
        self.max_length = min(tower.max_length for tower in self.towers)
        self.width = sum(tower.width for tower in self.towers)

    @property
    def embedding_weight(self) -> Tensor:
        """(V, D) word embeddings of the vocabulary."""
        weights = [tower.embedding_weight for tower in self.towers]
        return weights[0] if len(weights) == 1 else torch.cat(weights, dim=1)

    @cached_property
    def embedding_scale(self) -> float:
        """Mean Euclidean norm of the vocabulary's word embeddings, special tokens apart."""
        norms = self.embedding_weight.detach().float().norm(dim=1)
        words = torch.ones_like(norms, dtype=torch.bool)
        words[list(self.towers[0].tokenizer.all_special_ids)] = False
        return norms[words].mean().item()

    def fingerprint(self) -> str | None:
        """Twelve hexadecimal digits of the word embeddings, equal for a model's float32 and float16 files.

        Words that were added to the vocabulary do not count. None for bfloat16 weights, which have lost the digits.
        """
        if any(tower.embedding_weight.dtype not in (torch.float32, torch.float16) for tower in self.towers):
            return None
        digest = hashlib.sha256()
        for tower in self.towers:
            weight = tower.embedding_weight.detach()[: tower.tokenizer.vocab_size]
            digest.update(weight.to("cpu", torch.float16).contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:12]

    def word_embedding(self, text: str, num_vectors: int | None = None) -> Tensor:
        """(K, D) word embeddings of a word or phrase, one per token; with `num_vectors`, their mean K times.

        Raises:
            UserError: the text has no token.
        """
        parts = []
        for tower in self.towers:
            ids = tower.word_ids(text)
            if not ids:
                raise UserError(f"the text {text!r} has no token; give a word such as 'object'")
            parts.append(tower.embedding_weight.detach()[ids])
        rows = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].clone()
        return rows if num_vectors is None else rows.mean(0, keepdim=True).repeat(num_vectors, 1)

    def spread(self, phrase: str, count: int) -> Tensor:
        """A phrase's embeddings over `count` vectors (K, D), see the function `spread`."""
        return spread(self.word_embedding(phrase).float(), count)

    def tokenize(self, prompt: str, known: Mapping[str, int], required: Sequence[str] = ()) -> Tokens:
        """See `TextTower.tokenize`; both of SDXL's tokenizers give the same positions."""
        return self.towers[0].tokenize(prompt, known, required)

    def encode_plain(self, prompts: Sequence[str]) -> Tensor:
        """(B, 1, 1, T, D) hidden states of prompts without placeholders, equal to the stock pipeline's."""
        return self.encode(prompts)

    def encode(
        self,
        prompts: Sequence[str],
        vectors: Mapping[str, Tensor] | None = None,
        required: Sequence[str] = (),
    ) -> Tensor:
        """The conditioning grid of `encode_pooled` alone."""
        return self.encode_pooled(prompts, vectors, required)[0]

    def encode_pooled(
        self,
        prompts: Sequence[str],
        vectors: Mapping[str, Tensor] | None = None,
        required: Sequence[str] = (),
        second: Sequence[str] | None = None,
        skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The conditioning grid (B, L, S, T, D) of prompts whose placeholders are replaced by word vectors.

        The rows of all cells go through a text encoder in one call, and equal rows once: a prompt without
        placeholder, a vector axis of size 1 (or expanded from it), the same prompt twice. Gradients reach
        `vectors`.

        Args:
            prompts: B texts; longer ones are cut at T tokens, as the stock pipeline does.
            vectors: `{"<shape>": (B|1, L|1, S|1, K, D)}`. L and S of the result are their common sizes, 1 without.
            required: placeholders that every prompt must contain.
            second: other texts for the second text encoder, the `prompt_2` of diffusers.
            skip: layers left out at the end, the `clip_skip` of diffusers.

        Returns:
            The grid, and of SDXL the pooled states (B, P), the mean over a prompt's cells; None of the others.

        Raises:
            UserError: a placeholder without vectors, a required one missing, one that reaches beyond the last
                token, or vectors that do not fit B, D or each other.
        """
        return self.encode_tokens(self.tokenize_all(prompts, vectors, required, second), vectors, skip)

    def tokenize_all(
        self,
        prompts: Sequence[str],
        vectors: Mapping[str, Tensor] | None = None,
        required: Sequence[str] = (),
        second: Sequence[str] | None = None,
    ) -> list[tuple[Tokens, ...]]:
        """Of every prompt the tokens for each text encoder; see `encode_pooled`."""
        if isinstance(prompts, str):
            raise UserError(f"one prompt {prompts!r} was given, expected a list of prompts: put it in a list")
        vectors = vectors or {}
        self._grid_size(vectors, len(prompts))  # which refuses vectors of another shape
        known = {name: value.shape[3] for name, value in vectors.items()}
        texts = [prompts, second or prompts][: len(self.towers)]
        return [
            tuple(tower.tokenize(text, known, required) for tower, text in zip(self.towers, own, strict=True))
            for own in zip(*texts, strict=True)
        ]

    def encode_tokens(
        self, tokens: Sequence[tuple[Tokens, ...]], vectors: Mapping[str, Tensor] | None = None, skip: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The conditioning grid and the pooled states of prompts that `tokenize_all` has read; see `encode_pooled`."""
        weight = self.towers[0].embedding_weight
        vectors = vectors or {}
        layers, stages = self._grid_size(vectors, len(tokens))
        # Collapsed first: a cast would copy the repeated cells.
        vectors = {k: _collapse(value).to(self.towers[0].device, weight.dtype) for k, value in vectors.items()}
        rows: dict[tuple, int] = {}  # (tokens, sample, layer, stage) that really differ -> row of the batch
        index = [self._rows_of(sample, vectors, b, rows) for b, sample in enumerate(tokens)]
        if not rows:
            return weight.new_zeros(0, layers, stages, self.max_length, self.width), None
        hidden_RTD, pooled_RP = self._encode_rows(list(rows), vectors, skip)
        common = torch.broadcast_shapes(*(cells.shape for cells in index))
        index_BLS = torch.stack([cells.expand(common) for cells in index]).to(hidden_RTD.device)
        grid = hidden_RTD[index_BLS].expand(-1, layers, stages, -1, -1)
        if pooled_RP is None:
            return grid, None
        return grid, torch.stack([pooled_RP[cells.flatten().to(pooled_RP.device)].mean(0) for cells in index])

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

    def _rows_of(self, tokens: tuple[Tokens, ...], vectors: Mapping[str, Tensor], sample: int, rows: dict) -> Tensor:
        """(L|1, S|1) row numbers of one prompt's cells; new rows are appended to `rows`."""
        used = [vectors[name] for part in tokens for name, _ in part.slots]
        layers, stages = torch.broadcast_shapes((1, 1), *(value.shape[1:3] for value in used))
        sample = sample if any(len(value) > 1 for value in used) else 0
        keys = [(tokens, sample, layer, stage) for layer in range(layers) for stage in range(stages)]
        return torch.tensor([rows.setdefault(key, len(rows)) for key in keys]).view(layers, stages)

    def _encode_rows(
        self, rows: Sequence[tuple], vectors: Mapping[str, Tensor], skip: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """(R, T, D) and (R, P): one call of every tower, its part of the vectors put in behind its word embedding."""
        hidden, pooled, first = [], None, 0
        for i, tower in enumerate(self.towers):
            own = {name: value[..., first : first + tower.width] for name, value in vectors.items()}
            first += tower.width
            spliced, where = _splices([(tokens[i], cell) for tokens, *cell in rows], own)
            ids_RT = torch.tensor([tokens[i].ids for tokens, *_ in rows], device=tower.device)
            change, first_slot = None, 0
            if spliced:
                change = partial(_put, spliced=torch.cat(spliced), where=where, length=ids_RT.shape[1])
                if len({row for row, _ in where}) == len(rows):  # else a plain text would end before the first slot
                    first_slot = min(position for _, position in where)
            states, projected = tower.run(ids_RT, change, first_slot, skip)
            hidden.append(states)
            pooled = projected if pooled is None else pooled
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1), pooled if len(hidden) > 1 else None


def spread(words_ND: Tensor, count: int) -> Tensor:
    """Vectors of the words of a phrase laid out over `count` (K, D), in order: repeated or averaged."""
    if len(words_ND) <= count:
        return words_ND[torch.arange(count) * len(words_ND) // count]
    return F.adaptive_avg_pool1d(words_ND.T, count).T


def _splices(rows: Sequence[tuple], vectors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Word vectors (K, D) one after the other, and the (row, position) of each."""
    spliced, where = [], []
    for row, (tokens, cell) in enumerate(rows):
        for name, position in tokens.slots:
            value = vectors[name]
            cell_KD = value[tuple(min(i, size - 1) for i, size in zip(cell, value.shape, strict=False))]
            spliced.append(cell_KD)
            where += [(row, position + k) for k in range(len(cell_KD))]
    return spliced, where


def _put(ids: Tensor, embedded: Tensor, spliced: Tensor, where: list[tuple[int, int]], length: int) -> Tensor:
    """Word embeddings (R, T, D), or of their `length` positions the last ones, with (N, D) at (row, position) pairs."""
    row_N, position_N = torch.tensor(where, device=embedded.device).unbind(1)
    return embedded.index_put((row_N, position_N - length + embedded.shape[1]), spliced.to(embedded))


def _collapse(vectors_BLSKD: Tensor) -> Tensor:
    """Narrow the layer and stage axes that were expanded from one value (stride 0), to encode it once."""
    for axis in (1, 2):
        if vectors_BLSKD.stride(axis) == 0:
            vectors_BLSKD = vectors_BLSKD.narrow(axis, 0, 1)
    return vectors_BLSKD
