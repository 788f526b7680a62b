"""`python train.py -m ...`: Hydra's multirun, one run folder per run. Finished runs are skipped, others go on."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from escdiff.cli.runs import OWN
from escdiff.support.config.compose import as_hydra, compose_overrides, parsed, register, verbatim_keys
from escdiff.support.config.explain import explain
from escdiff.support.config.folder import configs_folder, groups_of
from escdiff.support.config.keys import leaves
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import TrainerConfig
from escdiff.support.errors import UserError

SWEEP = {"-m", "--multirun"}
PLUGINS = Path(__file__).parents[1] / "plugins"
NEEDED = {  # argument -> module, extra
    "hparams_search=optuna": ("optuna", "tune"),
    "launcher=slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "launcher=ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def check_extras(argv: Sequence[str]) -> None:
    """Refuse what is not installed, or makes no sense without a sweep.

    Raises:
        UserError: says what to do.
    """
    for argument, (module, extra) in NEEDED.items():
        if argument not in argv:
            continue
        if not SWEEP & set(argv):
            raise UserError(f"{argument} given without -m; expected a sweep, as in: train.py -m {argument} ...")
        try:
            installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            installed = False
        if not installed:
            raise UserError(f"{argument} needs more packages; install them by: pip install 'escdiff[{extra}]'")


def add_sweeper() -> None:
    """Make our sweeper known to Hydra, which takes plugins from the package `hydra_plugins` only."""
    if str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))
    from hydra.core.plugins import Plugins
    from hydra_plugins.escdiff_optuna import OptunaSweeper

    Plugins.instance().register(OptunaSweeper)


def sweep(argv: Sequence[str], run: Callable[[TrainConfig], None]) -> None:
    """Run every cell; its folder is named after what the sweep varies.

    Raises:
        UserError: an unknown key or group option, or an extra that is not installed.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    check_extras(argv)
    if "hparams_search=optuna" in argv:
        add_sweeper()
    register(argv)
    groups = groups_of("train")
    sys.argv[1:] = [a if a in SWEEP else as_hydra(a, groups) for a in argv]  # which Hydra reads
    try:
        overrides = parsed([a for a in sys.argv[1:] if a not in SWEEP])
    except HydraException as error:
        raise UserError(explain(error, TrainConfig)) from None
    keys = [override.get_key_element() for override in overrides]
    varies = any(o.is_sweep_override() for o in overrides) or "hparams_search" in keys
    unnamed = ("experiment", "sweep_dir", *verbatim_keys("train"))
    fixed = [o.get_key_element() for o in overrides if not o.is_sweep_override()]

    @hydra.main(config_path=str(configs_folder().absolute()), config_name="train", version_base="1.3")
    def run_cell(config: DictConfig) -> float | None:
        named = HydraConfig.get().sweeper.get("params") or {}  # cells that an experiment names
        same = [key for key in fixed if key not in named] if varies or named else unnamed
        chosen = HydraConfig.get().overrides.task
        cell = [o for o in chosen if o.split("=")[0] not in same]
        name = ",".join(cell).replace("/", "-") or "default"
        arguments = [o for o in chosen if o.split("=")[0] not in ("hparams_search", "launcher")]
        whole = compose_overrides("train", arguments, {"run_id": name, "run_dir": f"{config.sweep_dir}/{name}"})
        metric = HydraConfig.get().sweeper.get("metric")
        if "Submitit" not in HydraConfig.get().launcher["_target_"]:
            check_processes(whole.trainer)
        return run_unless_done(whole, run, metric)

    try:
        run_cell()
    except HydraException as error:
        raise UserError(explain(error, TrainConfig)) from None


def check_processes(trainer: TrainerConfig) -> None:
    """Refuse cells of several processes: each of those would run the whole sweep.

    Raises:
        UserError: says what to do.
    """
    from lightning.pytorch.accelerators import CUDAAccelerator

    devices = trainer.devices  # how many, which ones, or "auto"
    if str(devices) in ("auto", "-1"):
        count = 1 if trainer.accelerator == "cpu" else CUDAAccelerator.auto_device_count()
    elif isinstance(devices, list):
        count = len(devices)
    else:
        count = len(devices.split(",")) if "," in str(devices) else int(devices)
    if count * trainer.num_nodes > 1:
        problem = f"a sweep with {count * trainer.num_nodes} processes per run given"
        raise UserError(f"{problem}; expected trainer.devices=1, or launcher=slurm, which starts them itself")


def run_unless_done(config: TrainConfig, run: Callable[[TrainConfig], None], metric: str | None) -> float | None:
    """Run a cell that has not finished; its metric, where one is asked for: None if it failed.

    Raises:
        UserError: of a run whose metric nobody asked for.
        KeyboardInterrupt: the cell was stopped by a signal, which ends the sweep.
    """
    import logging

    from lightning.pytorch.utilities import rank_zero_only

    from escdiff.training.loop.guards import STOPPED
    from escdiff.training.loop.run_folder import RunFolder

    folder, values = RunFolder(config.run_dir), asdict(config)
    about = folder.manifest()
    try:
        if about.get("status") == "finished" and about.get("cell") == values:
            logging.getLogger(__name__).info("%s is finished; skipped", folder.path)
        else:
            check_same(folder, about.get("cell", values), values)
            folder.create()
            if rank_zero_only.rank == 0:
                folder.write_manifest(cell=values)
            run(config)
        if folder.manifest().get("status") == STOPPED:
            raise KeyboardInterrupt
        return None if metric is None else metric_of(folder, metric)
    except UserError as error:
        if metric is None:
            raise
        logging.getLogger(__name__).warning("%s failed: %s", folder.path.name, error)
        return None


def metric_of(folder, name: str) -> float:
    """The value of the metric by which a sweep judges a run.

    Raises:
        UserError: it did not log that.
    """
    if (value := folder.metric(name)) is not None:
        return value
    logged = sorted({key for line in folder.lines() for key in line if "/" in key and not key.startswith("throughput")})
    raise UserError(f"{name} was not logged; expected one of {', '.join(logged)}, as hydra.sweeper.metric=NAME")


def check_same(folder, earlier: dict, current: dict) -> None:
    """Refuse to go on from checkpoints of another configuration; length, hardware and logs may differ.

    Raises:
        UserError: names a key that differs.
    """
    before, now = leaves(earlier), leaves(current)
    shared = [key for key in now if key in before and not key.startswith(("trainer.", "logger.", *OWN))]
    changed = [key for key in shared if now[key] != before[key]]
    if changed and folder.saved():
        key = changed[0]
        problem = f"{folder.path} holds a run with {key}={before[key]}, and {key}={now[key]} given"
        raise UserError(f"{problem}; give another sweep_dir, or delete it")
