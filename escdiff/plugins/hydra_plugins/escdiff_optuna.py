"""A Hydra sweeper that lets Optuna choose: hparams_search=optuna. (Hydra looks for plugins in this package only.)

Hydra's own Optuna plugin holds Optuna below version 3 and starts `n_trials` more whenever it is started. This one asks
the current Optuna, counts what a study has, and first runs again what was running when it was killed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from escdiff.support.config.keys import check, key
from escdiff.support.errors import UserError

HOPELESS = 3  # trials that fail before any is complete, which end a study
log = logging.getLogger(__name__)


@dataclass
class SweeperConfig:
    """The block `hydra.sweeper` of a search by Optuna."""

    _target_: str = key("hydra_plugins.escdiff_optuna.OptunaSweeper", "this sweeper")
    metric: str = key("val/loss", "of metrics.jsonl, mean of the last tenth of the lines")
    direction: str = key("minimize", "of the metric", choices=("minimize", "maximize"))
    trials: int = key(20, "in all, over every start", low=1)
    parallel: int = key(1, "trials at a time; more with a launcher", low=1)
    seed: int = key(0, "of the sampler", low=0)
    params: dict[str, Any] = key({}, "what is swept, beside what the command says")


ConfigStore.instance().store(group="hydra/sweeper", name="escdiff_optuna", node=SweeperConfig)


class OptunaSweeper(Sweeper):
    """Runs cells until the study in `sweep_dir`/study.db has `trials` of them, `parallel` at a time.

    What is swept is written as for Hydra: `encoder.rank=4,8`, `optim.lr=tag(log,interval(1e-4,1e-2))`,
    `optim.warmup=range(0,500,100)`; on the command line, or in `params`. A job returns the value to optimise, None
    where it failed. Failed trials count; when the first `HOPELESS` all fail it is the set-up that is wrong, and the
    sweep ends.
    """

    def __init__(self, metric: str, direction: str, trials: int, parallel: int, seed: int, params: DictConfig) -> None:
        self.metric, self.direction, self.trials, self.parallel = metric, direction, trials, parallel
        self.seed, self.params = seed, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def check(self) -> None:
        """Refuse settings that make no study.

        Raises:
            UserError: names the key and what would do.
        """
        check(
            SweeperConfig(direction=self.direction, trials=self.trials, parallel=self.parallel, seed=self.seed),
            "hydra.sweeper.",
        )

    def sweep(self, arguments: list[str]) -> Any:
        import optuna
        from optuna.trial import TrialState

        self.check()
        overrides = OverridesParser.create().parse_overrides(
            [*(f"{key}={value}" for key, value in (self.params or {}).items()), *arguments]
        )
        by_key = {override.get_key_element(): override for override in overrides}  # the command's win
        space = {key: distribution(o) for key, o in by_key.items() if o.is_sweep_override()}
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in by_key.items() if key not in space]
        folder = Path(self.config.sweep_dir)
        folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}", study_name="sweep", load_if_exists=True,
            direction=self.direction, sampler=optuna.samplers.TPESampler(seed=self.seed, constant_liar=True),
        )  # fmt: skip
        left = [trial.number for trial in study.get_trials(states=[TrialState.RUNNING])]
        number = 0
        while True:
            ended = study.get_trials(states=[TrialState.COMPLETE, TrialState.FAIL], deepcopy=False)
            if len(ended) >= HOPELESS and all(trial.state == TrialState.FAIL for trial in ended):
                problem = f"all {len(ended)} trials of {folder / 'study.db'} failed, see above why"
                raise UserError(f"{problem}; mend that, delete the study and give the same command again")
            waiting, left = left[: self.parallel], left[self.parallel :]
            batch = [(n, study.trials[n].params) for n in waiting]
            for _ in range(min(self.parallel, self.trials - len(ended)) - len(batch)):
                trial = study.ask(space)
                batch.append((trial.number, trial.params))
            if not batch:
                break
            cells = [[*(f"{key}={value}" for key, value in params.items()), *fixed] for _, params in batch]
            self.validate_batch_is_legal(cells)
            for (n, _), job in zip(batch, self.launcher.launch(cells, initial_job_idx=number), strict=True):
                try:
                    value = job.return_value
                except UserError:  # of the sweep, not of a cell
                    raise
                except Exception as error:  # out of memory, say: of this cell's size, perhaps
                    log.warning("trial %d failed: %s: %s", n, type(error).__name__, error)
                    value = None
                study.tell(n, value, TrialState.FAIL if value is None else TrialState.COMPLETE)
            number += len(batch)
        done = study.get_trials(states=[TrialState.COMPLETE])
        if done:
            log.info("best of %d: %s = %.6g with %s", len(done), self.metric, study.best_value, study.best_params)
            OmegaConf.save({"value": study.best_value, "params": study.best_params}, folder / "best.yaml")
        return study


def distribution(override: Override):
    """Optuna's distribution for a swept override."""
    from optuna import distributions

    if override.is_choice_sweep():
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    value = override.value()
    if override.is_interval_sweep():
        log_scale = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return distributions.IntDistribution(value.start, value.end, log=log_scale)
        return distributions.FloatDistribution(value.start, value.end, log=log_scale)
    points: Sequence[str] = list(override.sweep_string_iterator())  # a range, of which Hydra leaves out the end
    return distributions.CategoricalDistribution(points)
