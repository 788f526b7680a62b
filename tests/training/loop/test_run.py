"""The loop: exact resuming, the run folder, damaged checkpoints, broken gradients, clean stops."""

import importlib.util
import json
import multiprocessing
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from toy_training import FINISHED, StopAt, assert_same, last

from escdiff.support.errors import UserError
from escdiff.training.loop import run

needs_locks = pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="no POSIX locks here")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("by_signal", [False, True])
def test_resume_is_exact(config, tmp_path, accumulate, by_signal):
    config.trainer.accumulate = accumulate
    run.train(config)
    straight, whole = last(config), FINISHED.pop()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()

    config.run_dir = str(tmp_path / "parts")
    run.train(config, [StopAt(3, by_signal)])
    assert not FINISHED
    assert json.loads((tmp_path / "parts" / "manifest.json").read_text(encoding="utf-8"))["status"] == "stopped"
    run.train(config)
    parts = last(config)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "EndlessData"):
        assert_same(straight[key], parts[key])
    second = FINISHED.pop()
    assert torch.equal(torch.stack(whole.seen[3 * accumulate :]), torch.stack(second.seen))
    assert torch.equal(whole.net.weight, second.net.weight)  # finish sees the averaged weights
    again = (tmp_path / "parts" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in again]
    assert [json.loads(line)["step"] for line in lines] == [1, 3, 5]
    assert steps == [1, 3, 5]  # the interval that the stop cut in two is one again
    for ours, theirs in zip(lines, again, strict=True):
        clocks = ("time", "throughput/")
        a, b = ({k: v for k, v in json.loads(line).items() if not k.startswith(clocks)} for line in (ours, theirs))
        assert a == b


def test_a_step_is_logged_before_its_checkpoint(config, tmp_path, monkeypatch):
    """Else a run killed between the two would never have that step's line."""
    config.trainer.log_steps = config.trainer.save_steps = 1
    found, save = [], run.Checkpoints.save

    def look_first(self, trainer, module):
        lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found.append([json.loads(line)["step"] for line in lines] == list(range(trainer.global_step)))
        save(self, trainer, module)

    monkeypatch.setattr(run.Checkpoints, "save", look_first)
    run.train(config)
    assert found == [True] * 6


def test_finish_gets_average_and_export_too(config, tmp_path):
    run.train(config)
    module, saved = FINISHED.pop(), last(config)
    shadow = next(state for name, state in saved["callbacks"].items() if name.startswith("Average"))
    exported = torch.load(tmp_path / "run" / "export" / "net.pt")
    assert torch.equal(shadow["shadow_params"][0], exported["weight"])
    assert not torch.equal(exported["weight"], saved["state_dict"]["net.weight"])
    assert torch.equal(module.net.weight, saved["state_dict"]["net.weight"])  # put back after finish


class Weights(run.L.Callback):
    """Notes the trained weights after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(module.net.weight.detach().clone())


def test_the_average_is_its_plain_recursion(config):
    """a <- a + (1 - d)(w - a), with a decay d that grows towards optim.ema."""
    weights = Weights()
    run.train(config, [weights])
    average = weights.seen[0]
    for number, weight in enumerate(weights.seen[1:], 1):
        average = average + (1 - min(0.9, (1 + number) / (10 + number))) * (weight - average)
    shadow = next(state for name, state in last(config)["callbacks"].items() if name.startswith("Average"))
    torch.testing.assert_close(shadow["shadow_params"][0], average)


def test_run_folder(config, tmp_path):
    run.train(config)
    folder = tmp_path / "run"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "manifest.json", "step-000000004.ckpt", "step-000000006.ckpt",
    ]  # fmt: skip
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["optim"]["ema"] == 0.9
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "finished" and manifest["step"] == 6 and manifest["packages"]["torch"]
    line = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["train/extra"] == pytest.approx(2 * line["train/loss_mean"])
    assert line["throughput/samples_per_s"] > 0 and line["train/grad_norm"] > 0
    assert any(name.startswith("train/loss_t") for name in line)


def test_damaged_checkpoint_is_passed_over(config, tmp_path):
    run.train(config, [StopAt(4)])
    newest, older = run.RunFolder(config.run_dir).saved()
    newest.write_bytes(newest.read_bytes()[:200])
    config.trainer.max_steps, config.trainer.save_steps = 3, 1
    run.train(config)  # the damaged one of step 4 must not push out that of step 3
    assert [path.name for path in run.RunFolder(config.run_dir).saved()] == ["step-000000003.ckpt", older.name]
    assert newest.with_suffix(".damaged").is_file()
    config.trainer.max_steps = 6
    run.train(config)
    assert FINISHED.pop().global_step == 6
    for path in run.RunFolder(config.run_dir).saved():
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="can be read"):
        run.train(config)


def test_resume_false_never_overwrites(config):
    run.train(config)
    config.resume = False
    with pytest.raises(UserError, match="resume=true"):
        run.train(config)


def test_another_training_does_not_go_on_in_the_folder(config):
    """Else it would be taken for done, and its `init` and weights of the loss would not count."""
    run.train(config, [StopAt(4)])
    config.init = "elsewhere"
    with pytest.raises(UserError, match=r"another training \(init=None there, elsewhere given\); give run_id=NAME"):
        run.train(config)
    config.init, config.encoder.branch_rank = None, config.encoder.branch_rank + 1  # which this recipe does not read
    run.train(config)
    config.loss.words, config.optim.lr = 0.7, 0.25
    with pytest.raises(UserError, match=r"loss.words=0.1 there, 0.7 given; optim.lr=.* there, 0.25 given"):
        run.train(config)
    assert run.RunFolder(config.run_dir).newest_checkpoint().name == "step-000000006.ckpt"


def test_finished_run_only_finishes_again(config):
    run.train(config)
    weight = FINISHED.pop().net.weight
    run.train(config)
    again = FINISHED.pop()
    assert not again.seen and torch.equal(again.net.weight, weight)


def test_broken_gradients_end_the_run_with_sound_weights(config):
    config.break_from = 4
    config.trainer.max_steps = 40
    with pytest.raises(UserError, match="in a row were not finite"):
        run.train(config)
    for tensor in last(config)["state_dict"].values():
        assert torch.isfinite(tensor).all()


def hold(folder, there):
    with folder.held():
        there.set()
        time.sleep(600)


@needs_locks
def test_two_commands_do_not_share_a_folder(config):
    folder = run.RunFolder(config.run_dir)
    folder.create()
    context = multiprocessing.get_context("fork")
    there = context.Event()
    other = context.Process(target=hold, args=(folder, there))
    other.start()
    try:
        assert there.wait(60)
        with pytest.raises(UserError, match="another run trains"):
            run.train(config)
    finally:
        other.kill()
        other.join()
    run.train(config)
    assert FINISHED[0].global_step == 6


def test_disk_preflight(config, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="make room"):
        run.train(config)


def test_unknown_recipe(config):
    config.recipe = "soup"
    with pytest.raises(UserError, match="expected one of clip"):
        run.train(config)


def in_an_allocation_of_four_tasks(monkeypatch):
    values = {"JOB_ID": 1, "NTASKS": 4, "JOB_NAME": "jupyter", "LOCALID": 0, "PROCID": 0, "NODEID": 0, "NNODES": 1}
    for name, value in {**values, "NODELIST": "node1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_one_process_trains_inside_an_allocation_of_several(config, monkeypatch):
    """A notebook in a SLURM job."""
    in_an_allocation_of_four_tasks(monkeypatch)
    run.train(config)
    assert last(config)["global_step"] == config.trainer.max_steps


def test_several_processes_that_the_allocation_does_not_have_are_refused_in_one_sentence(config, monkeypatch):
    in_an_allocation_of_four_tasks(monkeypatch)
    config.trainer.devices, config.trainer.strategy = 2, "ddp"
    with pytest.raises(UserError, match="trainer.devices=2.*of which Lightning says") as caught:
        run.train(config)
    assert "\n" not in str(caught.value)
