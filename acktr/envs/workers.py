"""Environments in worker processes: one that is killed, hangs or raises is named, and may be replaced.

The parent alone decides when to stop, and no worker outlives it.
"""

import atexit
import contextlib
import multiprocessing
import signal
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs, _worker

from acktr.errors import WorkerError
from acktr.files.streams import dropping

_STOPS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


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


class WorkerVecEnv(SubprocVecEnv):
    """SB3's ``SubprocVecEnv`` that tells which worker failed, and how.

    :param env_fns: build one environment each
    :param start_method: of the processes; as in SB3
    :param timeout: seconds that a worker may take to answer, those in which all was paused not counted;
        ``None`` for no limit
    :param restarts: so many failed workers are replaced, all of them together: the episode of such a
        slot counts as cut off by time, and ``infos[i]["worker_restarted"]`` says why
    :raises WorkerError: an environment cannot be built; later at any call, if a worker fails
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        start_method: str | None = None,
        timeout: float | None = 60.0,
        restarts: int = 0,
    ) -> None:
        self.waiting = False
        self.closed = False
        self.timeout = timeout
        self.restarts_left = restarts
        self._env_fns = list(env_fns)
        self._last_obs: list[Any] = [None] * len(env_fns)
        self._restarted = 0
        methods = multiprocessing.get_all_start_methods()
        method = start_method or ("forkserver" if "forkserver" in methods else "spawn")
        self._context = multiprocessing.get_context(method)
        started = [self._start(index) for index in range(len(env_fns))]
        self.remotes: Any = [remote for remote, _ in started]
        self.processes = [process for _, process in started]
        try:
            self.remotes[0].send(("get_spaces", None))
            observation_space, action_space = self.remotes[0].recv()
            # Not SB3's own constructor: it would start workers again.
            VecEnv.__init__(self, len(env_fns), observation_space, action_space)
        except BaseException:
            self.close()
            raise

    def _start(self, index: int) -> "tuple[_Remote, BaseProcess]":
        remote, work_remote = self._context.Pipe()
        args = (work_remote, remote, CloudpickleWrapper(self._env_fns[index]))
        # A daemon: if the parent crashes, nothing hangs.
        process: BaseProcess = self._context.Process(target=_work, args=args, daemon=True)  # type: ignore[attr-defined]
        process.start()
        work_remote.close()
        return _Remote(remote, process, index, self.timeout), process

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        for index, remote in enumerate(self.remotes):
            remote.send(("reset", (self._seeds[index], self._options[index])))
        results = [remote.recv() for remote in self.remotes]
        self._last_obs = [obs for obs, _ in results]
        self.reset_infos = [info for _, info in results]
        self._reset_seeds()
        self._reset_options()
        return self._stack(self._last_obs)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for all environments; a worker that failed is replaced, if it may be."""
        results = []
        for index, remote in enumerate(self.remotes):
            try:
                results.append(remote.recv())
            except WorkerError as error:
                if not self.restarts_left:
                    raise
                results.append(self._replace(index, error))
        self.waiting = False
        obs, rewards, dones, infos, self.reset_infos = zip(*results, strict=True)  # type: ignore[assignment]
        self._last_obs = list(obs)
        return self._stack(self._last_obs), np.stack(rewards), np.stack(dones), infos  # type: ignore[return-value]

    def _stack(self, observations: list[Any]) -> VecEnvObs:
        try:
            return _stack_obs(observations, self.observation_space)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise WorkerError(
                f"The observations of the environments do not fit together ({error}): mend them, or the "
                f"observation_space {self.observation_space}."
            ) from error

    def _replace(self, index: int, error: WorkerError) -> tuple[Any, float, bool, dict[str, Any], Any]:
        self.restarts_left -= 1
        self._restarted += 1
        warnings.warn(f"{error}\nIt was replaced, and its episode cut off.", UserWarning, stacklevel=3)
        self.processes[index].kill()
        self.remotes[index].close()
        self.remotes[index], self.processes[index] = self._start(index)
        # Another seed than any before: the same could lead to the same end.
        self.remotes[index].send(("reset", (2**20 * self._restarted + index, {})))
        obs, reset_info = self.remotes[index].recv()
        info = {
            "TimeLimit.truncated": True,
            "terminal_observation": self._last_obs[index],
            "worker_restarted": str(error),
        }
        return obs, 0.0, True, info, reset_info

    def close(self) -> None:
        """End all workers; one that does not end within seconds is killed."""
        if self.closed:
            return
        self.closed = True
        for remote in self.remotes:
            if self.waiting:
                with contextlib.suppress(WorkerError):
                    remote.timeout = _PATIENCE
                    remote.recv()
            remote.send(("close", None))
        for process in self.processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        for remote in self.remotes:
            remote.close()


_PATIENCE = 5.0  # seconds for a worker to end
_PART = 1.0  # seconds of a part of a longer wait
_LATE = 0.1  # seconds that a busy machine may wake a process late
_START = 120.0  # seconds for a worker to import what its environment needs, whatever its timeout is


class _Failure(NamedTuple):
    """A worker's message in place of an answer, when its environment raises."""

    traceback: str


def _work(remote: Connection, parent_remote: Connection, env_fn: CloudpickleWrapper) -> None:
    """SB3's worker, which tells what ended it."""
    try:
        with dropping():  # an environment that prints does not end with the pipe it prints to
            _worker(remote, parent_remote, env_fn)
    except Exception:
        with contextlib.suppress(OSError):
            remote.send(_Failure(traceback.format_exc()))
        raise SystemExit(1) from None


class _Remote:
    """A connection to one worker that does not wait for one that is gone.

    :param connection: to the worker
    :param process: the worker
    :param index: of its environment
    :param timeout: seconds; ``None`` for no limit
    """

    def __init__(
        self, connection: Connection, process: BaseProcess, index: int, timeout: float | None
    ) -> None:
        self.timeout = timeout
        self._connection = connection
        self._process = process
        self._index = index
        self._has_answered = False

    def send(self, message: Any) -> None:
        """Send; :meth:`recv`, which follows every message, tells if the worker is gone."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def recv(self) -> Any:
        """Receive an answer.

        :raises WorkerError: the worker is gone, took too long, or its environment raised
        """
        who = f"The worker of environment {self._index} (process {self._process.pid})"
        limit = self.timeout
        if limit is not None and not self._has_answered:
            limit = max(limit, _START)
        try:
            # Not the process's sentinel: it also speaks when a signal to the whole group ends the fork
            # server. The connection ends with the worker, however it ends.
            if not self._answers_within(limit):
                raise WorkerError(
                    f"{who} has not answered for {limit:g} seconds: look at what its environment waits "
                    "for, or allow more with worker_timeout."
                )
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_PATIENCE)
            raise WorkerError(
                f"{who} is gone ({_how(self._process.exitcode)}): look for what ended it, such as a "
                "lack of memory."
            ) from None
        self._has_answered = True
        if isinstance(answer, _Failure):
            raise WorkerError(f"{who} raised an error:\n{answer.traceback.rstrip()}")
        return answer

    def _answers_within(self, limit: float | None) -> bool:
        """Wait for an answer for so many seconds in which this process runs.

        Where all is paused (Ctrl-Z, SIGSTOP, a suspended machine) the worker is too, and its time stands
        still: a part of the wait that took much longer than it was to take does not count.
        """
        if limit is None:
            return self._connection.poll(None)
        part = min(_PART, limit / 4)
        waited = 0.0
        while waited < limit:
            begun = time.monotonic()
            if self._connection.poll(part):
                return True
            if time.monotonic() - begun < 2 * part + _LATE:
                waited += part
        return False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"
