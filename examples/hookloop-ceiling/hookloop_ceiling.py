"""Stop a run whose loss goes through the ceiling."""

from attrs import define

from hookloop import hookimpl


@define(eq=False)
class Ceiling:
    """Stop, with exit code 1, when the loss is above a ceiling."""

    loss: float
    every: int = 10

    @hookimpl
    def after_batch(self, run, losses):
        """Look at the loss every so many batches: each look waits for the device."""
        if run.progress.step % self.every == 0 and losses["loss"] > self.loss:
            run.stop(f"loss {losses['loss']:.3g} is above {self.loss}", code=1)
