"""The command line: parse, build, train, answer. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import platform
import re
import sys
import traceback
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hookloop.arguments import config_options, names
from hookloop.distributed import is_joined, is_restarted, joined, leave
from hookloop.errors import HookloopError, Told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hookloop.core import Run
    from hookloop.distributed import Ranks
    from hookloop.manager import Assembly


_HELP = 120
"""Characters of a command's help in a list."""


class Commands(click.Group):
    """Our own commands and those offered in group ``hookloop.commands``, loaded only when named.

    An entry point ``init.downscaling`` is the command ``hookloop init downscaling``.
    """

    prefix = ""

    def _offered(self) -> dict[str, str]:
        names = (entry.name for entry in entry_points(group="hookloop.commands"))
        return {
            name.removeprefix(self.prefix): name
            for name in names
            if name.startswith(self.prefix) and "." not in name.removeprefix(self.prefix)
        }

    def _described(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, if it may be imported for its help alone: those of this package import nothing heavy."""
        entries = entry_points(group="hookloop.commands", name=self._offered().get(name, ""))
        light = all(entry.dist is not None and entry.dist.name == "hookloop" for entry in entries)
        return self.get_command(ctx, name) if light else super().get_command(ctx, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command by name, without loading any."""
        return sorted({*super().list_commands(ctx), *self._offered()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """One command, imported if it is not ours."""
        own = super().get_command(ctx, name)
        if own is None and name in (offered := self._offered()):
            return _load_command(offered[name])
        return own

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; those of others, which would have to be imported, are named without their help."""
        rows = []
        for name in self.list_commands(ctx):
            own = self._described(ctx, name)
            rows.append((name, own.get_short_help_str(_HELP) if own else "from a plugin; see its --help"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _load_command(name: str) -> click.Command:
    """Import one offered command.

    :raises HookloopError: where two distributions offer it or it cannot be imported.
    """
    entries = {entry.value: entry for entry in entry_points(group="hookloop.commands", name=name)}
    if len(entries) > 1:
        found = " and ".join(sorted(entry.dist.name if entry.dist else "?" for entry in entries.values()))
        raise HookloopError(f"command '{name}': offered by {found}; uninstall one")
    ((value, entry),) = entries.items()
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise HookloopError(f"command '{name}' ({value}): cannot be imported: {error}") from error
    if not isinstance(loaded, click.Command):
        raise HookloopError(f"command '{name}' ({value}): found no click command there")
    return loaded


class InitCommands(Commands):
    """``hookloop init NAME``."""

    prefix = "init."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hookloop")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train models with an event loop made of plugins.

    Try: hookloop init downscaling sample && hookloop run sample/cfg.yaml
    """
    context.obj = _make_run  # for commands of plugins, which must not import what assembles plugins


def _make_run(config: Path, plugins: Sequence[str] | None, overrides: Sequence[str]) -> Run:
    """Make the run that a configuration describes, and touch nothing on the disk."""
    from hookloop import logs, manager

    return manager.make_run(_assemble(config, plugins, overrides), logs.events_to(None))


def _processes(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Check ``--nproc``."""
    if value is None or value == "auto" or (value.isdecimal() and int(value) > 0):
        return value
    raise click.BadParameter(f"expected auto or a number of processes, found {value!r}")


def process_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what starts several processes: parameters nproc, nnodes, rdzv_endpoint, rdzv_id and max_restarts."""
    positive, several = click.IntRange(min=1), "With --nnodes: "
    for decorate in (
        click.option(
            "--max-restarts", type=click.IntRange(min=0), default=0, help="How often to go on after a crash."
        ),
        click.option("--rdzv-id", default="hookloop", metavar="NAME", help=f"{several}the name of the job."),
        click.option("--rdzv-endpoint", metavar="HOST:PORT", help=f"{several}where they meet."),
        click.option(
            "--nnodes", type=positive, default=1, help="Nodes, on each of which the command is run."
        ),
        click.option("--nproc", callback=_processes, metavar="N|auto", help="Processes; auto: one a GPU."),
    ):
        function = decorate(function)
    return function


@cli.command()
@config_options
@click.option("--dir", "directory", metavar="DIR", help="Where the run writes; overrides run.dir.")
@click.option("--fresh", is_flag=True, help="Demand an empty or absent directory instead of resuming.")
@process_options
def run(
    config: Path,
    plugins: list[str] | None,
    overrides: tuple[str, ...],
    directory: str | None,
    *,
    fresh: bool,
    **several: Any,
) -> None:
    """Train as CONFIG says, or go on where the run in its directory stopped."""
    from hookloop.launch import Processes, launch

    command = partial(_run, config, plugins, overrides, directory, fresh=fresh)
    processes = Processes.asked(**several)
    if processes is None:
        sys.exit(command())
    where = _assemble(
        config, plugins, overrides, directory
    ).config.dir  # mistakes need no processes to be found
    sys.exit(launch(processes, partial(_answer, command), where))


def _run(
    config: Path, plugins: list[str] | None, overrides: tuple[str, ...], directory: str | None, *, fresh: bool
) -> int:
    """Train in this process, alone or with others, and give the exit code."""
    from hookloop.core import train

    with joined() as ranks:
        with ranks.leader_first():
            assembly = _assemble(config, plugins, overrides, directory)
            _make_directory(assembly.config.dir)
        with _running(assembly, ranks, fresh=fresh and not is_restarted()) as this:
            train(this, begun=lambda: _record(assembly, ranks))
            code = _tell_end(this)
    return code


@contextmanager
def _running(assembly: Assembly, ranks: Ranks, *, fresh: bool = False) -> Iterator[Run]:
    """Hold the directory and make the run; what ends it goes into its log too, the console has it from others."""
    from hookloop import locking, logs, manager

    where = assembly.config.dir
    path = where / logs.log_of(ranks.rank)
    events = logs.events_to(path, rank=ranks.rank)
    with ExitStack() as held:
        with ranks.leader_first():
            if ranks.leads:
                held.enter_context(locking.lock(where, events))
                if fresh:
                    _expect_empty(where)
        if is_restarted():
            events.warning("run.restarted", hint="the error is above")
        for note in assembly.notes:
            events.info("section.skipped", note=note)
        this = manager.make_run(assembly, events, ranks)
        try:
            yield this
        except BaseException as error:
            cause = error.__cause__ if isinstance(error, Told) else None
            logs.events_to(path, io.StringIO()).error("run.failed", error=repr(cause or error))
            raise


def _record(assembly: Assembly, ranks: Ranks) -> None:
    """Write down what is run, and where."""
    from hookloop import manager, records

    hosts = ranks.gather(platform.node())
    if ranks.leads:
        where = assembly.config.dir
        records.write_config(where, assembly.document, manager.listing_of(list(assembly.plugins)))
        records.write_environment(where, hosts)


def _tell_end(run: Run) -> int:
    """Tell how a run has ended, and give the exit code."""
    at, stop = run.progress, run.stopping
    if stop is None:
        run.events.info("run.finished", epoch=at.epoch, step=at.step)
        return 0
    run.events.info("run.stopped", why=stop.why, epoch=at.epoch, step=at.step, code=stop.code)
    return stop.code


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@config_options
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to write; evaluations/CHECKPOINT in run.dir if not given.",
)
@process_options
def evaluate(
    checkpoint: Path,
    config: Path,
    plugins: list[str] | None,
    overrides: tuple[str, ...],
    directory: Path | None,
    **several: Any,
) -> None:
    """Validate and infer once with CHECKPOINT, any file of a run, as CONFIG says.

    Prints a line for each metric, its key and its value. With the run's own CONFIG these are the numbers that
    the run logged for that epoch. Whatever CONFIG says, inference takes place (generation.epochs is '::1') and
    the epoch of the checkpoint is the last (run.max_epochs).
    """
    from hookloop.launch import Processes, launch

    command = partial(_evaluate, checkpoint, config, plugins, overrides, directory)
    processes = Processes.asked(**several)
    sys.exit(launch(processes, partial(_answer, command)) if processes else command())


def _evaluate(
    checkpoint: Path,
    config: Path,
    plugins: list[str] | None,
    overrides: tuple[str, ...],
    directory: Path | None,
) -> int:
    """Evaluate in this process, alone or with others, and give the exit code."""
    from hookloop import evaluate as evaluation
    from hookloop import warm_start

    with joined() as ranks:
        with ranks.leader_first():
            assembly = _assemble(config, plugins, overrides)
            state = warm_start.read(checkpoint)
            where = evaluation.directory_for(checkpoint, assembly.config.dir, directory)
            assembly = evaluation.adapt(assembly, state, where)
            _make_directory(where)
        with _running(assembly, ranks) as this:
            metrics = evaluation.evaluate(this, checkpoint, state, begun=lambda: _record(assembly, ranks))
            this.events.info("evaluation.written", directory=str(where))
            code = _tell_end(this)
    if ranks.leads:
        for key, value in (metrics or {}).items():
            click.echo(f"{key} {value!r}")
    return code


def _make_directory(where: Path) -> None:
    from hookloop.durable import make_directory

    try:
        make_directory(where)
    except OSError as error:
        raise HookloopError(f"{where}: cannot be written: {error.strerror}; choose another --dir") from error


def _expect_empty(where: Path) -> None:
    """A start that failed before it trained leaves logs and nothing else: that is still empty."""
    found = {path.name for path in where.iterdir()} - {"run.lock", "log.jsonl"}
    if any(not re.fullmatch(r"log\.rank[0-9]+\.jsonl", name) for name in found):
        raise HookloopError(f"{where}: not empty, and --fresh expects an empty or absent directory")


def _assemble(
    config: Path, plugins: Sequence[str] | None, overrides: Sequence[str], directory: str | None = None
) -> Assembly:
    from hookloop import manager, yamlfile

    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise HookloopError(f"{config}: cannot be read: {reason}") from error
    document = yamlfile.read(text, str(config), overrides)
    if directory is not None:
        section = document.data.get("run")
        if section is None or isinstance(section, dict):
            document.data["run"] = {**(section or {}), "dir": directory}
            document.places["run", "dir"] = "--dir"
    return manager.assemble(document, plugins)


@cli.group(cls=InitCommands)
def init() -> None:
    """Write sample data and a configuration that runs as it is."""


@cli.group()
def config() -> None:
    """Look at configurations."""


@config.command()
@config_options
def check(config: Path, plugins: list[str] | None, overrides: tuple[str, ...]) -> None:
    """Say whether CONFIG is sound, or every problem in it, a line each."""
    assembly = _assemble(config, plugins, overrides, None)
    for note in assembly.notes:
        click.echo(f"note: {note}")
    if not any(hasattr(plugin, "make_task") for plugin in assembly.plugins.values()):
        click.echo("note: none of the plugins makes a task, so there is nothing to train")
    click.echo(f"{config}: sound; plugins in firing order: {', '.join(assembly.plugins)}")


@cli.command(name="plugins")
def list_plugins() -> None:
    """List every installed plugin: version, source, hooks and options."""
    from hookloop import describe

    click.echo(describe.plugins())


@cli.command()
@click.option("--order", is_flag=True, help="Who answers each hook, in firing order.")
@click.option("--plugins", callback=names, metavar="LIST", help="Plugins in firing order, with --order.")
def hooks(plugins: list[str] | None, *, order: bool) -> None:
    """Print the hook reference, or with --order who answers each hook."""
    from hookloop import describe

    if plugins is not None and not order:
        raise click.UsageError("--plugins goes with --order")
    click.echo(describe.order(plugins or []) if order else describe.hooks())


def main(argv: Sequence[str] | None = None) -> None:
    """Answer with an exit code: 0 finished, 1 a crash, 2 the user's mistake, 75 and 128+N resumable."""
    code = _answer(partial(cli.main, args=argv, prog_name="hookloop", standalone_mode=False))
    if is_joined():
        leave(code)
    sys.exit(code)


def _answer(command: Callable[[], object]) -> int:
    """Do what the command line says, tell what goes wrong, and give the exit code."""
    try:
        code = command()
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except HookloopError as error:
        if not isinstance(error, Told):
            print(error, file=sys.stderr)  # noqa: T201
        return error.code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - ours: the traceback is the message
        if _is_an_interrupt(error):
            return 130
        traceback.print_exc()
        return 1
    return code if isinstance(code, int) else 0  # an int is what a command gave to ctx.exit


def _is_an_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: compiled code, such as HDF5's, turns it into errors of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
