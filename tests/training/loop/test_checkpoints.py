"""Checkpoints that a full or a faulty disk cannot spoil."""

import json

import pytest
import torch
import toy_training
from safetensors import SafetensorError
from toy_training import FINISHED, assert_same, last

from escdiff.training.loop import callbacks, run
from escdiff.training.loop.checkpoint_files import CheckpointFolder, damage, saved
from escdiff.training.loop.monitoring.loggers import JsonlLogger


def folder(config):
    return run.RunFolder(config.run_dir).checkpoints


def fill_disk(config, step: int) -> None:
    """The next write of this step's checkpoint meets a full disk."""
    run.RunFolder(config.run_dir).create()
    (folder(config) / f".step-{step:09d}.ckpt.tmp").symlink_to("/dev/full")


def steps(config) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in saved(folder(config))]


@pytest.fixture(autouse=True)
def keep_symlinks(monkeypatch):
    monkeypatch.setattr(callbacks.Checkpoints, "on_train_start", lambda self, trainer, *_: None)
    monkeypatch.setattr(callbacks, "RETRY_SECONDS", 0.0)


def test_a_flipped_bit_is_found_and_the_one_before_is_taken(config):
    run.train(config)
    newest, older = saved(folder(config))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert "SHA-256" in damage(newest) and damage(older) is None
    assert run.RunFolder(config.run_dir).newest_checkpoint() == older


def test_a_full_disk_keeps_the_last_good_one_and_is_tried_again(config, caplog, monkeypatch):
    config.trainer.max_steps, config.trainer.save_minutes = 8, 99
    fill_disk(config, 4)
    seen = []

    class Look(run.L.Callback):
        def on_train_batch_start(self, trainer, *_):
            next(c for c in trainer.callbacks if isinstance(c, callbacks.Checkpoints)).files.wait()
            seen.append((trainer.global_step, steps(config)))

    export, exported = toy_training.Toy.export, []

    def full_once(self, folder):
        exported.append(self.global_step)
        if len(exported) == 1:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        export(self, folder)

    monkeypatch.setattr(toy_training.Toy, "export", full_once)
    run.train(config, [Look()])
    assert "No space left" in caplog.text and "the export to" in caplog.text and exported[-1] == 8
    assert seen[4] == (4, [2]) and seen[5] == (5, [5, 2])  # at once, not only at the next multiple of save_steps
    assert steps(config) == [8, 6] and FINISHED[0].global_step == 8


def test_older_checkpoints_make_room(config):
    config.trainer.max_steps = 8
    fill_disk(config, 6)
    seen = []

    class Look(run.L.Callback):
        def on_train_batch_start(self, trainer, *_):
            next(c for c in trainer.callbacks if isinstance(c, callbacks.Checkpoints)).files.wait()
            seen.append(steps(config))

    run.train(config, [Look()])
    assert seen[5] == [4, 2] and seen[6] == [6, 4]
    assert json.loads((folder(config) / "manifest.json").read_text(encoding="utf-8")).keys() == {
        p.name for p in saved(folder(config))
    }


def test_the_last_state_is_insisted_on(config):
    config.trainer.keep, config.trainer.save_steps = 1, 99
    fill_disk(config, 6)
    run.train(config)
    assert steps(config) == [6]


def test_what_was_read_back_differently_gets_no_name(tmp_path, monkeypatch, caplog):
    files = CheckpointFolder()
    files.save_checkpoint({"global_step": 1}, tmp_path / "step-000000001.ckpt")
    files.wait()
    monkeypatch.setattr("escdiff.training.loop.checkpoint_files.sha256", lambda path: "0")
    files.save_checkpoint({"global_step": 2}, tmp_path / "step-000000002.ckpt")
    files.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "step-000000001.ckpt"]
    assert files.error is not None and "reads back differently" in caplog.text


def test_the_state_saved_is_that_of_its_step(config, tmp_path):
    """The disk's part runs beside the next steps, which must not show in it."""
    config.trainer.max_steps = 4
    run.train(config)
    whole = last(config)
    config.run_dir, config.trainer.max_steps, config.trainer.save_steps = str(tmp_path / "longer"), 6, 4
    run.train(config)
    early = torch.load(saved(folder(config))[1], weights_only=True)
    assert early["global_step"] == 4
    assert_same(whole["state_dict"], early["state_dict"])
    assert_same(whole["optimizer_states"], early["optimizer_states"])


def test_metrics_wait_for_room(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    logger.log_metrics({"loss": 1.0}, 0)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    logger.log_metrics({"loss": 2.0}, 1)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "kept").rename(tmp_path / "metrics.jsonl")
    logger.log_metrics({"loss": 3.0}, 2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
