"""Positions of a phrase among the tokens of a prompt, placeholders of loaded concepts included."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from escdiff.conditioning import PromptEncoder
from escdiff.support.errors import UserError


class Prompts:
    """The texts of one call, one per picture.

    Args:
        texts: None if only embeddings were given.
    """

    def __init__(self, pipeline: DiffusionPipeline, texts: Sequence[str] | None) -> None:
        self.pipeline, self.texts = pipeline, texts

    @property
    def counts(self) -> dict[str, int]:
        """Placeholder -> its number of vectors K, of the concepts that are loaded now."""
        encode = getattr(self.pipeline, "encode_prompt", None)
        words = getattr(encode, "__self__", None)  # `escdiff.pipelines.words.Words`, or the pipeline itself
        return {name: value.shape[3] for name, value in getattr(words, "vectors", {}).items()}

    def positions(self, phrase: str) -> list[list[int]]:
        """Token positions of a phrase in every prompt, of its first occurrence.

        Raises:
            UserError: a prompt lacks it, or only embeddings were given.
        """
        if self.texts is None:
            raise UserError(f"the phrase {phrase!r} needs the prompt's words; give prompt= in place of prompt_embeds=")
        symbols = self._symbols(phrase)
        if not symbols:
            raise UserError("an empty phrase was given; expected words of the prompt")
        return [self._find(phrase, symbols, text) for text in self.texts]

    def _find(self, phrase: str, phrase_symbols: list, text: str) -> list[int]:
        prompt_symbols = self._symbols(text)
        for first in range(len(prompt_symbols) - len(phrase_symbols) + 1):
            if prompt_symbols[first : first + len(phrase_symbols)] == phrase_symbols:
                return list(range(first + 1, first + 1 + len(phrase_symbols)))
        raise UserError(f"the phrase {phrase!r} is not in the prompt {text!r}; write it as it stands there")

    def _symbols(self, text: str) -> list:
        """Token ids without the start and end marks; a placeholder's are (name, k)."""
        tokenizer, counts = self.pipeline.tokenizer, self.counts
        if convert := getattr(self.pipeline, "maybe_convert_prompt", None):  # words of textual inversion
            text = convert(text, tokenizer)
        tokens = PromptEncoder(tokenizer, self.pipeline.text_encoder).tokenize(text, counts)
        symbols = list(tokens.ids)
        for name, first in tokens.slots:
            symbols[first : first + counts[name]] = [(name, k) for k in range(counts[name])]
        return symbols[1 : symbols.index(tokenizer.eos_token_id)]


def split_phrases(phrases: str | Sequence[str]) -> list[str]:
    """ "red mug; blue chair" -> its parts.

    Raises:
        UserError: no phrase, or one twice.
    """
    parts = phrases.split(";") if isinstance(phrases, str) else list(phrases)
    parts = [part.strip() for part in parts if part.strip()]
    if not parts or len(set(parts)) < len(parts):
        raise UserError(f"the phrases {phrases!r} were given; expected different ones, as in 'red mug; blue chair'")
    return parts
