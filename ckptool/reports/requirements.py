"""The table of what ``verify --require`` can ask of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from ckptool.records import NamedTuple


class Requirement(NamedTuple):
    """The rules that must pass, and what it means that they do.

    A rule about something that the file does not have cannot fail; another rule decides whether it
    has to be there.
    """

    rules: tuple[str, ...]
    met: str = ""  # none: the report has more to say of it
    advice: tuple[str, ...] = ()  # rules that are asked too; opinions, which keep their severity


REQUIREMENTS: Mapping[str, Requirement] = {
    "intact": Requirement(
        ("CK101", "CK102", "CK103", "CK104", "CK105", "CK106", "CK107", "CK108", "CK112", "CK122"),
        "nothing is missing, cut off, or known to be changed",
    ),
    "safe": Requirement(
        ("CK201", "CK203", "CK204", "CK210"),
        "no name in its pickles is dangerous or unknown",
    ),
    "weights-only": Requirement(
        ("CK122", "CK202"),
        "nothing in it is refused by torch.load(weights_only=True)",
    ),
    "finite": Requirement(("CK301", "CK302", "CK303"), "no value is NaN or infinite"),
    "ema": Requirement(
        ("CK303", "CK401", "CK402", "CK403", "CK404", "CK405", "CK411", "CK418"),
        "the EMA weights are there, whole and updated",
    ),
    "resume": Requirement(
        ("CK303", "CK419", "CK501", "CK502", "CK504", "CK505", "CK507", "CK510", "CK511", "CK512",
         "CK513", "CK514", "CK517", "CK519", "CK520", "CK521", "CK524", "CK525", "CK526"),
        advice=("CK515", "CK531"),
    ),
    "loads": Requirement(
        ("CK114", "CK122", "CK601", "CK602", "CK603", "CK604", "CK606"),
        "the weights fit the model",
    ),
    "provenance": Requirement(("CK701", "CK702")),
}  # fmt: skip
