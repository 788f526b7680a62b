"""Sweeps: a folder per cell, nothing twice, Optuna where it is installed, one table of all."""

import importlib.util
import json
import sys

import pytest
import yaml
from toy_training import FINISHED, StopAt

from escdiff.cli import runs, train
from escdiff.cli.sweep import check_extras
from escdiff.support.errors import UserError
from escdiff.training.loop import run
from escdiff.training.loop.recipe import RECIPES
from escdiff.training.loop.run_folder import RunFolder

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="the extra `tune` is missing")


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs a sweep of the toy; gives how many trainings ran."""
    from types import SimpleNamespace

    def build(config):
        config.break_from = 10**6
        built = toy_training.build_validated(config)
        trained.append(config.run_dir)
        return built

    import toy_training

    trained: list[str] = []
    monkeypatch.setattr(toy_training, "swept", build, raising=False)
    monkeypatch.setitem(RECIPES, "encoder", "toy_training:swept")
    FINISHED.clear()

    def call(*arguments: str) -> list[str]:
        own = [f"sweep_dir={tmp_path}", "trainer.max_steps=2", "trainer.log_steps=1", "data.batch_size=2"]
        argv = ["-m", *own, *arguments]
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        trained.clear()
        train._main(argv)
        return [path.rsplit("/", 1)[1] for path in trained]

    return SimpleNamespace(call=call, folder=tmp_path)


@pytest.mark.slow
def test_every_cell_has_its_folder_and_runs_once(sweep):
    cells = ["encoder.gates=learned", "encoder.gates=none"]
    assert sweep.call("encoder.gates=learned,none") == cells
    configs = sorted(sweep.folder.glob("[!.]*/config.yaml"))
    assert [path.parent.name for path in configs] == cells
    assert [yaml.safe_load(path.read_text(encoding="utf-8"))["encoder"]["gates"] for path in configs] == [
        "learned",
        "none",
    ]
    assert sweep.call("encoder.gates=learned,none") == []
    manifest = sweep.folder / cells[1] / "manifest.json"
    manifest.write_text(
        json.dumps({**json.loads(manifest.read_text(encoding="utf-8")), "status": "running"}), encoding="utf-8"
    )  # as kill -9 leaves it
    assert sweep.call("encoder.gates=learned,none,hand") == [cells[1], "encoder.gates=hand"]
    table = runs.tabulate(sweep.folder, "train/loss_mean", highest=False).splitlines()
    assert table[0].split("|")[1].strip() == "encoder.gates" and len(table) == 2 + 3
    values = [float(row.split("|")[4]) for row in table[2:]]
    assert values == sorted(values) and all("finished" in row for row in table[2:])
    with pytest.raises(UserError, match="no run in"):
        runs.tabulate(sweep.folder / "nowhere", "train/loss_mean", highest=False)


@pytest.mark.slow
def test_an_experiment_may_name_the_cells_of_a_sweep(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(train, "run", ran.append)
    monkeypatch.setattr(RunFolder, "write_manifest", lambda self, **values: None)
    for group, *one in (["branched"], ["tokens"], ["draws", "loss.draws=4"]):
        argv = ["-m", f"experiment=ablation/{group}", f"sweep_dir={tmp_path}", "data.num_workers=0", *one]
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        train._main(argv)
    assert [config.run_id for config in ran] == [
        "encoder.branched=shape", "encoder.branched=appearance",
        *(f"encoder.tokens={{shape:{k},appearance:{k}}}" for k in (1, 2, 4)),
        "data.batch_size=8,loss.draws=4",
    ]  # fmt: skip
    assert [config.run_dir for config in ran] == [f"{tmp_path}/{config.run_id}" for config in ran]
    assert ran[1].encoder.branched == "appearance" and ran[4].encoder.tokens == {"shape": 4, "appearance": 4}
    assert ran[0].trainer.max_steps == 400  # the base cell's


@pytest.mark.slow
@needs_optuna
def test_optuna_goes_on_where_it_was(sweep, monkeypatch):
    search = ("hparams_search=optuna", "hydra.sweeper.trials=3", "encoder.rank=4,8")
    assert len(sweep.call(*search)) >= 2
    import optuna

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{sweep.folder / 'study.db'}")
    assert len(study.trials) == 3
    assert all(3e-4 <= trial.params["optim.lr"] <= 1e-2 and trial.value > 0 for trial in study.trials)
    best = RunFolder(next(sweep.folder.glob(f"*optim.lr={study.best_params['optim.lr']}*")))
    assert study.best_value == best.metric("val/loss")
    assert yaml.safe_load((sweep.folder / "best.yaml").read_text(encoding="utf-8"))["value"] == study.best_value
    assert sweep.call(*search) == []
    left = study.ask({"optim.lr": optuna.distributions.FloatDistribution(3e-4, 1e-2, log=True),
                      "encoder.rank": optuna.distributions.CategoricalDistribution(["4", "8"])})  # fmt: skip
    again = sweep.call("hparams_search=optuna", "hydra.sweeper.trials=4", "encoder.rank=4,8")
    assert len(again) == 1 and f"optim.lr={left.params['optim.lr']}" in again[0]  # what a kill had cut off


@pytest.mark.slow
@needs_optuna
def test_a_study_of_what_is_not_logged_says_so(sweep, capfd):
    with pytest.raises(UserError, match="all 3 trials of"):
        sweep.call("hparams_search=optuna", "hydra.sweeper.metric=val/nothing")
    assert "val/nothing was not logged; expected one of" in "".join(capfd.readouterr())


@needs_optuna
def test_a_study_in_which_everything_fails_ends(sweep, monkeypatch):
    def fails(config):
        raise (UserError("no data there") if config.optim.lr > 1e-3 else MemoryError("too large"))

    import toy_training

    monkeypatch.setattr(toy_training, "swept", fails)
    with pytest.raises(UserError, match="all 3 trials of"):
        sweep.call("hparams_search=optuna", "hydra.sweeper.trials=9")


@pytest.mark.slow
def test_a_stopped_cell_ends_the_sweep_and_goes_on(sweep, monkeypatch):
    steps, fit = [], run.L.Trainer.fit

    def stopped(self, module, **kwargs):
        self.callbacks.insert(0, StopAt(1, by_signal=not steps))
        steps.append(self.max_steps)
        fit(self, module, **kwargs)

    monkeypatch.setattr(run.L.Trainer, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep.call("encoder.gates=learned,none")
    assert len(steps) == 1 and RunFolder(sweep.folder / "encoder.gates=learned").manifest()["status"] == "stopped"
    monkeypatch.setattr(run.L.Trainer, "fit", fit)
    assert sweep.call("encoder.gates=learned,none") == ["encoder.gates=learned", "encoder.gates=none"]


@pytest.mark.slow
def test_a_cell_never_goes_on_from_another_configuration(sweep):
    sweep.call("encoder.gates=learned,none")
    with pytest.raises(UserError, match=r"holds a run with loss.draws=4, and loss.draws=8 given"):
        sweep.call("encoder.gates=learned,none", "loss.draws=8")
    longer = sweep.call("encoder.gates=learned,none", "trainer.log_steps=2")
    assert len(longer) == 2  # how it is run may change


@pytest.mark.parametrize("devices", ["2", "'0,1'", "[0,1]"])
def test_cells_of_several_processes_are_refused(sweep, devices):
    with pytest.raises(UserError, match="2 processes per run"):
        sweep.call("encoder.gates=learned,none", f"trainer.devices={devices}")


@needs_optuna
@pytest.mark.parametrize("setting", ["direction=up", "trials=many", "parallel=0"])
def test_settings_that_make_no_study_are_refused(sweep, setting):
    with pytest.raises(UserError, match=f"sweeper.{setting} given"):
        sweep.call("hparams_search=optuna", f"hydra.sweeper.{setting}")


def test_extras_are_asked_for(monkeypatch):
    with pytest.raises(UserError, match="without -m"):
        check_extras(["hparams_search=optuna"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'escdiff\[slurm\]'"):
        check_extras(["-m", "launcher=slurm"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optim.lrr=1,2"], r"optim\.lr"),
        (["+optim.lrr=1"], r"optim\.lr"),
        (["optim.lr=1,big"], "optim.lr=big"),
        (["optim.lr"], "key=value"),
        (["optim.lr=[1"], r"optim\.lr"),
        (["space=null"], "space=null"),
        (["hydra=null"], "hydra=null"),
    ],
)
def test_mistakes_in_a_sweep_are_one_sentence(sweep, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        sweep.call(*arguments)
    assert "\n" not in str(caught.value)
