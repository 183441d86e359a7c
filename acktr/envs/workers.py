"""Worker processes and signals: the parent alone decides when to stop, and no worker outlives it."""

import atexit
import signal
import weakref

from stable_baselines3.common.vec_env import SubprocVecEnv

_STOPS = ("SIGINT", "SIGTERM", "SIGUSR1")


def ignore_stops() -> None:
    """Ignore what asks a training run to stop; called in a worker.

    Ctrl-C reaches the whole process group, and batch systems signal every process of a job: a worker
    that ended at once would take the state of its environment with it before it could be saved.
    """
    for name in _STOPS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_with_this_process(env: SubprocVecEnv) -> None:
    """Kill workers that are still there when this process ends.

    They ignore the signal with which multiprocessing ends them, and it would wait for them without end.
    (If this process is killed itself, they end when their pipe does.)

    :param env: whose workers
    """
    reference = weakref.ref(env)

    def end() -> None:
        left = reference()
        for process in [] if left is None else left.processes:
            if process.is_alive():
                process.kill()

    # After multiprocessing's own hook, thus called before it.
    atexit.register(end)
