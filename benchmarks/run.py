"""Trains what a suite asks for and has not been trained yet: ``python -m benchmarks.run SUITE``.

Results go to ``benchmarks/results/SUITE``. What is done is skipped, and a run that was killed goes on
from its last checkpoint if the code is the same, a peer's in new episodes, and else starts anew, so the
command may be ended and given again at any moment. ``docs/results.md`` is made of the results by
``python -m benchmarks.report``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from acktr.compare.runner import Summary, Terminated, choose_cores, describe, run_trials, state
from acktr.compare.store import Store
from acktr.compare.trial import Trial
from acktr.errors import AcktrError, ConfigurationError
from benchmarks import suites, tasks

RESULTS = Path(__file__).resolve().parent / "results"
FILTERS = ("env", "label", "algo", "seed")
INTERRUPTED, TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and say what came of it.

    :param arguments: of the command line
    :return: the exit code: 0 done, 1 a run failed, 2 bad arguments, 3 a run diverged
    """
    options = _parse(arguments)
    try:
        trials = choose(suites.load(options.suite).trials(), options.only)
        store = Store(options.out or RESULTS / options.suite)
        if options.merge:
            print(f"{store.merge(Store(options.merge))} runs taken over: {store.table}")
            return 0
        if options.list:
            _list(trials, store)
            return 0
        for trial in trials:
            tasks.check_installed(trial.env_id)
        cores = choose_cores(options.jobs, options.cores, options.threads)
        # Where results go and how many run at a time is not what they depend on.
        command = f"python -m benchmarks.run {options.suite}"
        summary = run_trials(
            trials,
            store,
            cores,
            command=command,
            again=options.again,
            threads=options.threads,
            tell=_say,
        )
    except AcktrError as error:
        print(f"benchmarks.run: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    return _conclude(summary, store)


def choose(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """Return the trials that pass all filters.

    :param only: ``KEY=VALUE,VALUE``, with a key of :data:`FILTERS`
    :raises ConfigurationError: for a key or value that no trial has
    """
    chosen = list(trials)
    for text in only:
        key, separator, values = text.partition("=")
        if not separator or key not in FILTERS:
            raise ConfigurationError(
                f"--only {text!r} is not of the form KEY=VALUE,... with KEY one of {', '.join(FILTERS)}."
            )
        known = {_value(trial, key) for trial in trials}
        wanted = values.split(",")
        for value in wanted:
            if value not in known:
                raise ConfigurationError(
                    f"No run of the suite has {key}={value}: choose from {', '.join(sorted(known))}."
                )
        chosen = [trial for trial in chosen if _value(trial, key) in wanted]
    return chosen


def _value(trial: Trial, key: str) -> str:
    return str(trial.env_id if key == "env" else getattr(trial, key))


def _list(trials: Sequence[Trial], store: Store) -> None:
    counts: dict[str, int] = {}
    for trial in trials:
        what = state(store, trial)
        counts[what] = counts.get(what, 0) + 1
        row = store.find(trial)
        found = f"{row['last_100_return']:>9} after {int(row['steps']):,} steps" if row else ""
        print(f"{what:9} {trial.env_id:26} {trial.label:24} seed {trial.seed:<4} {found}".rstrip())
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


def _conclude(summary: Summary, store: Store) -> int:
    print(
        f"{len(summary.done)} trained, {len(summary.skipped)} done before, {len(summary.busy)} with "
        f"another runner, {len(summary.failed)} failed: {store.table}"
    )
    for failure in summary.failed:
        print(f"failed: {describe(failure.trial)}: {failure.error}", file=sys.stderr)
    for trial in summary.diverged:
        print(f"diverged: {describe(trial)}", file=sys.stderr)
    return 1 if summary.failed else 3 if summary.diverged else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("suite", help=f"one of {', '.join(suites.names())}")
    parser.add_argument("--list", action="store_true", help="say what is done and what is to do")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="KEY=VALUE,...",
        help="only some of the runs, as in env=Hopper-v5 algo=ppo,trpo seed=0",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N", help="at a time (default: one a core)")
    parser.add_argument("--cores", type=_numbers, metavar="I,J", help="cores to use (default: all)")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N",
        help="of each run, with a core for each (default: 1)",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="train what is done too")
    parser.add_argument(
        "--merge", type=Path, metavar="DIR", help="take over the results that another --out holds"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for the results (default: benchmarks/results/SUITE)"
    )
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
