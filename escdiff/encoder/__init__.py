"""The concept encoder: frozen vision tower, shape and appearance filters, gates, U-Net branches."""

from escdiff.encoder.encoder import ConceptEncoder
from escdiff.encoder.vision import VisionBackbone, load_vision
from escdiff.support.config.encoder import EncoderConfig

__all__ = ["ConceptEncoder", "EncoderConfig", "VisionBackbone", "load_vision"]
