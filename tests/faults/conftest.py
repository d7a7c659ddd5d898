"""One stage for all fault tests: the process that forks the tries is started once."""

from __future__ import annotations

import pytest
from scenes import Stage, make_inputs, quick_folder


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """Plays a scene with a fault in it, and tells what lies there afterwards."""
    inputs = make_inputs(tmp_path_factory.mktemp("inputs"))
    with quick_folder(tmp_path_factory.mktemp("stage")) as folder:
        stage = Stage(folder, inputs)
        yield stage
        stage.close()
