"""A trained model and the content of its file."""

import io

import pytest

from acktr import Natural
from tests.helpers.saved_models import build


@pytest.fixture(scope="module")
def trained():
    return build(natural=Natural(kfac_kwargs={"momentum": 0.5})).learn(48)


@pytest.fixture(scope="module")
def content(trained):
    buffer = io.BytesIO()
    trained.save(buffer)
    return buffer.getvalue()
