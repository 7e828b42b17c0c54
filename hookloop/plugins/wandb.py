"""``wandb``: the run on Weights & Biases, or beside it where the server cannot be reached."""

from __future__ import annotations

import netrc
import os
import secrets
import sys
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast
from urllib.parse import urlparse

from attrs import define, field
from attrs.validators import gt

from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from wandb import Image, Settings
    from wandb import Run as WandbRun

    from hookloop.core import Run

_FINISH_SECONDS = 30.0
"""What a server that has died since may cost at the end of a run; ``wandb sync`` uploads the rest."""


@define(eq=False)
class Wandb:
    """Send metrics and figures to Weights & Biases; whatever happens to its server, the run goes on."""

    leader_only: ClassVar[bool] = True

    project: str = field(default="hookloop", metadata=doc("the project the run belongs to"))
    entity: str | None = field(default=None, metadata=doc("the user or team; the key's own if not given"))
    name: str | None = field(
        default=None, metadata=doc("what to call the run; wandb makes one up if not given")
    )
    group: str | None = field(default=None, metadata=doc("runs that are shown together"))
    tags: list[str] = field(factory=list, metadata=doc("words to find the run by"))
    mode: Literal["auto", "online", "offline", "disabled"] = field(
        default="auto",
        metadata=doc("auto and online need a key and a server that answers, and fall back to offline"),
    )
    timeout: float = field(
        default=10.0, validator=gt(0.0), metadata=doc("seconds the server is given to answer")
    )
    _id: str | None = field(init=False, default=None)
    _session: Session | None = field(init=False, default=None)
    _begun: bool = field(init=False, default=False)
    _exit_code: int = field(init=False, default=0)

    @hookimpl
    def before_run(self) -> None:
        """Check that the package is there; connecting waits until the checkpoint has told the run's id."""
        self._id, self._session, self._begun, self._exit_code = None, None, self.mode == "disabled", 0
        if self.mode != "disabled" and find_spec("wandb") is None:
            raise HookloopError("plugin 'wandb' needs: pip install 'hookloop[wandb]'")

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Connect, once."""
        self._begin(run)

    @hookimpl
    def log(self, run: Run, metrics: Mapping[str, float | Figure]) -> None:
        """Send the numbers and the figures; the first failure is the last attempt."""
        self._begin(run)
        if self._session is None:
            return
        try:
            self._session.log(run.progress.step, metrics)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it must not end the run
            self._session = None
            run.events.warning("wandb.silenced", reason=_one_line(problem))

    @hookimpl
    def shutdown(self, run: Run, error: BaseException | None) -> None:
        """Remember how the run ended, which its page shows."""
        self._exit_code = 1 if error else run.stopping.code if run.stopping else 0

    def state_dict(self) -> dict[str, str | None]:
        """Return the run's id, so that a checkpoint resumes it even in another directory."""
        return {"id": self._id}

    def load_state_dict(self, state: Mapping[str, str | None]) -> None:
        """Take up the run's id."""
        self._id = state["id"]

    def _begin(self, run: Run) -> None:
        if self._begun:
            return
        self._begun = True
        self._id = _keep_id(run.dir / "wandb_run_id", self._id)
        before = dict(os.environ), sys.excepthook, sys.exit
        run.cleanup.callback(_put_back, *before)
        for mode in self._modes(run):
            try:
                self._session = self._open(run, mode)
            except Exception as problem:  # noqa: BLE001 - whatever it is, it must not end the run
                run.events.warning("wandb.failed", mode=mode, reason=_one_line(problem))
                _stop_service(before[0])
            else:
                run.cleanup.callback(self._close, run, self._session, before[0])
                self._session.announce(run)
                return

    def _modes(self, run: Run) -> list[Literal["online", "offline"]]:
        """Tell what to try, in this order."""
        if self.mode == "offline":
            return ["offline"]
        if _has_key():
            return ["online", "offline"]
        if self.mode == "online":
            run.events.warning("wandb.failed", mode="online", reason="no key is set; set WANDB_API_KEY")
        return ["offline"]

    def _open(self, run: Run, mode: Literal["online", "offline"]) -> Session:
        import wandb

        from hookloop.records import masked

        config = cast("dict[str, object]", masked(run.document))
        settings = self._settings()
        wandb.setup(settings)
        opened = wandb.init(
            project=self.project, entity=self.entity, name=self.name, group=self.group, tags=self.tags,
            id=self._id, resume="allow", mode=mode, dir=str(run.dir), config=config, settings=settings,
        )  # fmt: skip
        # wandb's own step drops what goes backwards, which a resume does.
        opened.define_metric("*", step_metric="step")
        return Session(opened, mode)

    def _settings(self) -> Settings:
        """Send what is logged and nothing else: no code, no console, no command line, no package list."""
        import wandb

        wanted = {
            "init_timeout": self.timeout, "finish_timeout": _FINISH_SECONDS, "console": "off", "silent": True,
            "save_code": False, "disable_code": True, "disable_git": True, "disable_job_creation": True,
            "x_disable_meta": True, "x_save_requirements": False,
        }  # fmt: skip
        known = wandb.Settings.model_fields
        return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})  # type: ignore[arg-type]

    def _close(self, run: Run, session: Session, environment: Mapping[str, str]) -> None:
        try:
            session.finish(self._exit_code)
            _stop_service(environment)
        except Exception as problem:  # noqa: BLE001 - the run itself is finished
            run.events.warning("wandb.unfinished", reason=_one_line(problem))


@define(eq=False)
class Session:
    """An open run of wandb's."""

    _run: WandbRun
    _mode: Literal["online", "offline"]

    def announce(self, run: Run) -> None:
        """Tell people where to look."""
        if self._mode == "online":
            run.events.info("wandb.started", url=self._run.url)
        else:
            directory = Path(self._run.settings.sync_dir).resolve()
            run.events.info("wandb.started", mode="offline", upload=f"wandb sync {directory}")

    def log(self, step: int, metrics: Mapping[str, float | Figure]) -> None:
        """Send numbers and figures, for *step*."""
        content = {
            key: float(value) if isinstance(value, float | Real) else _image(value)
            for key, value in metrics.items()
        }
        self._run.log({**content, "step": step})

    def finish(self, exit_code: int) -> None:
        """Upload the rest, for a limited time."""
        self._run.finish(exit_code=exit_code)


def _image(figure: Figure) -> Image:
    """Draw *figure*; wandb would do it through pyplot, which is global."""
    import wandb
    from PIL import Image as Pixels

    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return wandb.Image(Pixels.open(drawn))


def _has_key() -> bool:
    """Tell whether wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _keep_id(path: Path, known: str | None) -> str:
    """Return the id that this directory's run has had before, else *known*, else a new one."""
    with suppress(OSError):
        known = path.read_text(encoding="utf-8").strip() or known
    chosen = known or secrets.token_hex(4)
    with suppress(OSError):  # the checkpoint keeps it too
        path.write_text(chosen + "\n", encoding="utf-8")
    return chosen


def _stop_service(environment: Mapping[str, str]) -> None:
    """End wandb's background process, unless it was there before the run."""
    if "WANDB_SERVICE" not in environment:
        import wandb

        wandb.teardown(exit_code=0)


def _put_back(environment: Mapping[str, str], excepthook: object, exit_function: object) -> None:
    """Undo what wandb does to the process."""
    for key in [key for key in os.environ if key.startswith("WANDB") and key not in environment]:
        del os.environ[key]
    os.environ.update({key: value for key, value in environment.items() if key.startswith("WANDB")})
    sys.excepthook = excepthook  # type: ignore[assignment]
    sys.exit = exit_function  # type: ignore[assignment]


def _one_line(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())
