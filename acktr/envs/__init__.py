"""Vector environments by id: built, checked and wrapped the way ACKTR expects them."""

from acktr.envs.make import make_vec_env

__all__ = ["make_vec_env"]
