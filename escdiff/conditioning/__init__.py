"""The conditioning space, its grid, the prompts that fill it and the U-Net that reads it."""

from escdiff.conditioning.binding import Binding, bind
from escdiff.conditioning.prompt import PromptEncoder
from escdiff.conditioning.space import ConditioningSpace, cross_attention_layers, layer_groups

__all__ = ["Binding", "ConditioningSpace", "PromptEncoder", "bind", "cross_attention_layers", "layer_groups"]
