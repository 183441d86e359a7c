"""Where the runs of a suite come from: code, versions, machines, and what is missing."""

from benchmarks.suites.data import SuiteData, task_name

_OF_TASKS = ("dm-control", "minatar", "minigrid", "gymnasium-robotics", "mpe2")
_MOST_NAMED = 6  # labels with runs that are missing


def provenance(data: SuiteData) -> str:
    """Return how many runs there are, of which code, where, and the command that repeats them."""
    rows = [row for rows in data.rows.values() for row in rows]
    sessions = [s for key, s in sorted(data.manifest().items()) if key in {r["session"] for r in rows}]
    commits = sorted({row["commit"][:8] + ("+" if row["commit"].endswith("+") else "") for row in rows})
    machines = sorted(
        {f"{s['machine']['cpu']} with {s['machine']['processors']} cores" for s in sessions}
    )
    threads = sorted({s["machine"]["threads"] for s in sessions})
    each = "one thread each" if threads == [1] else f"{' or '.join(map(str, threads))} threads each"
    packages = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", *_OF_TASKS)
    versions = sorted(
        {", ".join(f"{p} {s['versions'][p]}" for p in packages if p in s["versions"]) for s in sessions}
    )
    dates = sorted(s["date"] for s in sessions)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    lines = [
        f"`python -m benchmarks.run {data.name}`: {len(rows)} of {len(data.wanted)} runs, {when}, "
        f"{each} on {' and '.join(machines)}; {'; '.join(versions)}; "
        f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)} (+: with changes)."
    ]
    mixed = [
        f"{label} on {task_name(env)}"
        for (env, label), group in data.rows.items()
        if len({row["settings"] for row in group}) > 1
    ]
    if mixed:
        lines.append(f"**Seeds with different settings: {', '.join(mixed)}.**")
    ours = [row for (_, label), group in data.rows.items() if label == data.ours for row in group]
    envs_of: dict[str, dict[str, None]] = {}
    for row in ours:
        envs_of.setdefault(row["settings"], {})[row["env"]] = None
    if isinstance(data.suite.steps, dict):
        pass  # steps are among the settings: what else differs is not told by fingerprints
    elif len(envs_of) > 1:
        tasks = "; ".join(f"{settings} on {', '.join(envs)}" for settings, envs in envs_of.items())
        lines.append(f"ACKTR's settings, by their fingerprints: {tasks}.")
    elif len({row["env"] for row in ours}) > 1:
        lines.append("ACKTR had the same settings on all tasks.")
    if len(machines) > 1:
        lines.append(f"Seconds are those of runs on {data.processor}.")
    manifest, resumed = data.manifest(), []
    for row in rows:
        after = " and ".join(f"{n:,}" for n in manifest[row["session"]].get("resumed_at", ()))
        if after:
            resumed.append(
                f"{row['label']} on {task_name(row['env'])}, seed {row['seed']}, after {after} steps"
            )
    if resumed:
        lines.append(f"Stopped and continued in new episodes: {'; '.join(resumed)}.")
    missing = []
    for label in data.suite.algorithms:
        n_wanted = sum(trial.label == label for trial in data.wanted)
        n_missing = n_wanted - sum(len(data.rows.get((env, label), [])) for env in data.envs)
        if n_missing:
            missing.append(f"{n_missing} of {n_wanted} runs of {label}")
    if len(missing) > _MOST_NAMED:
        lines.append(f"**Not complete:** {len(data.wanted) - len(rows)} runs are missing.")
    elif missing:
        lines.append(f"**Not complete:** {', '.join(missing)} are missing.")
    return " ".join(lines)
