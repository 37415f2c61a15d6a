"""Shards on a Ray cluster: Ray Data maps actors over shard numbers, and that is all it does.

An actor is a Runner of its own; what makes a shard done, and a run the same for any number of
crashes, is as everywhere: plan, markers, manifests. So Ray's own checkpoints are not used, its
retries may go on for ever (the markers end what kills its process again and again), and the order
in which it hands out shards does not matter. The folder must be one that all nodes see.

Settings measured with Ray 2.60: `max_tasks_in_flight_per_actor=1`, or innocent shards are queued
behind one that kills its actor; one block a shard; errors are returned, never raised, for a raised
one costs its whole block.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skipstep.pipelines.batch import manifests
from skipstep.pipelines.batch.attempts import mark_timeout
from skipstep.pipelines.batch.engines import ERRORS, Load, use_device
from skipstep.pipelines.batch.making import in_words
from skipstep.pipelines.batch.plan import Plan, open_plan
from skipstep.pipelines.batch.runner import Event, Runner, Tell, Work
from skipstep.pipelines.batch.stopping import Stop, Stopped, Unwritable
from skipstep.plugins.errors import PluginError

__all__ = ["run_ray"]

STORE_BYTES = 200 * 2**20
STOP_FILE = "stop"
LOOK_SECONDS = 0.3


def run_ray(
    work: Work,
    plan: Plan,
    load: Load,
    stop: Stop,
    tell: Tell,
    *,
    workers: int = 0,
    timeout: float | None = None,
) -> None:
    """Run on the cluster that RAY_ADDRESS names, else on a Ray of its own on this machine.

    Args:
        load: must be picklable.
        workers: actors; 0 is one for each GPU, or one.
        timeout: seconds that one batch may take; None is for ever.

    Raises Stopped, Unwritable, or what a worker could not start for.
    """
    waiting = [k for k in range(len(plan.offsets)) if not manifests.is_there(plan.folder, k)]
    if work.verify or not waiting:
        # Looking at what is there needs a runner too.
        waiting = list(range(len(plan.offsets)))
    asked = plan.folder / STOP_FILE
    asked.unlink(missing_ok=True)
    with stop.listening(), cluster(workers) as gpus, handing_on(stop, asked):
        count = min(workers or max(1, gpus), len(waiting))
        results = shards_on_actors(waiting, count, gpus, (work, load, timeout))
        error: Exception | None = None
        for result in results:
            for event in result["events"]:
                tell(Event(*event))
            if result["error"] is not None:
                name, words = result["error"]
                error = error or ERRORS[name](words)
                stop.ask(words)
    if error is not None:
        raise error
    stop.check()
    left = [k for k in range(len(plan.offsets)) if not manifests.is_there(plan.folder, k)]
    if left:
        raise Stopped(f"{len(left)} shards were lost with their workers")


@contextlib.contextmanager
def handing_on(stop: Stop, asked: Path) -> Iterator[None]:
    """Turn a wish to end into a file, which runners look for before every batch."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_SECONDS):
            if stop.words is not None:
                asked.touch()
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        asked.unlink(missing_ok=True)


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[int]:
    """Be connected to Ray inside a `with` block; gives the number of GPUs there."""
    # Ray reports usage unless it is told not to before it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise PluginError(
            '--engine ray needs Ray: pip install "skipstep[cluster]", or use --workers on one '
            "machine"
        ) from None
    is_ours = not ray.is_initialized()
    if is_ours and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    elif is_ours:
        ray.init(
            num_cpus=max(workers, 1) + 1,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
        )
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        if is_ours:
            ray.shutdown()


def shards_on_actors(
    waiting: list[int], count: int, gpus: int, given: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    """Yield what came of each shard, in the order of their ends."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # What an actor raises is a shard without a manifest, which the next run makes.
    context.max_errored_blocks = -1
    numbers = ray.data.from_items([{"shard": k} for k in waiting], override_num_blocks=len(waiting))
    results = numbers.map(
        ShardRunner,
        fn_constructor_args=given,
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in results.iter_rows():
        yield json.loads(row["result"])


class FolderStop(Stop):
    """A wish to end that is a file in the job's folder, seen from every node."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / STOP_FILE

    def check(self) -> None:
        """Raise Stopped if somebody asked."""
        if self.path.exists():
            self.ask("stopped by the driver")
        super().check()


class Watch:
    """Kills its own process when a batch takes too long; the marker says why."""

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self.folder = folder
        self.seconds = seconds
        self.timer: threading.Timer | None = None

    def hear(self, event: Event) -> None:
        """Begin to count with every batch, and stop with its end."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if event.kind == "begin" and self.seconds is not None:
            self.timer = threading.Timer(self.seconds, self.end, (event.shard,))
            self.timer.daemon = True
            self.timer.start()

    def end(self, shard: int) -> None:
        """Leave at once, as if killed: nothing is cleaned up by a process that hangs."""
        mark_timeout(self.folder, shard)
        os._exit(1)


class ShardRunner:
    """A Ray actor: holds a pipeline and makes one shard a call."""

    def __init__(self, work: Work, load: Load, timeout: float | None) -> None:
        self.events: list[Event] = []
        self.error: tuple[str, str] | None = None
        self.runner: Runner | None = None
        folder = work.output / "job"
        self.watch = Watch(folder, timeout)
        try:
            plan = open_plan(folder, work.job)
            if plan is None:
                raise PluginError(f"{work.output}: this node does not see the folder of the job")
            # Ray shows each actor its own GPU only.
            use_device(0)
            self.runner = Runner(work, plan, load(), FolderStop(folder), self.hear)
        except (PluginError, OSError) as error:
            self.error = ("PluginError", str(error))
        except Exception as error:
            # Raised here it would be the end of Ray Data's whole map, in many lines.
            self.error = ("PluginError", f"a worker cannot start: {in_words(error)}")

    def hear(self, event: Event) -> None:
        """Keep an event for the driver, and watch the time of batches."""
        self.watch.hear(event)
        self.events.append(event)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make a shard and return its events, and what ended it if something did."""
        if self.runner is not None and self.error is None:
            try:
                self.runner.run([int(row["shard"])])
            except Stopped:
                pass
            except (PluginError, Unwritable) as error:
                name = "Unwritable" if isinstance(error, Unwritable) else "PluginError"
                self.error = (name, str(error))
        events, self.events = self.events, []
        told = [
            (event.kind, event.shard, event.ok, event.failed, event.computed) for event in events
        ]
        # Text, because Ray Data keeps what it is given in Arrow's columns of one type.
        return {"result": json.dumps({"events": told, "error": self.error})}
