"""What MuJoCo warns of: told by ``logging``, without a file in the working directory."""

import logging

import pytest

from acktr.envs import make_vec_env

mujoco = pytest.importorskip("mujoco")


@pytest.fixture
def unheard():
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(None)
    yield
    mujoco.set_mju_user_warning(before)


@pytest.mark.usefixtures("unheard")
def test_warnings_leave_no_file(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    env = make_vec_env("HalfCheetah-v5", 1, seed=0)
    env.reset()
    env.get_attr("unwrapped")[0].data.qpos[0] = 1e20
    env.step([env.action_space.sample()])
    assert "MuJoCo: Nan, Inf or huge value in QPOS at DOF 0" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("unheard")
def test_a_model_file_of_gymnasium_that_is_out_of_date_is_not_the_users_affair(caplog):
    make_vec_env("HalfCheetah-v5", 1).close()
    with caplog.at_level(logging.INFO):
        mujoco.get_mju_user_warning()(
            "compiler attribute 'settotalmass' is deprecated and will be removed"
        )
    assert caplog.text == ""


@pytest.mark.usefixtures("unheard")
def test_who_listens_already_goes_on_listening():
    heard = []
    mujoco.set_mju_user_warning(heard.append)
    make_vec_env("HalfCheetah-v5", 1).close()
    mujoco.get_mju_user_warning()("something")
    assert heard == ["something"]
