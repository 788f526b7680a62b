"""Would the tests notice? Breaks the objectives of training one by one and runs the tests that should fail.

    python tests/mutants.py            every mutant; exit status 1 if one survives
    python tests/mutants.py target     those whose names hold a text

Each mutant is one exchange of text in a copy of the package. The unbroken copy goes first, and must pass.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PARITY, LOOP = "tests/training/test_parity.py", "tests/training/loop/test_run.py"
ENCODER, METHOD = "escdiff/training/encoder/module.py", "escdiff/training/method/module.py"
TERMS = "escdiff/training/encoder/terms.py"
CONDITION, FEED = "escdiff/backbone/unet_feed.py", "escdiff/conditioning/layer_feed.py"
NOISE, LATENTS = "escdiff/backbone/family/noise.py", "escdiff/backbone/family/latents.py"
PROCESSES = 2
LIBRARIES = ("torch", "diffusers", "transformers", "lightning", "open_clip", "peft", "pytest")


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (PARITY,)


MUTANTS = (
    Mutant("encoder: target of another sample's noise", ENCODER,
           "backbone.target(latents, noise, timesteps)", "backbone.target(latents, noise.roll(1, 0), timesteps)"),
    Mutant("method: target of another sample's noise", METHOD,
           "backbone.target(latents, noise, timesteps)", "backbone.target(latents, noise.roll(1, 0), timesteps)"),
    Mutant("encoder: shape and appearance references exchanged", ENCODER,
           '**{a: f"{a}_ref" for a in ATTRIBUTES}', '"shape": "appearance_ref", "appearance": "shape_ref"'),
    Mutant("encoder: term within the mask voided", TERMS,
           "return losses.denoising(step.output, step.target, mask=within)", "return 0.0 * step.output.sum()"),
    Mutant("encoder: term within the mask of the whole picture", TERMS,
           'within = step.batch["mask"].repeat', 'within = (0.0 * step.batch["mask"] + 1.0).repeat'),
    Mutant("encoder: independence voided", TERMS, "return losses.independence", "return 0.0 * losses.independence"),
    Mutant("encoder: invariance voided", TERMS, "return sum(losses.invariance", "return 0.0 * sum(losses.invariance"),
    Mutant("encoder: another instance's picture taken for the same one's", TERMS,
           'step.batch.get(f"{attribute}_instance", rows)', "rows"),
    Mutant("encoder: pairs not made up for the steps without", TERMS,
           "objective.pairs_every * weight if name in PAIRED else weight", "weight"),
    Mutant("encoder: weights of the terms ignored", TERMS, "else weight) * value", "else 1.0) * value"),
    Mutant("encoder: masks never dropped", ENCODER, "torch.where(dropped, 1.0, mask)", "mask"),
    Mutant("encoder: masks of the two references exchanged", ENCODER,
           'masks(shown, "shape_mask", *of_target)', 'masks(shown, "appearance_mask", *of_target)'),
    Mutant("encoder: nothing dropped for a null", "escdiff/encoder/encoder.py",
           "torch.where(dropped[:, None, None, None, None], null, residual)", "residual"),
    Mutant("encoder: gates ignored", "escdiff/encoder/encoder.py",
           "self.gates()[attribute][..., None, None] * residuals", "residuals"),
    Mutant("encoder: words of samples that were dropped count", TERMS, "counted & step.kept", "counted"),
    Mutant("encoder: noised copies of one sample are another's", ENCODER,
           "self.latents(batch).repeat_interleave(draws, 0)", "self.latents(batch).repeat(draws, 1, 1, 1)"),
    Mutant("encoder: stage of the first sample for all", ENCODER,
           "value[rows, :, stage]", "value[rows, :, stage[:1]]"),
    Mutant("method: stage of the first sample for all", CONDITION, "stages, own_stage_B = stage_B.unique",
           "stage_B = stage_B[:1].expand_as(stage_B)\n    stages, own_stage_B = stage_B.unique"),
    Mutant("layers in the wrong order", FEED, "grid_BLTD.unbind(1), repeats", "grid_BLTD.flip(1).unbind(1), repeats"),
    Mutant("U-Net told another timestep than the noise's", METHOD,
           "backbone.predict(noisy, timesteps, conditioning",
           "backbone.predict(noisy, (timesteps - 20).clamp(min=0), conditioning"),
    Mutant("noise where the velocity was to be predicted", NOISE,
           "return self.schedule.get_velocity(latents, noise, timesteps)", "return noise"),
    Mutant("latents not scaled for the U-Net", LATENTS,
           "(latents - mean) * scale", "latents - mean"),
    Mutant("prior counts as much as the references", "escdiff/methods/base.py",
           'losses.denoising(output, target, batch.get("weight"))', "losses.denoising(output, target)"),
    Mutant("weight of the prior ignored", "escdiff/training/method/references.py", "2.0 * self.prior.weight", "2.0"),
    Mutant("average of the weights is their last value", "escdiff/training/loop/optim/ema.py",
           "self.model.copy_to(parameters)", "pass", (LOOP,)),
    Mutant("average never taken", "escdiff/training/loop/optim/ema.py", "self.model.step(trainable(pl_module))", "pass",
           (LOOP,)),
)  # fmt: skip


def copy_of(source: Path, target: Path) -> None:
    """The Python files of a package copied, everything else as links."""
    shutil.copytree(
        source, target, copy_function=lambda a, b: shutil.copy(a, b) if a.endswith(".py") else os.symlink(a, b),
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip


def killed(mutant: Mutant | None, folder: Path) -> bool:
    """Whether a test fails on a copy of the package with the mutant in it, made in `folder`. For a process of its own.

    Raises:
        ValueError: the text to exchange is not there exactly once, or the tests did not run to their end.
    """
    import pytest

    copy_of(ROOT / "escdiff", folder / "escdiff")
    if mutant is not None:
        path = folder / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    tests = dict.fromkeys(test for m in (MUTANTS if mutant is None else [mutant]) for test in m.tests)
    sys.path[:0] = [str(folder), str(ROOT / "tests")]  # the copy before the original, which pythonpath would put first
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", "-o", "pythonpath="]
    with open(folder / "log.txt", "w", encoding="utf-8") as log, redirect_stdout(log):
        code = pytest.main([*options, "--rootdir", str(ROOT), *(str(ROOT / test) for test in tests)])
    used = Path(sys.modules["escdiff"].__file__)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not used.is_relative_to(folder):
        raise ValueError(f"the tests of {used} did not run: {(folder / 'log.txt').read_text(encoding='utf-8')[-2000:]}")
    return code == pytest.ExitCode.TESTS_FAILED


def main(chosen: Sequence[str] = ()) -> list[str]:
    """Print the fate of each mutant whose name holds a text of `chosen`; names of those that survive.

    Raises:
        ValueError: the tests fail on the unbroken package, or see `killed`.
    """
    mutants = [m for m in MUTANTS if not chosen or any(text in m.name for text in chosen)]
    context = multiprocessing.get_context("forkserver")  # not on Windows
    context.set_forkserver_preload(list(LIBRARIES))  # imported once, not by every mutant
    pool = ProcessPoolExecutor(PROCESSES, context, max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, pool:
        if pool.submit(killed, None, Path(folder) / "unbroken").result():
            raise ValueError("the tests fail on the unbroken package; mend that first")
        fates = pool.map(killed, mutants, [Path(folder) / str(number) for number in range(len(mutants))])
        survivors = []
        for mutant, dead in zip(mutants, fates, strict=True):
            print(f"{'killed' if dead else 'SURVIVES':<9} {mutant.name}", flush=True)
            survivors += [] if dead else [mutant.name]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} killed")
    return survivors


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
