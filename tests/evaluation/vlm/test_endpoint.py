"""The judge behind an address, against a server of our own."""

import pytest
from judge_server import said, serving
from PIL import Image

from escdiff.evaluation.vlm.endpoint import PATIENCE, Endpoint
from escdiff.evaluation.vlm.messages import conversation
from escdiff.support.errors import UserError

MESSAGES = conversation("Be strict.", "How alike?", [Image.new("RGB", (8, 8), "red")] * 2, 4)


def endpoint(url, slept=None, key="sk-1"):
    environment = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key}
    return Endpoint("a-model", environment=environment, sleep=(slept if slept is not None else []).append)


def test_the_question_arrives_whole():
    with serving() as (url, bodies):
        reply = endpoint(url + "/").reply(MESSAGES)
    assert (reply.text, reply.tokens_in, reply.tokens_out) == ('{"score": 4}', 1000, 10)
    (body,) = bodies
    assert body["path"] == "/v1/chat/completions" and body["key"] == "Bearer sk-1" and body["model"] == "a-model"
    assert [m["role"] for m in body["messages"]] == ["system", "user"] and body["temperature"] == 0
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    assert body["messages"][1]["content"][0]["text"] == "Picture 1 (reference):"
    assert "from 0 to 4" in body["messages"][1]["content"][-1]["text"]


def test_a_busy_server_is_waited_for_as_long_as_it_says():
    slept = []
    busy = lambda body, number: (429, {"error": "slow down"}, {"Retry-After": "7"}) if number < 3 else None  # noqa: E731
    with serving(busy) as (url, bodies):
        assert endpoint(url, slept).reply(MESSAGES).text == '{"score": 4}'
    assert slept == [7.0, 7.0] and len(bodies) == 3


def test_a_server_out_of_reach_ends_the_run_and_not_in_scores():
    with serving(lambda body, number: (503, {}, {})) as (url, bodies), pytest.raises(UserError, match="HTTP 503"):
        endpoint(url).reply(MESSAGES)
    assert len(bodies) == PATIENCE
    with pytest.raises(UserError, match="did not answer"):
        endpoint(url).reply(MESSAGES)  # nobody listens there any more
    with (
        serving(lambda body, number: (200, {"choices": []}, {})) as (url, _),
        pytest.raises(UserError, match="choices"),
    ):
        endpoint(url).reply(MESSAGES)


def test_an_answer_that_breaks_off_is_asked_for_again():
    slept = []
    breaks_off = lambda body, number: (200, {}, {"Content-Length": "100", "Sent": "1"}) if number < 3 else None  # noqa: E731
    with serving(breaks_off) as (url, bodies):
        assert endpoint(url, slept).reply(MESSAGES).text == '{"score": 4}'
    assert slept == [1.0, 2.0] and len(bodies) == 3
    with (
        serving(lambda body, number: (200, {}, {"Content-Length": "100"})) as (url, _),
        pytest.raises(UserError, match="IncompleteRead"),
    ):
        endpoint(url).reply(MESSAGES)


@pytest.mark.parametrize(("code", "words"), [(401, "OPENAI_API_KEY"), (404, "OPENAI_BASE_URL"), (400, "pictures")])
def test_what_no_other_try_mends_is_said_at_once(code, words):
    refuses = lambda body, number: (code, {"error": "no such thing"}, {})  # noqa: E731
    with serving(refuses) as (url, bodies), pytest.raises(UserError, match=words) as caught:
        endpoint(url).reply(MESSAGES)
    assert len(bodies) == 1 and "no such thing" in str(caught.value) and "sk-1" not in str(caught.value)


def test_newer_models_have_another_word_for_the_most_tokens():
    newer = lambda body, number: (400, {"error": "use max_completion_tokens"}, {}) if "max_tokens" in body else None  # noqa: E731
    with serving(newer) as (url, bodies):
        assert endpoint(url).reply(MESSAGES).text == '{"score": 4}'
    assert bodies[1]["max_completion_tokens"] == 200


def test_a_refusal_is_an_answer_without_a_score():
    refuses = lambda body, number: (200, said(None, refusal="I will not."), {})  # noqa: E731
    with serving(refuses) as (url, _):
        assert endpoint(url).reply(MESSAGES).text == "refused: I will not."
    blocked = {"error": {"code": "content_policy_violation"}}
    with serving(lambda body, number: (400, blocked, {})) as (url, _):
        assert endpoint(url).reply(MESSAGES).text.startswith("refused: ")


def test_key_and_address_come_from_the_environment():
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        Endpoint("m", environment={})
    with pytest.raises(UserError, match="http://localhost"):
        Endpoint("m", environment={"OPENAI_BASE_URL": "localhost"})
    assert Endpoint("m", environment={"OPENAI_BASE_URL": "http://here/v1"}).identity == "openai:m at http://here/v1"
