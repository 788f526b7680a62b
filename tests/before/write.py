"""Writes the files beside it, in a checkout of the version whose formats they keep: 0b6a0da of 2026-11-22.

git worktree add OLD 0b6a0da && cd OLD && python .../tests/before/write.py FOLDER && cp -r FOLDER/before .../tests
"""

import json
import os
import sys
from pathlib import Path

RUN = ["method=xti", "backbone.name=tiny", "data.references=mug", "data.batch_size=2", "trainer.threads=1",
       "trainer.log_steps=1", "run_dir=before/run"]  # fmt: skip


def main(folder: Path) -> None:
    """A run of XTI after two steps, an encoder's configuration and a concept of it, a branch."""
    sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "tests")]
    import numpy as np
    import tiny
    import torch
    from escdiff.encoder.branches import add_branches, branch_parameters, save_branches
    from PIL import Image
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from escdiff.cli import train
    from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision

    (folder / "mug").mkdir(parents=True)
    os.chdir(folder)  # no path of this machine in any file
    backbone, rng = tiny.make_backbone(), np.random.default_rng(0)
    backbone.pipeline().save_pretrained("tiny")
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(Path("mug") / name)
    sys.argv = ["train.py", *RUN]  # which the run's manifest tells
    train._main([*RUN, "trainer.max_steps=2"])
    manifest = Path("before/run/manifest.json")
    told = json.loads(manifest.read_text(encoding="utf-8")) | {"platform": "Linux"}
    manifest.write_text(json.dumps(told), encoding="utf-8")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, patch_size=16)).save_pretrained("tower")
    config = EncoderConfig(vision="tower", shape_depths=(1,), appearance_depths=(0,), features=4, rank=1,
                           tokens={"shape": 1, "appearance": 1})  # fmt: skip
    encoder = ConceptEncoder.for_backbone(config, load_vision("tower"), backbone, backbone.p_plus()).eval()
    encoder.save_pretrained("encoder")
    (folder / "encoder" / "config.json").rename(folder / "before" / "encoder.json")
    encoder.encode(Image.open("mug/a.png"), note="a.png").save("before/encoded.safetensors")
    add_branches(backbone.unet, 1, ("shape",))
    for number, weights in enumerate(branch_parameters(backbone.unet, "shape")):
        torch.nn.init.constant_(weights, 0.01 * (number + 1))
    save_branches(backbone.unet, folder / "before", ("shape",))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
