"""A stub judge that answers by rule, as a stand-in for a vision-language model; it knows nothing about pictures.

Two or more pictures: the scale less one point for every 32 grey levels between the mean colours of the first and the
last. One picture: one point for every 64 grey levels of its mean brightness. So figures are known beforehand.
"""

import base64
import io
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from escdiff.evaluation.vlm.reply import Reply


def rule(pictures, scale: int) -> int:
    means = [np.asarray(picture.convert("RGB"), float).mean((0, 1)) for picture in pictures]
    if len(means) == 1:
        return min(int(means[0].mean() // 64), scale)
    return max(scale - int(np.abs(means[0] - means[-1]).max() // 32), 0)


def scale_of(text: str) -> int:
    return int(re.findall(r"from 0 to (\d+)", text)[-1])


class RuleJudge:
    """Answers in this process; `spoil(text, number of answers before)` may answer first."""

    identity = "stub that answers by rule"

    def __init__(self, spoil=lambda text, before: None) -> None:
        self.spoil, self.asked, self._lock = spoil, [], threading.Lock()

    def reply(self, messages):
        question = next(parts for role, parts in messages if role == "user")
        text, before = question[-1], sum(role == "assistant" for role, _ in messages)
        with self._lock:
            self.asked.append(text)
        spoiled = self.spoil(text, before)
        score = rule([part for part in question if isinstance(part, Image.Image)], scale_of(text))
        return Reply(spoiled or json.dumps({"score": score, "reason": "by rule"}), 1000, 10)


@contextmanager
def serving(answer=None):
    """The same behind an OpenAI-compatible address; yields (URL, list of the bodies that were asked).

    `answer(body, number)` may give (HTTP code, JSON, headers) in the rule's place; of a header Sent, so many bytes are
    sent of the answer.
    """
    bodies, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body["path"], body["key"] = self.path, self.headers.get("Authorization")
            with lock:
                bodies.append(body)
                number = len(bodies)
            code, values, headers = (answer and answer(body, number)) or (200, by_rule(body), {})
            data = json.dumps(values).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: int(headers.get("Sent", len(data)))])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def by_rule(body: dict) -> dict:
    content = next(m["content"] for m in body["messages"] if m["role"] == "user")
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]
    return said(json.dumps({"score": rule(pictures, scale_of(content[-1]["text"]))}))


def said(text, **message) -> dict:
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    return {"choices": [{"message": {"content": text, **message}}], "usage": usage}
