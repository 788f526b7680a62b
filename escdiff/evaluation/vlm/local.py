"""A judge on this machine: an image-text-to-text model of transformers."""

import threading
from collections.abc import Sequence

import torch
import transformers

from escdiff.evaluation.vlm.messages import Message
from escdiff.evaluation.vlm.reply import Reply
from escdiff.support.errors import UserError, reason_of


class LocalModel:
    """A model with a chat template, such as Qwen2.5-VL, by hub id or folder; bfloat16 on a GPU.

    Raises:
        UserError: it cannot be loaded, or its processor has no chat template.
    """

    def __init__(self, name: str, temperature: float = 0.0, max_tokens: int = 200, device: str = "cpu") -> None:
        self.temperature, self.max_tokens = temperature, max_tokens
        self.identity, self._lock = f"transformers:{name}", threading.Lock()
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(name)
            self._model = transformers.AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, use_safetensors=True
            ).to(device)
        except (OSError, ValueError, KeyError, ImportError) as error:
            problem = f"the judge {name} cannot be loaded ({reason_of(error)})"
            raise UserError(f"{problem}; give a folder or hub id of an image-text-to-text model") from error
        if not getattr(self._processor, "chat_template", None):
            raise UserError(f"the judge {name} has no chat template; give a model that was tuned on instructions")

    def reply(self, messages: Sequence[Message]) -> Reply:
        """Sample the next answer, greedily at a temperature of 0; one at a time, whoever asks."""
        conversation = [{"role": role, "content": [_part(part) for part in parts]} for role, parts in messages]
        options = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        with self._lock, torch.inference_mode():
            inputs = self._processor.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self._model.device, self._model.dtype)
            out = self._model.generate(**inputs, max_new_tokens=self.max_tokens, **options)
        count = inputs["input_ids"].shape[1]
        text = self._processor.batch_decode(out[:, count:], skip_special_tokens=True)[0]
        return Reply(text, count, out.shape[1] - count)


def _part(part) -> dict:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
