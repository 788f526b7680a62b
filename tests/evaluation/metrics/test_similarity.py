import numpy as np
import pytest
import torch

from escdiff.evaluation.metrics.build import make_metrics, read_metrics
from escdiff.evaluation.metrics.features import ClassToken, Clip
from escdiff.evaluation.metrics.similarity import ImageSimilarity, KernelDistance, TextSimilarity
from escdiff.support.errors import UserError

TEXTS = ["a red cube", "two dogs on a beach", "a mug", "a photo of a very large chair"]


class Given:
    """Vectors that are known beforehand: a picture is its own vector."""

    def pictures(self, pictures):
        return torch.tensor(pictures, dtype=torch.float32)

    texts = pictures


def test_cosines_by_hand():
    metric = ImageSimilarity(Given())
    got = metric.score([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.6, 0.8]])
    assert got.tolist() == pytest.approx([(1 + 0.6) / 2, (0 + 0.8) / 2])


def test_the_mean_is_over_all_pairs():
    metric = ImageSimilarity(Given())
    metric.update([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    metric.update([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]])
    assert metric.compute().item() == pytest.approx((0.5 + 1 + 0) / 3)
    metric.reset()
    metric.update([[1.0, 0.0]], [[1.0, 0.0]])
    assert metric.compute().item() == 1


def test_a_placeholder_is_never_scored(clip_folder, pictures):
    for text in ("a <concept> on a beach", "a * on a beach"):
        with pytest.raises(ValueError, match="placeholder"):
            TextSimilarity(Clip(clip_folder)).score(pictures[:1], [text])


def test_clip_t_is_the_stock_models_without_its_temperature(clip_folder, pictures):
    """torchmetrics' own CLIPScore fails with transformers 5, whose feature methods give no tensor."""
    from transformers import AutoProcessor, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    inputs = AutoProcessor.from_pretrained(clip_folder)(text=TEXTS, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    ours = TextSimilarity(Clip(clip_folder)).score(pictures, TEXTS)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert ours.abs().max() <= 1


@pytest.mark.parametrize("kind", ["clip", "dino", "dinov2"])
def test_identical_pictures_score_one_and_others_less(kind, pictures, request):
    folder = request.getfixturevalue(f"{kind}_folder")
    metric = ImageSimilarity((Clip if kind == "clip" else ClassToken)(folder))
    right = torch.cat([metric.score([p], [p]) for p in pictures])
    wrong = torch.cat([metric.score([p], [q]) for p, q in zip(pictures, pictures[1:] + pictures[:1], strict=True)])
    assert right.tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert (wrong < right).all() and wrong.mean() < right.mean() - 1e-4


def test_dino_is_the_class_token_of_the_stock_model(dino_folder, pictures):
    from transformers import AutoImageProcessor, AutoModel

    pixels = AutoImageProcessor.from_pretrained(dino_folder)(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(dino_folder)(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(ClassToken(dino_folder).pictures(pictures), theirs)


def test_kid_by_hand_and_by_its_reference():
    """The unbiased estimate with the kernel (x.y / d + 1)^3, of all pictures at once."""
    rng = np.random.default_rng(0)
    fake, real = rng.normal(size=(2, 6, 4))
    kernel = lambda a, b: (a @ b.T / 4 + 1) ** 3  # noqa: E731
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (6 * 5) for x in (fake, real))
    expected = within - 2 * kernel(fake, real).mean()
    metric = KernelDistance(Given())
    metric.update(fake.tolist(), real.tolist())
    assert metric.compute().item() == pytest.approx(expected, abs=1e-4)
    reference = pytest.importorskip("torch_fidelity.metric_kid")
    options = {"kid_subsets": 3, "kid_subset_size": 6, "rng_seed": 0, "verbose": False}
    found = reference.kid_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **options)
    assert metric.compute().item() == pytest.approx(found["kernel_inception_distance_mean"], abs=1e-4)


def test_kid_of_one_picture_is_not_a_number():
    metric = KernelDistance(Given())
    metric.update([[1.0]], [[1.0]])
    assert metric.compute().isnan()


def test_metrics_come_from_configuration(tmp_path, pictures):
    metrics = make_metrics(read_metrics("mini"))
    assert {"clip_t", "clip_i", "kid", "mask_iou"} <= set(metrics)
    assert metrics["clip_t"].clip is metrics["clip_i"].features  # read once
    assert metrics["clip_i"].score(pictures[:1], pictures[:1]).item() == pytest.approx(1, abs=1e-5)
    assert {"dino", "dinov2", "lpips"} <= set(read_metrics("standard")) <= set(read_metrics("full"))
    for text, said in [("clip_t: 3", "kind"), ("clip_t: {kind: other}", "kind"), ("a: [", "no YAML")]:
        (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=said):
            read_metrics(str(tmp_path / "own.yaml"))
    with pytest.raises(UserError, match="standard"):
        read_metrics("nothing")
    with pytest.raises(UserError, match="does not take"):
        make_metrics({"x": {"kind": "mask_iou", "model": "mini"}})
    with pytest.raises(UserError, match="cannot be loaded"):
        make_metrics({"x": {"kind": "token", "model": str(tmp_path)}})["x"].score(pictures, pictures)
