"""The reference model's planned cache: half of 20 steps, chosen by `skipstep.plan_cache`.

Run: python -m skipstep.pipelines.reference.planned        writes `schedule-20.json` (6 seconds)

Eight evaluation prompts, none of which the demo shows, are run uncached and recorded; the plan for
ten computed steps follows from that. What stands in is the denoiser's output, half of the way along
the line through its last two computed values.
"""

from pathlib import Path

from skipstep.caching.forecasters.fitted import HALF_A_LINE
from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.caching.product import Cache
from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.tune.plan import plan_cache, schedule_cache

__all__ = ["STEPS", "planned_cache"]

STEPS = 20
FILE = Path(__file__).with_name(f"schedule-{STEPS}.json")
SPAN = "output"
EVERY, FIRST_SEED = 32, 1000


def planned_cache() -> Cache:
    """Return the cache that computes the file's steps; it refuses other models and step counts."""
    return schedule_cache(Schedule.load(FILE), HALF_A_LINE, SPAN)


def main() -> None:
    prompts = [prompt["prompt"] for prompt in load_prompts()[1::EVERY]]
    cache = plan_cache(
        load_reference(),
        prompts,
        fraction=0.5,
        steps=STEPS,
        span=SPAN,
        path=FILE,
        seed=FIRST_SEED,
    )
    if isinstance(cache.gate, ScheduleGate):
        print(f"{FILE.name}: {cache.gate.schedule.compute}")


if __name__ == "__main__":
    main()
