"""What a run decides once, at its first start: CPU threads, precision, and the number of steps that fit into a time.

They depend on the machine. They are recorded in run.json (``decided``, by key of the configuration), and a resumed run
uses the recorded values, also on another machine, so that it gives the same numbers.

The number of threads changes how sums are rounded. It is not measured, which would make it depend on what else the machine
does: it is the number of CPUs that the process may use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from pscl_hpc.config import TrainingConfig
from pscl_hpc.runs import RunFolder, describe_device
from pscl_hpc.training.device import fastest_precision
from pscl_hpc.training.loader import read_ahead
from pscl_hpc.training.loop import Loop
from pscl_hpc.training.ranks import Ranks
from pscl_hpc.training.task import Task

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)

STEPS, PRECISION, THREADS = "schedule.steps", "runtime.precision", "runtime.threads"
TRIAL = {STEPS: 1000}
"""The schedule in which the rate is measured, and with which the input is checked."""
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in the schedule steps are timed: their cost may depend on it, as in self-training."""
_TRIAL_SHARE = 0.1
"""Share of the time after which no second step is timed at each place."""


def decide(
    config: ConfigT,
    folder: RunFolder,
    ranks: Ranks,
    build: Callable[[ConfigT], Task[Any]],
    began: float,
) -> None:
    """Decide what the configuration leaves open and the run has not decided before. All ranks call it.

    Args:
        config: The run.
        folder: Its folder, in which rank 0 records the decisions.
        ranks: The ranks that train together.
        build: Makes a task, for measuring the time of its steps.
        began: When the time began, as ``time.monotonic()``.
    """
    decided = dict(folder.decided)
    if config.runtime.precision == "auto" and PRECISION not in decided:
        decided[PRECISION] = ranks.from_first(lambda: fastest_precision(ranks.device))
    if not config.schedule.steps and STEPS not in decided:
        task = build(config.with_decisions({**decided, **TRIAL}))
        budget = 60 * config.schedule.minutes
        seconds = _seconds_per_step(task, config.with_decisions({**decided, **TRIAL}), folder, ranks, budget)
        spent = time.monotonic() - began
        # The clocks and rates of the ranks differ; all take those of rank 0.
        decided[STEPS] = ranks.from_first(
            lambda: number_of_steps(config.schedule.minutes, budget - spent, seconds, task, ranks.say)
        )
    folder.decide(decided)


def number_of_steps(
    minutes: float, left: float, seconds: float, task: Task[Any], say: Callable[[str], None]
) -> int:
    """The steps of ``seconds`` each that fit into the time that is left, within the limits of the task.

    Args:
        minutes: The whole time, for the message.
        left: Seconds that are left.
        seconds: Seconds of a step.
        task: Has the limits.
        say: Takes a sentence for the user, a warning where a limit decides.
    """
    found = int(left / seconds)
    steps = min(max(found, task.fewest_steps), task.most_steps)
    rate = f"at {seconds:.3g} s each"
    if found < steps:
        say(
            f"warning: schedule.minutes is {minutes:g}, which is enough for {max(0, found)} steps {rate}; {steps} steps "
            f"are made, in about {steps * seconds / 60:.2g} minutes"
        )
    elif found > steps:
        say(f"warning: schedule.minutes is {minutes:g}, but no more than {steps} steps {rate} are made")
    else:
        say(f"schedule.minutes is {minutes:g}: {steps} steps {rate}")
    return steps


def _seconds_per_step(
    task: Task[Any], config: TrainingConfig, folder: RunFolder, ranks: Ranks, budget: float
) -> float:
    """Mean time of a step over the schedule, with its share of the validations, from ten or more steps."""
    began = time.monotonic()
    # A folder to which nothing is written: these steps are not those of the run.
    loop = Loop(task, RunFolder.follow(folder.path, config, done=False), ranks)
    places = [round(share * config.schedule.steps) for share in _SHARES]
    # The first step at a place is not timed: it fills caches and compiles kernels.
    steps = [place + offset for place in places for offset in range(3)]
    count = task.accumulate
    numbers = [step * count + part for step in steps for part in range(count)]
    on_gpu = ranks.device.type == "cuda"
    batches = read_ahead(task.dataset, numbers, workers=config.runtime.workers, pin=on_gpu)
    means: list[float] = []
    in_hurry = False
    for _ in places:
        times = []
        for offset in range(3):
            ranks.beat(0, "measuring the time of a step")
            start = time.monotonic()
            micro_batches = [next(batches) for _ in range(count)]
            if offset < 2 or not in_hurry:
                loop.position.step = steps[3 * len(means) + offset]
                loop.step(micro_batches, measure=False)
                times.append(time.monotonic() - start)
        means.append(sum(times[1:]) / len(times[1:]))
        in_hurry = ranks.from_first(lambda: time.monotonic() - began > _TRIAL_SHARE * budget)
    mean = sum(means) / len(means)
    if task.validate_every:
        start = time.monotonic()
        task.validate(0)
        mean += (time.monotonic() - start) / task.validate_every
    return mean


def keep_threads(config: TrainingConfig, folder: RunFolder, ranks: Ranks) -> None:
    """On a CPU use as many threads as when the run began; at its first start record their number. All ranks call it.

    Args:
        config: The run.
        folder: Its folder, in which rank 0 records the number.
        ranks: The ranks that train together; those on other machines use the number of rank 0.
    """
    if ranks.device.type != "cpu" or config.runtime.threads:
        return
    if THREADS not in folder.decided:
        folder.decide({**folder.decided, THREADS: ranks.from_first(torch.get_num_threads)})
    threads = int(folder.decided[THREADS])
    here = torch.get_num_threads()
    if threads == here:
        return
    torch.set_num_threads(threads)
    if ranks.first:
        folder.update(device=describe_device(ranks.device))
    if here < threads:
        ranks.say(
            f"warning: the run began with {threads} CPU threads and keeps them, for the same numbers, but here it has only "
            f"{here} CPU{'s' if here > 1 else ''}; expect slower steps"
        )
