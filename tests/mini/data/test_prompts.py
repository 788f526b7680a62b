import numpy as np

from escdiff.data import prompts
from escdiff.mini.data.prompts import still_life_prompt
from escdiff.mini.world import world


def test_prompts_never_say_what_a_placeholder_stands_for():
    rng = np.random.default_rng(0)
    for _ in range(200):
        factors = world.sample_factors(rng)
        material, family = factors.material, factors.shape.family
        both = still_life_prompt(factors, prompts.BOTH, rng).split(" on a")[0]
        assert prompts.uses(both, "shape") and prompts.uses(both, "appearance")
        assert family not in both and material.color not in both.split("colored")[0].split()
        shape = still_life_prompt(factors, prompts.SHAPE_ONLY, rng).split(" on a")[0]
        assert "<shape>" in shape and "<appearance>" not in shape
        assert material.color in shape and family not in shape.split()
        look = still_life_prompt(factors, prompts.APPEARANCE_ONLY, rng).split(" on a")[0]
        assert "<appearance>" in look and "<shape>" not in look
        assert family in look.split() and material.color not in look.split()
