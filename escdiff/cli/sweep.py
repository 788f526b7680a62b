"""`python train.py -m ...`: Hydra's multirun, one run folder per cell. Finished cells are skipped, others go on."""

import copy
import importlib.util
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from escdiff.cli.compose import as_hydra, explain
from escdiff.cli.keys import groups_of
from escdiff.cli.runs import OWN, leaves
from escdiff.errors import UserError
from escdiff.places import configs_folder

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
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            raise UserError(f"{argument} needs more packages; install them by: pip install 'escdiff[{extra}]'")


def add_sweeper() -> None:
    """Make our sweeper known to Hydra, which takes plugins from the package `hydra_plugins` only."""
    if str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))
    from hydra.core.plugins import Plugins
    from hydra_plugins.escdiff_optuna import OptunaSweeper

    Plugins.instance().register(OptunaSweeper)


def sweep(argv: Sequence[str], run: Callable[[dict, Sequence[str]], None], texts: Collection[str]) -> None:
    """Run every cell; its folder is named after what the sweep varies.

    Raises:
        UserError: an unknown key or group option, or an extra that is not installed.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf

    check_extras(argv)
    if "hparams_search=optuna" in argv:
        add_sweeper()
    groups = groups_of("train")
    sys.argv[1:] = [a if a in SWEEP else as_hydra(a, groups) for a in argv]  # which Hydra reads
    try:
        given = OverridesParser.create().parse_overrides([a for a in sys.argv[1:] if a not in SWEEP])
    except HydraException as error:
        raise UserError(explain(error, "train")) from None
    keys = [override.get_key_element() for override in given]
    varies = any(o.is_sweep_override() for o in given) or "hparams_search" in keys
    fixed = [o.get_key_element() for o in given if not o.is_sweep_override()]

    @hydra.main(config_path=str(configs_folder().absolute()), config_name="train", version_base="1.3")
    def run_cell(config: DictConfig) -> float | None:
        values = OmegaConf.to_container(config, resolve=True)
        named = HydraConfig.get().sweeper.get("params") or {}  # cells that an experiment names
        same = [key for key in fixed if key not in named] if varies or named else ["experiment", "sweep_dir", *texts]
        chosen = HydraConfig.get().overrides.task
        cell = [o for o in chosen if o.split("=")[0] not in same]
        name = ",".join(cell).replace("/", "-") or "default"
        values["run_id"], values["run_dir"] = name, f"{values['sweep_dir']}/{name}"
        metric = HydraConfig.get().sweeper.get("metric")
        if "Submitit" not in HydraConfig.get().launcher["_target_"]:
            check_processes(values["trainer"])
        return run_unless_done(values, lambda cell: run(cell, chosen), metric)

    try:
        run_cell()
    except HydraException as error:
        raise UserError(explain(error, "train")) from None


def check_processes(trainer: dict) -> None:
    """Refuse cells of several processes: each of those would run the whole sweep.

    Raises:
        UserError: says what to do.
    """
    from lightning.pytorch.accelerators import CUDAAccelerator

    devices = trainer["devices"]  # how many, which ones, or "auto"
    if str(devices) in ("auto", "-1"):
        count = 1 if trainer["accelerator"] == "cpu" else CUDAAccelerator.auto_device_count()
    elif isinstance(devices, list):
        count = len(devices)
    else:
        count = len(devices.split(",")) if "," in str(devices) else int(devices)
    if count * trainer["num_nodes"] > 1:
        what = f"a sweep with {count * trainer['num_nodes']} processes per cell given"
        raise UserError(f"{what}; expected trainer.devices=1, or launcher=slurm, which starts them itself")


def run_unless_done(values: dict, run: Callable[[dict], None], metric: str | None) -> float | None:
    """Run a cell that has not finished; its metric, where one is asked for: None if it failed.

    Raises:
        UserError: of a run whose metric nobody asked for.
        KeyboardInterrupt: the cell was stopped by a signal, which ends the sweep.
    """
    import logging

    from lightning.pytorch.utilities import rank_zero_only

    from escdiff.training.guards import STOPPED
    from escdiff.training.rundir import RunFolder

    folder, given = RunFolder(values["run_dir"]), copy.deepcopy(values)  # a run may fill in more
    about = folder.manifest()
    try:
        if about.get("status") == "finished" and about.get("cell") == given:
            logging.getLogger(__name__).info("%s is finished; skipped", folder.path)
        else:
            check_same(folder, about.get("cell", given), given)
            folder.create()
            if rank_zero_only.rank == 0:
                folder.write_manifest(cell=given)
            run(values)
        if folder.manifest().get("status") == STOPPED:
            raise KeyboardInterrupt
        return None if metric is None else folder.metric(metric)
    except UserError as error:
        if metric is None:
            raise
        logging.getLogger(__name__).warning("%s failed: %s", folder.path.name, error)
        return None


def check_same(folder, earlier: dict, given: dict) -> None:
    """Refuse to go on from checkpoints of another configuration; length, hardware and logs may differ.

    Raises:
        UserError: names a key that differs.
    """
    before, now = leaves(earlier), leaves(given)
    both = [key for key in now if key in before and not key.startswith(("trainer.", "logger.", *OWN))]
    others = [key for key in both if now[key] != before[key]]
    if others and folder.saved():
        key = others[0]
        what = f"{folder.path} holds a run with {key}={before[key]}, and {key}={now[key]} given"
        raise UserError(f"{what}; give another sweep_dir, or delete it")
