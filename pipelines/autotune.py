"""A target instead of a knob: find, prove and enable the recipe that meets it.

1. The calibration prompts run once, instrumented, for planned schedules (plan.py).
2. Trials: arms (tune_arms.py) run on the calibration prompts. The first are one of each sort; then
   optuna's multi-objective TPE proposes, minimising (work, feature distance).
3. Of the arms that meet the target the best is judged on prompts that no trial saw, beside fewer
   plain steps of the same work; one that fails there gives way to the next, a few times.

Every trial is in the store, an SQLite file. A tuning that was stopped goes on there: finished
trials are read, the interrupted one runs again. A tuning of another pipeline, target prompts, steps
or call has a study of its own in the same file.
"""

import hashlib
import inspect
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from skipstep.pipelines.compare import OURS, bare, silent
from skipstep.pipelines.plan import Trajectories, instrument
from skipstep.pipelines.progress import Progress, progress_bar
from skipstep.pipelines.trial import Outcome, Trier
from skipstep.pipelines.tune_arms import FEWEST, ArmSpace, describe
from skipstep.pipelines.tuning import Target, Trial, Tuning
from skipstep.plugins.errors import PluginError
from skipstep.plugins.fingerprint import bound_call, fingerprint, of_the_call
from skipstep.plugins.spelling import did_you_mean

__all__ = ["autotune"]

logger = logging.getLogger(__name__)

TARGETS = ("target_speedup", "max_feature_distance", "min_psnr")
MISSING = 'autotune needs optuna: pip install "skipstep[tune]"'
HELD_OUT_SEED = 10_000
SECOND_CHANCES = 2
SLACK = 0.05
IN_VAIN = 30
"""So many proposals in a row that were tried before, or failed, end the search."""


def autotune(
    pipe: Any,
    prompts: Sequence[Any] | None = None,
    *,
    target_speedup: float | None = None,
    max_feature_distance: float | None = None,
    min_psnr: float | None = None,
    held_out: Sequence[Any] | None = None,
    steps: int = 20,
    trials: int = 40,
    budget_minutes: float | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **call: Any,
) -> Tuning:
    """Find the recipe that meets one target, enable it on the pipeline and return what was found.

    Args:
        prompts: to tune on; None takes the reference model's. Without `held_out` a third of them
            is kept back to judge the winner.
        target_speedup: at least so many times less work (FLOPs), 2.5 for example; the closest arm
            wins.
        max_feature_distance: at most this feature distance (metrics/fidelity.py); the arm of least
            work wins. min_psnr: at least so many decibels, likewise.
        held_out: prompts that only the winner is judged on.
        trials: most arms to try, those of earlier runs in the store included.
        budget_minutes: no trial starts that would probably end later.
        store: an SQLite file of all trials, made if it is not there; None keeps nothing.
        progress: called with the trials done, the trials in all and the arm; None shows a bar on a
            terminal.
        call: goes to the pipeline: guidance_scale, height, width, ...

    Raises PluginError for unusable arguments and where optuna is not installed.
    """
    target = read_target(target_speedup, max_feature_distance, min_psnr)
    check(pipe, steps, trials, budget_minutes, call)
    tuned_on, judged_on = split_prompts(pipe, prompts, held_out)
    job = Job(pipe, tuned_on, judged_on, steps, seed, call, target)
    started = time.monotonic()
    deadline = None if budget_minutes is None else started + 60 * budget_minutes
    with silent(pipe), bare(pipe):
        if progress is not None:
            tuning = job.run(trials, deadline, store, progress)
        else:
            with progress_bar() as bar:
                tuning = job.run(trials, deadline, store, bar)
    tuning.seconds = time.monotonic() - started
    for plugin in tuning.plugins:
        pipe.enable_plugin(plugin, replace=True)
    return tuning


def read_target(
    target_speedup: float | None, max_feature_distance: float | None, min_psnr: float | None
) -> Target:
    """Return the one target that was given."""
    values = (target_speedup, max_feature_distance, min_psnr)
    given = [(n, v) for n, v in zip(TARGETS, values, strict=True) if v is not None]
    if len(given) != 1:
        raise PluginError(
            f"autotune: {len(given)} targets given: give one of {', '.join(TARGETS)}, "
            "for example target_speedup=2.0"
        )
    name, value = given[0]
    lowest = 1.0 if name == "target_speedup" else 0.0
    if not lowest < value < float("inf"):
        raise PluginError(f"autotune: {name}={value} is not allowed: must be above {lowest:g}")
    return Target(name, float(value))


def check(
    pipe: Any, steps: int, trials: int, budget_minutes: float | None, call: dict[str, Any]
) -> None:
    """Raise PluginError for what cannot be tuned."""
    if steps <= FEWEST:
        raise PluginError(f"autotune: steps={steps} is not allowed: must be above {FEWEST}")
    if trials < 1:
        raise PluginError(f"autotune: trials={trials} is not allowed: must be 1 or more")
    if budget_minutes is not None and not budget_minutes > 0:
        raise PluginError(f"autotune: budget_minutes={budget_minutes} is not allowed: above 0")
    # A subclass may pass keywords on, so its bases are asked too.
    known = {
        parameter.name
        for cls in type(pipe).__mro__
        for parameter in inspect.signature(cls.__call__).parameters.values()
        if "__call__" in vars(cls) and parameter.kind is not parameter.VAR_KEYWORD
    }
    own = [each for each in inspect.signature(autotune).parameters if each not in ("pipe", "call")]
    for name in call:
        if name not in known:
            raise PluginError(
                f"autotune: unknown option {name!r}{did_you_mean(name, [*own, *known])} "
                f"Options: {', '.join(own)}, and those of {type(pipe).__name__}"
            )
    for name in OURS:
        if name in call:
            raise PluginError(
                f"autotune: {name} cannot be passed on, autotune sets it itself "
                "(use prompts, held_out, steps or seed)"
            )


def split_prompts(
    pipe: Any, prompts: Sequence[Any] | None, held_out: Sequence[Any] | None
) -> tuple[list[Any], list[Any]]:
    """Return the prompts to tune on and those to judge on; none is in both."""
    if prompts is None:
        from skipstep.pipelines.reference.load import ReferencePipeline
        from skipstep.pipelines.reference.prompts import load_prompts

        if not isinstance(pipe, ReferencePipeline):
            raise PluginError(
                "autotune: no prompts given, and only the reference model has some built in: give "
                "a dozen of the sort that you use"
            )
        known: list[Any] = [each["prompt"] for each in load_prompts()]
        tuned = known[:: len(known) // 8][:8]
        return tuned, list(held_out or known[5 :: len(known) // 16][:16])
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if held_out is None:
        kept = max(1, len(given) // 3)
        given, judged = given[:-kept], given[-kept:]
    else:
        judged = list(held_out)
    if not given or not judged:
        raise PluginError(
            "autotune: at least one prompt to tune on and another to judge on are needed: give "
            "two or more, better a dozen"
        )
    both = [each for each in judged if each in given]
    if both:
        raise PluginError(
            f"autotune: {both[0]!r} is to be tuned on and held out: keep the two apart, or the "
            "judgement flatters"
        )
    return given, judged


@dataclass
class Job:
    """One tuning: what it is of, and its steps from the first run to the verdict."""

    pipe: Any
    prompts: list[Any]
    held_out: list[Any]
    steps: int
    seed: int
    call: dict[str, Any]
    target: Target

    def run(
        self,
        trials: int,
        deadline: float | None,
        store: str | Path | None,
        progress: Progress | None,
    ) -> Tuning:
        """Try, choose and judge."""
        study = self.open_study(store)
        space = ArmSpace.of(self.pipe, self.trajectories(study, progress))
        if not study.trials:
            asked = 1 / self.target.value if self.target.name == "target_speedup" else None
            for params in space.first(asked):
                study.enqueue_trial(params)
        seeds = range(self.seed, self.seed + len(self.prompts))
        trier = Trier(self.pipe, self.prompts, seeds, self.steps, self.call)
        self.try_arms(study, space, trier, trials, deadline, progress)
        found = finished(study)
        if not found:
            failed = [t.user_attrs.get("error") for t in study.trials if "error" in t.user_attrs]
            raise PluginError(
                "autotune: no trial succeeded: "
                + (str(failed[0]) if failed else "give more minutes or more trials")
            )
        return self.judge(space, found)

    def open_study(self, store: str | Path | None) -> Any:
        """Open this job's study in the store; what an interrupted run left open is queued again."""
        try:
            import optuna
        except ImportError as error:
            raise PluginError(MISSING) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        about = {
            "fingerprint": fingerprint(self.pipe, **of_the_call(bound_call(self.pipe, self.call))),
            "prompts": [str(prompt) for prompt in self.prompts],
            "steps": self.steps,
            "seed": self.seed,
            "call": {name: repr(value) for name, value in sorted(self.call.items())},
            "target": asdict(self.target),
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        storage = None
        if store is not None:
            path = Path(store).expanduser().resolve()
            if not path.parent.is_dir():
                raise PluginError(f"autotune: store={store}: there is no folder {path.parent}")
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        study = optuna.create_study(
            storage=storage,
            study_name=f"skipstep-{digest}",
            directions=["minimize", "minimize"],
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(
                seed=random.Random(digest).randrange(2**31), n_startup_trials=0
            ),
        )
        study.set_user_attr("about", about)
        for left in study.trials:
            if left.state == optuna.trial.TrialState.RUNNING:
                study.tell(left.number, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(left.params)
        return study

    def trajectories(self, study: Any, progress: Progress | None) -> Trajectories:
        """Instrument the calibration prompts, or read what an earlier run of this study left."""
        kept = study.user_attrs.get("grams")
        if kept is not None:
            grams = {
                name: torch.tensor(gram, dtype=torch.float64)[None] for name, gram in kept.items()
            }
            counted = next(iter(grams.values())).shape[-1]
            about = of_the_call(bound_call(self.pipe, self.call))
            return Trajectories(grams, counted, fingerprint(self.pipe, steps=counted, **about))
        found = instrument(
            self.pipe,
            self.prompts,
            steps=self.steps,
            seed=self.seed,
            features=("residual", "output"),
            progress=progress,
            **self.call,
        )
        # Planning needs the mean over trajectories only.
        means = {name: grams.mean(0) for name, grams in found.grams.items()}
        study.set_user_attr("grams", {name: gram.tolist() for name, gram in means.items()})
        return Trajectories(
            {name: gram[None] for name, gram in means.items()}, found.steps, found.fingerprint
        )

    def try_arms(
        self,
        study: Any,
        space: ArmSpace,
        trier: Trier,
        most: int,
        deadline: float | None,
        progress: Progress | None,
    ) -> None:
        """Run trials until there are `most` or the time is up."""
        longest, in_vain = 0.0, 0
        while (done := len(finished(study))) < most and in_vain < IN_VAIN:
            if deadline is not None and time.monotonic() + longest > deadline and done:
                return
            started = time.monotonic()
            trial = study.ask()
            params = space.suggest(trial)
            known = [each.outcome for each in finished(study) if each.params == params]
            if known:
                in_vain += 1
                study.tell(trial, [known[0].work, known[0].distance])
                continue
            if progress is not None:
                progress(done, most, describe(params))
            try:
                outcome = trier.run(space.plugins(params), space.steps(params))
            # What does not fit this pipeline is no arm of it; the others may.
            except (PluginError, ValueError) as error:
                in_vain += 1
                trial.set_user_attr("error", str(error))
                study.tell(trial, state=fail_state())
                logger.info("%s: %s", describe(params), error)
                continue
            in_vain = 0
            trial.set_user_attr("params", params)
            trial.set_user_attr("outcome", asdict(outcome))
            study.tell(trial, [outcome.work, outcome.distance])
            longest = max(longest, time.monotonic() - started)

    def judge(self, space: ArmSpace, found: list[Trial]) -> Tuning:
        """Judge the best arms on the held-out prompts, until one keeps its promise there."""
        seeds = range(HELD_OUT_SEED + self.seed, HELD_OUT_SEED + self.seed + len(self.held_out))
        trier = Trier(self.pipe, self.held_out, seeds, self.steps, self.call)
        judged: list[tuple[Trial, Outcome]] = []
        for trial in ranked(found, self.target)[: 1 + SECOND_CHANCES]:
            outcome = trier.run(space.plugins(trial.params), space.steps(trial.params))
            judged.append((trial, outcome))
            if self.target.is_met(outcome, SLACK) or not self.target.is_met(trial.outcome):
                break
        kept = [pair for pair in judged if self.target.is_met(pair[1], SLACK)]
        best, held = kept[0] if kept else min(judged, key=lambda pair: self.target.miss(pair[1]))
        plain, plain_steps = None, max(FEWEST, round(held.work * self.steps))
        if best.params["method"] != "fewer" and plain_steps < self.steps:
            plain = trier.run([], plain_steps)
        return Tuning(
            pipeline=type(self.pipe).__name__,
            target=self.target,
            steps=self.steps,
            trials=found,
            best=best,
            plugins=list(space.plugins(best.params)),
            held_out=held,
            plain=plain,
            plain_steps=plain_steps,
            seconds_plain=sorted(trier.plain_seconds)[len(trier.plain_seconds) // 2],
            prompts=[str(prompt) for prompt in self.prompts],
            held_out_prompts=[str(prompt) for prompt in self.held_out],
        )


def fail_state() -> Any:
    """Return optuna's state of a trial that failed."""
    from optuna.trial import TrialState

    return TrialState.FAIL


def finished(study: Any) -> list[Trial]:
    """Return the study's finished trials, each arm once."""
    found: list[Trial] = []
    for each in study.trials:
        if "outcome" in each.user_attrs and each.state.name == "COMPLETE":
            params = each.user_attrs["params"]
            if all(params != other.params for other in found):
                found.append(Trial(each.number, params, Outcome(**each.user_attrs["outcome"])))
    return found


def ranked(found: list[Trial], target: Target) -> list[Trial]:
    """Return the trials that meet the target, best first; if none does, the nearest one."""
    meeting = [trial for trial in found if target.is_met(trial.outcome)]
    if not meeting:
        return [min(found, key=lambda trial: target.miss(trial.outcome))]
    return sorted(meeting, key=lambda trial: target.preference(trial.outcome))
