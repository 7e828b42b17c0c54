"""``profile``: where the time of a run goes."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from attrs import asdict, define, field, frozen
from attrs.validators import ge, gt, le, optional

from hookloop.durable import write_whole
from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from hookloop.core import Run
    from hookloop.profiling.device_times import DeviceTimes
    from hookloop.profiling.findings import Arithmetic, Findings, RankSteps, Speed
    from hookloop.profiling.hook_times import HookTimes
    from hookloop.profiling.step_times import StepSummary, StepTimes
    from hookloop.profiling.trace import Trace

_REQUEST = "trace.request"


@frozen
class TraceOptions:
    """When to take a trace, and how long it is."""

    start: int | None = field(
        default=None,
        validator=optional(ge(0)),
        metadata=doc("batches of this process before the trace; none is taken if not given"),
    )
    steps: int = field(
        default=3,
        validator=[ge(1), le(20)],
        metadata=doc(
            "batches in a trace, each some MB of it; fewer where an epoch or a validation comes first"
        ),
    )


@define(eq=False)
class _Session:
    """What is measured of one run."""

    hooks: HookTimes
    steps: StepTimes
    device: DeviceTimes
    name: str
    """What this plugin is called."""
    began: float
    first_batch: float | None = None
    """Seconds from where the run was made."""
    computed: int = 0
    """Nanoseconds of ``train_step`` so far."""
    uncounted: int = 0
    """Of those, what lies in steps that are left out."""
    trace: Trace | None = None
    traced_from: int = 0
    """Batches of this process before it."""
    trace_wanted: bool = False
    """Whether the next batch is to be the first of one."""


@define(eq=False)
class Profile:
    """Tell at the end of a run where its time has gone: hooks, plugins, data, device, memory, MFU.

    Nothing waits for the device while the run goes on, and nothing that is learnt changes. A table is shown, and
    ``profile.json`` in the run's directory holds all of it, of the last start. After an error there is neither.
    An empty file ``trace.request`` in the run's directory asks for a trace at the next log.
    """

    every_n_batches: int = field(
        default=100, validator=ge(0), metadata=doc("log profile/… this often; 0: never")
    )
    skip: int = field(
        default=10, validator=ge(0), metadata=doc("first batches of a process that step times leave out")
    )
    peak_tflops: float | None = field(
        default=None,
        validator=optional(gt(0.0)),
        metadata=doc(
            "what MFU is relative to, such as 989.4 for an H100 in bf16; measured with a matrix product if not given"
        ),
    )
    trace: TraceOptions = field(
        factory=TraceOptions, metadata=doc("a trace of torch's profiler: when it starts, and how many steps")
    )
    _session: _Session | None = field(default=None, init=False)

    @hookimpl(wrapper=True, tryfirst=True)  # outermost: everybody's before_run is timed too
    def before_run(self, run: Run) -> Generator[None, object, object]:
        """Begin to time every hook."""
        from hookloop.profiling.device_times import times_of
        from hookloop.profiling.hook_times import HookTimes
        from hookloop.profiling.step_times import StepTimes

        hooks = HookTimes()
        name = next(name for name, plugin in run.plugins.items() if plugin is self)
        steps, began = StepTimes(), time.perf_counter()
        self._session = _Session(hooks, steps, times_of(run.device), name, began)
        hooks.attach(run.hook, run.cleanup)
        return (yield)

    @hookimpl(tryfirst=True)  # before whatever others do there
    def before_epoch(self, run: Run) -> None:
        """What comes next is no step."""
        self._interrupt(run)

    @hookimpl(wrapper=True, tryfirst=True)  # outermost, for the same reason
    def validate(self, run: Run) -> Generator[None, object, object]:
        """What comes next is no step."""
        self._interrupt(run)
        return (yield)

    def _interrupt(self, run: Run) -> None:
        """End the trace, which would grow without bound; measure the next step by itself."""
        session = self._session
        if session is None:
            return
        session.device.interrupt()
        if session.trace is not None:
            self._write_trace(run, session)

    @hookimpl(tryfirst=True)  # the wait for the batch ends here
    def before_batch(self, run: Run) -> None:
        """The batch is here."""
        session = self._session
        if session is None:
            return
        session.steps.begin(session.hooks.left)
        if session.first_batch is None:
            session.first_batch = time.monotonic() - run.started
        if session.steps.seen == self.trace.start and run.ranks.leads:
            session.trace_wanted = True
        if session.trace_wanted and session.trace is None:
            self._begin_trace(run, session)
        if session.steps.seen >= self.skip and session.trace is None:
            session.device.begin()

    @hookimpl(trylast=True)  # whatever belongs to the step is over
    def after_batch(self, run: Run) -> None:
        """The step is over; every so many log how it went."""
        session = self._session
        if session is None:
            return
        session.device.end()
        computed, session.computed = session.computed, session.hooks.outermost("train_step")
        if session.steps.seen < self.skip or session.trace is not None:
            session.steps.leave_out()
            session.uncounted += session.computed - computed
        else:
            session.steps.end()
        if session.trace is not None and session.steps.seen == session.traced_from + self.trace.steps:
            self._write_trace(run, session)
        if self.every_n_batches and run.progress.step % self.every_n_batches == 0:
            self._log(run, session)

    def _log(self, run: Run, session: _Session) -> None:
        """Log how the steps since the last log went, and look whether anybody asks for a trace."""
        from hookloop.profiling.memory import high_water

        device = session.device.window()
        metrics = {f"{kind}_gib": size / 2**30 for kind, size in high_water(run.device).items()}
        if (steps := session.steps.window()) is not None:
            metrics |= {
                "step_seconds": steps.median,
                "step_seconds_p90": steps.p90,
                "data_wait_share": steps.wait_share,
                "samples_per_second": _samples(run) / steps.mean,
            }
        if device is not None:
            metrics["device_seconds"] = device.mean
        if device is not None and device.idle_share is not None:
            metrics["device_idle_share"] = device.idle_share
        run.log({f"profile/{name}": value for name, value in metrics.items()})
        if session.trace is None and run.ranks.leads and (run.dir / _REQUEST).exists():
            (run.dir / _REQUEST).unlink(missing_ok=True)
            session.trace_wanted = True

    def _begin_trace(self, run: Run, session: _Session) -> None:
        from hookloop.profiling import trace

        session.trace_wanted, session.traced_from = False, session.steps.seen
        with _costing_no_more(run):
            session.trace = trace.begin(session.hooks, run.device, run.progress.step)

    def _write_trace(self, run: Run, session: _Session) -> None:
        """End the trace and write as much as there is."""
        trace, session.trace = session.trace, None
        assert trace is not None
        session.device.interrupt()
        steps = session.steps.seen - session.traced_from
        with _costing_no_more(run):
            path = trace.write(run.dir / "profile")
            run.events.info("trace.written", path=str(path), first_step=trace.first, steps=steps)

    @hookimpl(trylast=True)  # everybody's shutdown is timed too
    def shutdown(self, run: Run, error: BaseException | None) -> None:
        """Say where the time has gone; after an error nothing, since others may be gone and the device broken."""
        session, self._session = self._session, None
        if session is None:
            return
        if error is not None:
            if session.trace is not None:
                session.trace.drop()
            return
        if session.trace is not None:
            self._write_trace(run, session)
        wall = time.perf_counter() - session.began
        ranks = run.ranks.gather(_own_steps(run, session))
        if run.ranks.leads:  # alone: others would compete for what is measured now
            _tell(run, _find_out(run, session, self.peak_tflops, wall, ranks))


@contextmanager
def _costing_no_more(run: Run) -> Iterator[None]:
    """Tell of a trace that cannot be taken or written, which costs the run nothing else."""
    try:
        yield
    except (OSError, RuntimeError) as problem:
        run.events.warning("trace.unwritten", reason=str(problem), hint="the run goes on without it")


def _own_steps(run: Run, session: _Session) -> RankSteps:
    """Sum up for others how fast this rank was."""
    from hookloop.profiling.findings import RankSteps

    steps = session.steps.all()
    return RankSteps(run.ranks.rank, steps.median if steps else None, steps.wait_share if steps else None)


def _samples(run: Run) -> float:
    """Samples of a batch, of all ranks, as the mean of an epoch."""
    data = run.task.data["train"]
    return data.n_samples / data.n_batches


def _find_out(
    run: Run, session: _Session, peak_tflops: float | None, wall: float, ranks: Sequence[RankSteps]
) -> Findings:
    """Sum up what was measured, and measure what would have disturbed the run."""
    from hookloop.profiling import findings
    from hookloop.profiling.hook_times import cost_of_timing
    from hookloop.profiling.memory import high_water

    memory = high_water(run.device)
    session.device.settle()
    steps = session.steps.all()
    began = time.perf_counter()
    timing = (session.hooks.own(session.name) + session.hooks.calls * cost_of_timing()) / 1e9
    arithmetic = _arithmetic(run, steps, peak_tflops)
    at_end = time.perf_counter() - began
    rows = findings.hook_rows(session.hooks, wall)
    stalls, longest = findings.checkpoint_stalls(rows)
    return findings.Findings(
        step=run.progress.step,
        device=_name_of(run),
        precision=str(run.optimization.precision).removeprefix("torch."),
        wall=wall,
        to_first_batch=session.first_batch,
        seen=session.steps.seen,
        speed=_speed(run, session, steps, arithmetic) if steps else None,
        device_steps=session.device.all(),
        arithmetic=arithmetic,
        memory=memory,
        phases=findings.phases_of(session.hooks, session.steps, wall),
        checkpoint_stalls=stalls,
        longest_checkpoint_stall=longest,
        timing_cost=timing,
        at_end=at_end,
        ranks=ranks,
        hooks=rows,
    )


def _speed(run: Run, session: _Session, steps: StepSummary, arithmetic: Arithmetic) -> Speed:
    from hookloop.profiling.findings import Speed, bound_by

    compute = session.computed - session.uncounted
    share = compute / 1e9 / (steps.mean * steps.steps)
    verdict = bound_by(steps, share, session.device.all(), gpu=run.device.type == "cuda")
    return Speed(steps, _samples(run) / steps.mean, share, verdict, arithmetic.mfu(steps.mean))


def _arithmetic(run: Run, steps: StepSummary | None, peak_tflops: float | None) -> Arithmetic:
    """Count a step's operations and measure the device, if there is anything to relate to them, and time for it."""
    from hookloop.profiling import compute
    from hookloop.profiling.findings import Arithmetic

    if steps is None or (run.stopping is not None and run.stopping.code):
        return Arithmetic(None, None, "not measured: the run was stopped, or too short")
    try:
        flops = compute.flops_of_step(run)
        if flops is None:
            return Arithmetic(None, None, "not measured: no rank has whole weights")
        if not flops:
            return Arithmetic(0, None, "not measured: a step has no product and no convolution")
        if peak_tflops is not None:
            return Arithmetic(flops, peak_tflops * 1e12, "profile.peak_tflops")
        peak = compute.gemm_peak(run.device, run.optimization.precision)
    except Exception as problem:  # noqa: BLE001 - a run that has ended well must not fail for its profile
        return Arithmetic(None, None, f"not measured: {problem!r:.200}")
    return Arithmetic(flops, peak, "what a large matrix product reached here")


def _name_of(run: Run) -> str:
    """Say what the device is."""
    if run.device.type != "cuda":
        return run.device.type
    import torch

    return torch.cuda.get_device_name(run.device)


def _tell(run: Run, found: Findings) -> None:
    """Show it and write it down."""
    from hookloop.profiling.table import facts, show

    path = run.dir / "profile.json"
    content = {"facts": dict(facts(found)), **asdict(found)}

    def put(file: BinaryIO) -> None:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")

    show(found)
    try:
        write_whole(path, put)
        run.events.info(
            "profile.written", path=str(path), verdict=found.speed.verdict if found.speed else None
        )
    except OSError as problem:
        run.events.warning("profile.unwritten", path=str(path), reason=problem.strerror)
