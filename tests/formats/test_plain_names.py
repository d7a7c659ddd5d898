"""Plain names have the trust that the tables give them: the tables need not be asked."""

from __future__ import annotations

import collections
import subprocess
import sys
from itertools import product

import pytest
import torch

from ckptool.formats.base import NamedGlobal
from ckptool.formats.pickles.effects import part_looked_up
from ckptool.formats.pickles.local_parts import LOCAL_PARTS
from ckptool.formats.pickles.plain_names import (
    PLAIN_CALLS,
    PLAIN_CLASSES,
    PLAIN_NAMES,
    beyond_plain,
    trust_of,
)
from ckptool.formats.pickles.put_off import may_be_put_off
from ckptool.formats.pickles.rules import Rules
from ckptool.formats.pickles.trust import trust_by_tables
from ckptool.formats.pickles.vetted import FUNCTIONS
from ckptool.formats.pickles.weights_only import refused
from ckptool.tree.nodes import GlobalRef
from helpers.output import environment

REFS = [GlobalRef(*name.rsplit(".", 1)) for name in sorted(PLAIN_NAMES)]


@pytest.mark.parametrize("ref", REFS, ids=str)
def test_the_tables_give_the_same_trust_to_every_use(ref):
    for called, looks_up, of_data, is_misused in product((False, True), repeat=4):
        named = NamedGlobal(
            ref, called, "data.pkl", looks_up=looks_up, of_data=of_data, is_misused=is_misused
        )
        assert trust_of(named) == trust_by_tables(named), named


def test_only_plain_names_are_not_looked_up():
    others = [GlobalRef("torch", "QInt8Storage"), GlobalRef("collections", "Counter")]
    assert beyond_plain([*REFS, *others]) == others


def test_no_table_has_more_to_say_of_them():
    assert not any(map(may_be_put_off, REFS))
    assert not PLAIN_CLASSES & FUNCTIONS
    assert not PLAIN_CALLS & PLAIN_CLASSES
    assert not any(part_looked_up(ref, ()) for ref in REFS)
    assert refused(REFS) == []
    assert not any(map(Rules.is_function, PLAIN_CLASSES))
    assert not PLAIN_NAMES & LOCAL_PARTS.keys()


DRIVER = """
import sys
from ckptool.cli import main
main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
"""


VALUES = {
    "plain": ({}, False),
    "state dict": (torch.nn.Linear(2, 2).state_dict(), False),
    "more": (collections.Counter("ab"), True),
}


@pytest.mark.parametrize("name", VALUES)
def test_the_rules_are_imported_for_files_with_more(name, tmp_path):
    value, has_more = VALUES[name]
    path = tmp_path / "a.pt"
    torch.save({"weights": {"w": torch.ones(2)}, "step": 3, "more": value}, path)
    command = [sys.executable, "-c", DRIVER, "inspect", str(path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert ("ckptool.formats.pickles.rules" in done.stderr.split()) is has_more
