"""Sound trainings of every kind raise no alarm, and broken ones the right one."""

from __future__ import annotations

import pytest

from helpers import runs
from helpers.trainings import BROKEN, SOUND


def alarms(output):
    return {
        f["rule"]: f"{f['address']}: {f['message']}"
        for f in output.json["findings"]
        if f["severity"] != "info"
    }


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_training_raises_no_alarm(name, tmp_path, ckptool):
    path = runs.save(SOUND[name](), tmp_path, "last.pt")
    assert alarms(ckptool("verify", path, "--json")) == {}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_training_is_told(name, tmp_path, ckptool):
    rule, make = BROKEN[name]
    path = runs.save(make(), tmp_path, "last.pt")
    assert rule in alarms(ckptool("verify", path, "--json"))
