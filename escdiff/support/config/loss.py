"""The block `loss`: what the training of the concept encoder minimises."""

from dataclasses import dataclass

from escdiff.support.config.keys import key


@dataclass
class LossConfig:
    """Weights of the loss terms, each of which may be 0, and shares of the samples."""

    high_noise_bias: float = key(0.5, "density of timesteps is proportional to t^bias", low=-0.99)
    object_weight: float = key(1.0, "how often the object's positions count in the U-Net's error (unet)", low=0)
    draws: int = key(4, "noised copies of each target per step; one encoding serves them all", low=1)
    cells: int = key(2, "different layers encoded per step; 0 for all", low=0)
    exact_from: float = key(0.9, "share of the run after which all layers differ, as at inference", low=0)
    mask: float = key(0.5, "weight of the denoising error within the object", low=0)
    words: float = key(0.1, "weight of the distance from the caption's own words", low=0)
    words_only: float = key(0.25, "share of the run that trains on words alone, without the diffusion model", low=0)
    invariance: float = key(0.05, "weight of: same shape in another material, same features; likewise material", low=0)
    pairs_every: int = key(2, "steps between the terms on pairs: invariance, independence, instances", low=1)
    independence: float = key(0.02, "weight of the cross-correlation of the two heads' features", low=0)
    instances: float = key(0.0, "weight of the contrast of each head's features: an instance against all others", low=0)
    gates: float = key(0.001, "weight of the mean gate (sparsity)", low=0)
    residual: float = key(0.001, "weight of the mean square of what is added to the anchor words", low=0)
    anchor: float = key(0.0, "share of the loss that is the words' distance from their initial words (method)",
                        low=0, high=1)  # fmt: skip
    terms: dict[str, float] = key({}, "weights of other packages' terms; loss.NAME=WEIGHT sets one")
    drop_shape: float = key(0.1, "share of samples whose shape is a learned null", low=0, high=1)
    drop_appearance: float = key(0.1, "share of samples whose appearance is a learned null", low=0, high=1)
    drop_text: float = key(0.05, "share of prompts without their words, placeholders apart", low=0, high=1)
    drop_mask: float = key(0.7, "share of references shown without their mask, as people give them", low=0, high=1)
