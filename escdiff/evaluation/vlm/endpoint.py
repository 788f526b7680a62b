"""A judge behind an OpenAI-compatible address: a service's, or one of your own such as vLLM's or Ollama's."""

import base64
import email.utils
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any

from PIL import Image

from escdiff.evaluation.vlm.messages import Message
from escdiff.evaluation.vlm.reply import Reply
from escdiff.support.errors import UserError

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"  # of the environment, as OpenAI's own client names them
SERVICE = "https://api.openai.com/v1"
PATIENCE, LONGEST, TIMEOUT = 6, 60.0, 180.0  # tries at an address that is busy; seconds between two; of one
LATER = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP codes that another try may mend
FILTERS = ("content_filter", "content_policy_violation", "moderation_blocked")


class Endpoint:
    """Asks a model by `POST URL/chat/completions`.

    Attributes:
        identity: model and address; answers of another judge are not its own.

    Raises:
        UserError: no key for OpenAI's own service, or an address that is none.
    """

    def __init__(
        self, model: str, temperature: float = 0.0, max_tokens: int = 200,
        environment: Mapping[str, str] = os.environ, sleep: Callable[[float], Any] = time.sleep,
    ) -> None:  # fmt: skip
        self.model, self.temperature, self.max_tokens, self._sleep = model, temperature, max_tokens, sleep
        self.url = environment.get(URL, SERVICE).rstrip("/")
        self._key = environment.get(KEY, "")
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"{URL} is {self.url!r}; give an address such as http://localhost:8000/v1")
        if self.url == SERVICE and not self._key:
            raise UserError(f"{KEY} is not set; set it to your key, or {URL} to the address of another service")
        self.identity = f"openai:{model} at {self.url}"

    def reply(self, messages: Sequence[Message]) -> Reply:
        """Ask, and ask again while the address is busy or out of reach.

        Returns:
            The answer. What the service's own filter refuses is an answer, too, without a score.

        Raises:
            UserError: the address stays out of reach, or refuses the key, the model or the request.
        """
        body = {
            "model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens,
            "messages": [{"role": role, "content": _content(parts)} for role, parts in messages],
        }  # fmt: skip
        for attempt in range(PATIENCE):
            try:
                return _read(self._post(body))
            except urllib.error.HTTPError as error:
                with error:
                    answer = error.read(4000).decode(errors="replace")
                if any(word in answer for word in FILTERS):
                    return Reply(f"refused: {answer}")
                if "max_completion_tokens" in answer and "max_tokens" in body:  # as OpenAI's newer models call it
                    body["max_completion_tokens"] = body.pop("max_tokens")
                    continue
                if error.code not in LATER:
                    raise UserError(self._refused(error.code, answer)) from None
                reason, wait = f"HTTP {error.code}", _asked_for(error.headers.get("Retry-After", ""))
            except (OSError, ValueError, HTTPException) as error:  # no connection, no JSON, or half an answer
                reason, wait = str(getattr(error, "reason", error)) or type(error).__name__, 0.0
            if attempt + 1 < PATIENCE:
                self._sleep(min(max(wait, 2.0**attempt), LONGEST))
        problem = f"the judge at {self.url} did not answer after {PATIENCE} tries ({reason})"
        raise UserError(f"{problem}; the same command goes on after the answers that are there")

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.loads(answer.read())

    def _refused(self, code: int, answer: str) -> str:
        hint = {401: f"check {KEY}", 403: f"check {KEY}", 404: f"check {URL} and the model's name"}.get(
            code, "check that the model takes pictures, and the rubrics' temperature"
        )
        return f"the judge at {self.url} refused the model {self.model} (HTTP {code}: {_short(answer)}); {hint}"


def _read(answer: dict[str, Any]) -> Reply:
    try:
        message, usage = answer["choices"][0]["message"], answer.get("usage") or {}
        text = message.get("content") or f"refused: {message.get('refusal') or 'an empty answer'}"
        return Reply(str(text), int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer without choices: {_short(json.dumps(answer))}") from error


def _content(parts: Sequence[str | Image.Image]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _url(part)}}
        for part in parts
    ]


def _url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _asked_for(header: str) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 where it is neither."""
    try:
        return float(header)
    except ValueError:
        parsed = email.utils.parsedate_tz(header)
        return max(email.utils.mktime_tz(parsed) - time.time(), 0.0) if parsed else 0.0


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
