"""A judge of transformers' own classes: tiny, random, with a chat template."""

import pytest
import torch
import transformers
from PIL import Image

from escdiff.evaluation.vlm.local import LocalModel
from escdiff.evaluation.vlm.messages import conversation
from escdiff.evaluation.vlm.panel import Item, Panel
from escdiff.evaluation.vlm.rubrics import Question, Rubrics
from escdiff.mini.parts import make_tokenizer
from escdiff.support.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LLaVA's architecture: CLIP's tower, Llama's text model, four tokens a picture."""
    place, tokenizer = tmp_path_factory.mktemp("judge"), make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tower = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=image, vision_feature_layer=-1
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(place)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=16, chat_template=TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(place)
    return place


def test_it_reads_pictures_and_answers(folder):
    judge = LocalModel(str(folder), max_tokens=4)
    ask = lambda color: judge.reply(conversation("", "How alike?", [Image.new("RGB", (40, 40), color)] * 2, 4))  # noqa: E731
    reply = ask("red")
    assert reply.tokens_out <= 4 and reply.tokens_in > 20 and reply.text == ask("red").text
    assert judge.identity == f"transformers:{folder}"


@pytest.mark.slow
def test_its_babble_is_no_score(folder, tmp_path):
    rubrics = Rubrics((Question("look", "whole", "How alike?"),), attempts=1)
    panel = Panel(LocalModel(str(folder), max_tokens=3), rubrics, tmp_path)
    assert panel.ask([Item("How alike?", (Image.new("RGB", (8, 8)),) * 2)]) == [None] and panel.bill.missing == 1


def test_a_model_without_a_template_is_refused(folder):
    (folder / "chat_template.jinja").rename(folder / "kept")
    try:
        with pytest.raises(UserError, match="chat template"):
            LocalModel(str(folder))
    finally:
        (folder / "kept").rename(folder / "chat_template.jinja")
