"""The peers of ``overhead.py``: each with everything off, and as people use it."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from overhead_case import RATE, STEPS, network
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from overhead_case import Feed
    from torch import Tensor


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE)


def _constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)


def _ignite_engine(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    from ignite.engine import Engine

    def update(_engine: object, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Engine(update)


def ignite(feed: Feed, _directory: Path) -> None:
    """An engine and its update, nothing else."""
    model = network()
    _ignite_engine(model, _optimizer(model)).run(feed, max_epochs=1, epoch_length=feed.n_steps)


def ignite_typical(feed: Feed, directory: Path) -> None:
    """Mean loss, NaN check, schedule, average of the weights, a checkpoint an epoch."""
    from ignite.engine import Events
    from ignite.handlers import Checkpoint, DiskSaver, EMAHandler, TerminateOnNan
    from ignite.handlers.param_scheduler import LRScheduler
    from ignite.metrics import RunningAverage

    model = network()
    optimizer = _optimizer(model)
    engine = _ignite_engine(model, optimizer)
    RunningAverage(output_transform=lambda loss: loss).attach(engine, "loss")
    engine.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    engine.add_event_handler(Events.ITERATION_STARTED, LRScheduler(_constant(optimizer)))
    EMAHandler(model, momentum=1e-4).attach(engine, event=Events.ITERATION_COMPLETED)
    saver = DiskSaver(str(directory), create_dir=True, require_empty=False)
    engine.add_event_handler(Events.EPOCH_COMPLETED, Checkpoint({"model": model}, saver))
    engine.run(feed, max_epochs=1, epoch_length=feed.n_steps)


def _lightning_module(*, logs: bool) -> Any:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
            loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
            if logs:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = _optimizer(self.model)
            if not logs:
                return optimizer
            return [optimizer], [{"scheduler": _constant(optimizer), "interval": "step"}]

    return Module()


def lightning(feed: Feed, directory: Path) -> None:
    """Everything off."""
    import pytorch_lightning as pl

    pl.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=directory, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(_lightning_module(logs=False), feed)  # fmt: skip


def lightning_typical(feed: Feed, directory: Path) -> None:
    """Its log, CSV file and bar, schedule, average of the weights, a checkpoint an epoch."""
    import pytorch_lightning as pl
    from pytorch_lightning import callbacks
    from pytorch_lightning.loggers import CSVLogger

    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(directory),
        callbacks=[
            callbacks.ModelCheckpoint(dirpath=directory),
            callbacks.LearningRateMonitor("step"),
            callbacks.EMAWeightAveraging(decay=0.9999),
        ],
        enable_model_summary=False,
    ).fit(_lightning_module(logs=True), feed)


def accelerate(feed: Feed, _directory: Path) -> None:
    """A prepared model and optimizer, and its backward."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network()
    model, optimizer = accelerator.prepare(model, _optimizer(model))
    for x, y in feed:
        accelerator.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def accelerate_typical(feed: Feed, _directory: Path) -> None:
    """Accumulation, a schedule and clipping too."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = _optimizer(model)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, _constant(optimizer))
    for x, y in feed:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)


def _hf_trainer(feed: Feed, directory: Path, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.mse_loss(self.model(x), y)}

    class Fed(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return NamedFeed()

    class NamedFeed:
        def __len__(self) -> int:
            return feed.n_steps

        def __iter__(self) -> Any:
            return ({"x": x, "y": y} for x, y in feed)

    model = Named()
    arguments = TrainingArguments(
        output_dir=str(directory), use_cpu=True, max_steps=feed.n_steps, per_device_train_batch_size=16,
        report_to="none", **options,
    )  # fmt: skip
    optimizer = _optimizer(model)
    return Fed(model, arguments, train_dataset=[0] * 16, optimizers=(optimizer, _constant(optimizer)))


def hf_trainer(feed: Feed, directory: Path) -> None:
    """Everything off."""
    from transformers.trainer_callback import PrinterCallback

    trainer = _hf_trainer(
        feed, directory, logging_strategy="no", save_strategy="no", max_grad_norm=0.0, disable_tqdm=True
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def hf_trainer_typical(feed: Feed, directory: Path) -> None:
    """Its defaults, with a log every block: clipping, a bar, a checkpoint every 500 steps."""
    _hf_trainer(feed, directory, logging_steps=STEPS).train()


def _quietly(run: Callable[[Feed, Path], None]) -> Callable[[Feed, Path], None]:
    def quiet(feed: Feed, directory: Path) -> None:
        warnings.simplefilter("ignore")
        for name in ("pytorch_lightning", "lightning", "ignite", "transformers", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        run(feed, directory)

    return quiet


PEERS = {
    name: _quietly(run)
    for name, run in {
        "ignite, bare": ignite,
        "ignite, typical": ignite_typical,
        "PyTorch Lightning, everything off": lightning,
        "PyTorch Lightning, typical": lightning_typical,
        "Accelerate, prepare and backward": accelerate,
        "Accelerate, typical": accelerate_typical,
        "HF Trainer, everything off": hf_trainer,
        "HF Trainer, defaults": hf_trainer_typical,
    }.items()
}
