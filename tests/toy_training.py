"""A training small enough to be run whole in a moment, by the real loop."""

import signal

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from escdiff.training.loop import run
from escdiff.training.loop.prepare_data import EndlessData
from escdiff.training.loop.sample_order import EpochSampler


class Rows(Dataset):
    def __init__(self, rows: int) -> None:
        self.values = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))

    def __getitems__(self, visits):
        return self.values[[row for _, row in visits]]


class Toy(L.LightningModule):
    """Draws noise, logs, and has a frozen part, a momentum optimizer and a schedule, as the real ones do."""

    def __init__(self, break_from: int) -> None:
        super().__init__()
        self.net, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.break_from, self.seen = break_from, []

    def training_step(self, batch, _):
        self.seen.append(batch.clone())
        timesteps = torch.randint(0, 1000, (len(batch),))
        error = (self.net(batch + torch.randn_like(batch)) - self.frozen(batch)).square().mean(1)
        loss = error.mean() * (float("nan") if self.breaks() else 1.0)
        return {"loss": loss, "error": error.detach(), "timesteps": timesteps, "logs": {"extra": loss * 2}}

    def breaks(self) -> bool:
        return self.global_step >= self.break_from

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, folder):
        folder.mkdir(exist_ok=True)
        torch.save(self.net.state_dict(), folder / "net.pt")


FINISHED: list[Toy] = []


def build(config):
    data = Rows(10)
    sampler = EpochSampler(10, config.data.batch_size, config.seed)
    workers = getattr(config.data, "num_workers", 0)
    workers = 0 if workers == "auto" else workers
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch, num_workers=workers)
    return Toy(config.break_from), loader, FINISHED.append


class Held(EndlessData):
    """Two batches that the training never sees."""

    def val_dataloader(self):
        torch.rand(1)  # as loaders do
        return [torch.full((3, 4), 7.0), torch.full((1, 4), -7.0)]


class Validated(Toy):
    """Its error is the mean of the batch's squares, times a trained weight, and a random number."""

    def validation_step(self, batch, number):
        assert not self.training and not torch.is_grad_enabled()
        error = batch.square().mean(1) * self.net.weight[0, 0] + torch.rand(len(batch))
        return {"error": error, "timesteps": torch.tensor([5, 260, 999][: len(batch)])}


def build_validated(config):
    module, loader, finish = build(config)
    module.__class__ = Validated
    return module, Held(loader), finish


class StopAt(L.Callback):
    """Stops after a step; by a signal that comes before the first of its batches."""

    def __init__(self, step: int, by_signal: bool = False) -> None:
        self.step, self.by_signal = step, by_signal

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1 and self.by_signal:
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.by_signal:
            trainer.should_stop = True


def last(config) -> dict:
    newest = run.RunFolder(config.run_dir).newest_checkpoint()
    return torch.load(newest, weights_only=True)


def assert_same(a, b) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
