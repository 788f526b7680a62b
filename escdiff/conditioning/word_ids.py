"""A tokenizer that threads may share.

transformers' tokenizer keeps padding and truncation as settings, which each call may change under another thread's.
"""

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


class WordIds:
    """Token ids of texts, without start and end marks, by a tokenizer's vocabulary and never by its settings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._own, self._added = tokenizer, None, None

    def __call__(self, text: str) -> list[int]:
        return self._mine().encode(text, add_special_tokens=False).ids

    def _mine(self) -> Tokenizer:
        """Over the same vocabulary; made anew when the words added to it are others, such as a textual inversion's."""
        if self._added != (added := self.tokenizer.get_added_vocab()):
            theirs = self.tokenizer.backend_tokenizer
            own = Tokenizer(theirs.model)
            for part in ("normalizer", "pre_tokenizer"):
                setattr(own, part, getattr(theirs, part))
            for _, token in sorted(theirs.get_added_tokens_decoder().items()):  # in the order that gave them their ids
                (own.add_special_tokens if token.special else own.add_tokens)([token])
            self._own, self._added = own, added
        return self._own
