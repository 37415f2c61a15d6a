"""Where the runners run: in this process, or in several of this machine that are watched.

Workers are spawned, never forked: a child forked after torch has computed hangs. A worker that dies
is started again, and the markers it left say what killed it; one that is silent for longer than the
timeout is marked and killed by its process id. Workers end by themselves when their parent is gone.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch

from skipstep.pipelines.batch.attempts import mark_timeout
from skipstep.pipelines.batch.plan import Plan, open_plan
from skipstep.pipelines.batch.runner import Event, Runner, Tell, Work
from skipstep.pipelines.batch.stopping import Stop, Stopped, Unwritable
from skipstep.plugins.errors import PluginError

__all__ = ["ERRORS", "Engine", "Load", "run_here", "run_workers", "use_device"]

Engine = Literal["local", "ray"]

Load = Callable[[], Any]
"""Returns the pipeline; for workers it must be picklable: a function of a module, or a partial."""

LOADED_IN = os.getpid()
LOOK_SECONDS = 0.5
# So many workers in a row that die before they begin a batch will not be followed by a better one.
MOST_BARREN = 3
ERRORS: dict[str, type[Exception]] = {"Unwritable": Unwritable, "PluginError": PluginError}


def use_device(local_rank: int) -> None:
    """Give each process of a machine its own GPU, in turns."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())


def run_here(
    work: Work, plan: Plan, load: Load, stop: Stop, tell: Tell, *, local: int = 0, turn: float = 0.0
) -> None:
    """Run in this process.

    Raises PluginError in a process that was forked off one that had torch.
    """
    if os.getpid() != LOADED_IN:
        raise PluginError(
            "this process was forked after torch was loaded, and its first call may hang for ever: "
            'start it with multiprocessing.get_context("spawn"), or leave processes to --workers'
        )
    use_device(local)
    with stop.listening():
        Runner(work, plan, load(), stop, tell, turn).run()


@dataclass(eq=False)
class Worker:
    """A worker as its parent sees it."""

    number: int
    process: BaseProcess
    events: Connection
    heard: float = field(default_factory=time.monotonic)
    has_begun: bool = False
    is_at_end: bool = False
    shard: int | None = None
    error: Exception | None = None

    def is_silent(self, seconds: float) -> bool:
        """Say whether it has been at one batch for too long; loading is not timed."""
        return self.shard is not None and time.monotonic() - self.heard > seconds


def run_workers(
    work: Work,
    plan: Plan,
    load: Load,
    stop: Stop,
    tell: Tell,
    *,
    workers: int,
    timeout: float | None = None,
) -> None:
    """Run in several processes and keep them going until every shard is done.

    Args:
        timeout: seconds that one batch may take; None is for ever.

    Raises Stopped, Unwritable, or what a worker could not start for.
    """
    with stop.listening():
        Crew(work, plan, load, stop, tell, workers, timeout).run()


class Crew:
    """The workers of a run, as their parent keeps them going."""

    def __init__(
        self,
        work: Work,
        plan: Plan,
        load: Load,
        stop: Stop,
        tell: Tell,
        count: int,
        timeout: float | None,
    ) -> None:
        self.work = work
        self.plan = plan
        self.load = load
        self.stop = stop
        self.tell = tell
        self.count = count
        self.timeout = timeout
        self.context = multiprocessing.get_context("spawn")
        self.living: list[Worker] = []
        self.error: Exception | None = None
        self.barren = 0

    def run(self) -> None:
        """Start the workers and watch them until the last one is gone."""
        is_told = False
        try:
            self.living = [self.start(number) for number in range(self.count)]
            while self.living:
                listen(self.living, self.tell)
                for worker in list(self.living):
                    if self.timeout is not None and worker.is_silent(self.timeout):
                        mark_timeout(self.plan.folder, worker.shard or 0)
                        worker.process.kill()
                        worker.heard = time.monotonic()
                    # The pipe ends with the process, after its last event.
                    if worker.is_at_end:
                        self.take_leave(worker)
                if self.stop.words is not None and not is_told:
                    is_told = True
                    for worker in self.living:
                        worker.process.terminate()
        except BaseException:
            for worker in self.living:
                worker.process.kill()
            raise
        if self.error is not None:
            raise self.error
        self.stop.check()

    def start(self, number: int) -> Worker:
        """Start a worker."""
        receiver, sender = self.context.Pipe(duplex=False)
        arguments = (sender, self.work, self.load, number, number / self.count)
        process = self.context.Process(target=work_alone, args=arguments, daemon=True)
        process.start()
        sender.close()
        return Worker(number, process, receiver)

    def take_leave(self, worker: Worker) -> None:
        """Note why a worker ended, and start another in its place if it died."""
        worker.process.join()
        worker.events.close()
        self.living.remove(worker)
        if worker.error is not None:
            self.error = self.error or worker.error
            self.stop.ask(str(worker.error))
            return
        if worker.process.exitcode == 0:
            return
        # What it had made of its shard is lost.
        if worker.shard is not None:
            self.tell(Event("dropped", worker.shard))
        self.barren = 0 if worker.has_begun else self.barren + 1
        if self.barren == MOST_BARREN:
            self.stop.ask(f"{MOST_BARREN} workers in a row died before their first batch")
        if self.stop.words is None:
            self.living.append(self.start(worker.number))


def listen(living: list[Worker], tell: Tell) -> None:
    """Wait a little for events of the workers and hand them on."""
    for connection in wait([worker.events for worker in living], LOOK_SECONDS):
        worker = next(worker for worker in living if worker.events is connection)
        try:
            message = worker.events.recv()
        except (EOFError, OSError):
            worker.is_at_end = True
            continue
        worker.heard = time.monotonic()
        if isinstance(message, Event):
            worker.has_begun = worker.has_begun or message.kind == "begin"
            worker.shard = message.shard if message.kind in ("begin", "made") else None
            tell(message)
        else:
            name, words = message
            worker.error = ERRORS.get(name, RuntimeError)(words)


def work_alone(events: Connection, work: Work, load: Load, number: int, turn: float) -> None:
    """Be a worker: the main function of its process."""
    stop = Stop()

    def tell(event: Event) -> None:
        try:
            events.send(event)
        except OSError:
            stop.ask("its parent is gone")

    # Ctrl-C reaches all processes of a terminal; here it is the parent who says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop.on_signal)
    code = 0
    try:
        plan = open_plan(work.output / "job", work.job)
        if plan is None:
            raise PluginError(f"{work.output}: the plan is gone: run the command again")
        use_device(number)
        Runner(work, plan, load(), stop, tell, turn).run()
    except Stopped:
        # Who was stopped by somebody else than the parent is started again.
        code = 128 + signal.SIGTERM
    except (PluginError, Unwritable, OSError) as error:
        name = "Unwritable" if isinstance(error, Unwritable) else "PluginError"
        with contextlib.suppress(OSError):
            events.send((name, str(error)))
    finally:
        events.close()
    # Threads of libraries must not keep a worker that is done.
    os._exit(code)
