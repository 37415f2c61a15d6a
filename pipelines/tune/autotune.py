"""A target instead of a knob: find, prove and enable the recipe that meets it.

1. The calibration prompts run once, instrumented, for planned schedules (plan.py).
2. Trials: arms (tune_arms.py) run on the calibration prompts. The first are proposed by what other
   tunings measured (tune_ranker.py): those that come with skipstep, and those in the store. Then
   optuna's multi-objective TPE proposes, minimising (work, feature distance).
3. Of the arms that meet the target the best is judged on prompts that no trial saw, beside fewer
   plain steps of the same work; one that fails there gives way to the next, a few times.

Every trial is in the store, an SQLite file. A tuning that was stopped goes on there: finished
trials are read, the interrupted one runs again; so does a tuning to another target. One of another
pipeline, or with other prompts, steps or call, has a study of its own in the same file.
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

from skipstep.pipelines.compare.run import bare, silent
from skipstep.pipelines.progress import Progress, progress_bar
from skipstep.pipelines.tune.arms import FEWEST, ArmSpace, describe
from skipstep.pipelines.tune.plan import Trajectories, instrument
from skipstep.pipelines.tune.ranker import (
    Outlook,
    Ranker,
    Seen,
    Task,
    describe_task,
    shipped_tasks,
)
from skipstep.pipelines.tune.request import check, read_target, split_prompts
from skipstep.pipelines.tune.solvers import Solvers
from skipstep.pipelines.tune.trial import Outcome, Trier
from skipstep.pipelines.tune.tuning import Target, Trial, Tuning
from skipstep.plugins.errors import PluginError
from skipstep.plugins.fingerprint import bound_call, fingerprint, of_the_call

__all__ = ["autotune"]

logger = logging.getLogger(__name__)

MISSING = 'autotune needs optuna: pip install "skipstep[tune]"'
HELD_OUT_SEED = 10_000
SECOND_CHANCES = 2
SLACK = 0.05
# Raised when arms are added, because a study's choices cannot change.
ARMS = 2
# So many trials the ranker proposes before TPE has enough to go on.
RANKED = 16
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
    own = [each for each in inspect.signature(autotune).parameters if each not in ("pipe", "call")]
    check(pipe, own, steps, trials, budget_minutes, call)
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
    use_others: bool = True

    def run(
        self,
        trials: int,
        deadline: float | None,
        store: str | Path | None,
        progress: Progress | None,
    ) -> Tuning:
        """Try, choose and judge."""
        study = self.open_study(store)
        solvers = Solvers(
            self.pipe,
            self.prompts,
            self.steps,
            self.seed,
            self.call,
            kept=study.user_attrs.get("solvers", {}),
            keep=lambda files: study.set_user_attr("solvers", files),
        )
        space = ArmSpace.of(self.pipe, self.trajectories(study, progress), solvers)
        study.set_user_attr("features", describe_task(self.pipe, space.found, self.whole_call))
        ranker = Ranker(self.others(study), study.user_attrs["features"])
        if not study.trials and not ranker.tasks:
            for params in space.first(self.most_work):
                study.enqueue_trial(params)
        seeds = range(self.seed, self.seed + len(self.prompts))
        trier = Trier(self.pipe, self.prompts, seeds, self.steps, self.call)
        self.try_arms(study, space, ranker, trier, trials, deadline, progress)
        found = finished(study)
        if not found:
            failed = [t.user_attrs.get("error") for t in study.trials if "error" in t.user_attrs]
            raise PluginError(
                "autotune: no trial succeeded: "
                + (str(failed[0]) if failed else "give more minutes or more trials")
            )
        return self.judge(space, found)

    @property
    def most_work(self) -> float | None:
        """Return the share of the work that a wanted speed-up leaves, None for another target."""
        return 1 / self.target.value if self.target.name == "target_speedup" else None

    @property
    def whole_call(self) -> dict[str, Any]:
        """Return the call with the pipeline's own defaults."""
        return bound_call(self.pipe, self.call)

    def others(self, study: Any) -> list[Task]:
        """Return what other tunings measured, as far as it is anyone's to know: those shipped, and
        those in the store.
        """
        if not self.use_others:
            return []
        return [*shipped_tasks(), *stored_tasks(study)]

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
            "arms": ARMS,
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
        ranker: Ranker,
        trier: Trier,
        most: int,
        deadline: float | None,
        progress: Progress | None,
    ) -> None:
        """Run trials until there are `most` or the time is up."""
        longest, in_vain = 0.0, 0
        outlook = Outlook(space)
        grid = [outlook.seen(params) for params in space.grid()] if ranker.tasks else []
        while (done := len(found := finished(study))) < most and in_vain < IN_VAIN:
            if deadline is not None and time.monotonic() + longest > deadline and done:
                return
            started = time.monotonic()
            if grid and len(study.trials) < RANKED:
                known = [outlook.seen(t.params, t.outcome.work, t.outcome.distance) for t in found]
                failed = [t.user_attrs.get("params") for t in study.trials]
                left = [each for each in grid if each.params not in failed]
                chosen = ranker.propose(left, known, self.most_work)
                if chosen is not None:
                    study.enqueue_trial(chosen.params)
            trial = study.ask()
            params = space.suggest(trial)
            before = [each.outcome for each in found if each.params == params]
            if before:
                in_vain += 1
                study.tell(trial, [before[0].work, before[0].distance])
                continue
            trial.set_user_attr("params", params)
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
            trial.set_user_attr("planned error", outlook.seen(params).error)
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


def stored_tasks(study: Any) -> list[Task]:
    """Return the other tunings in a study's store that finished trials."""
    tasks = []
    for other in study._storage.get_all_studies():
        attributes = other.user_attrs
        if other.study_name == study.study_name or "features" not in attributes:
            continue
        steps = attributes["about"]["steps"]
        trials = [
            Seen(
                params,
                each.user_attrs["outcome"]["work"],
                each.user_attrs["outcome"]["distance"],
                params["count"] / steps if "count" in params else 0.5,
                each.user_attrs.get("planned error"),
            )
            for each in study._storage.get_all_trials(other._study_id, deepcopy=False)
            if "outcome" in each.user_attrs and (params := each.user_attrs["params"])
        ]
        tasks.append(Task({"study": other.study_name}, attributes["features"], trials))
    return tasks


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
