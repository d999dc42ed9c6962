"""Fixtures that the cross-validation's tests share."""

import pytest
from made_up import make_folder

from meshnet.crossval.report import write_report


@pytest.fixture
def out(tmp_path):
    return make_folder(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with its whole report, charts included."""
    folder = make_folder(tmp_path_factory.mktemp("written"))
    write_report(folder, pictures=0)
    return folder
