"""The table of packages in which no training state lives has all that this project installs."""

from __future__ import annotations

from importlib.metadata import distribution, packages_distributions

import pytest
from packaging.requirements import Requirement

from ckptool.formats.base import NamedGlobal
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.stateless import BY_KIND, stateless
from ckptool.formats.pickles.trust import BROUGHT_ALONG, OWN_PACKAGES
from ckptool.tree.nodes import GlobalRef

# Packages of which objects are met in checkpoints, or that a checkpoint's own loader needs.
KEPT = {
    "attr": "settings of classes that attrs makes",
    "attrs": "settings of classes that attrs makes",
    "bson": "ids of objects in logs",
    "configobj": "settings as they were read",
    "dateutil": "time zones of dates, also in tables of pandas",
    "docopt": "settings as they were typed",
    "ml_dtypes": "dtypes of arrays",
    "packaging": "versions of libraries",
    "ruamel": "settings as they were read from YAML",
    "safetensors": "tensors",
    "sortedcontainers": "containers",
    "traitlets": "settings as they were read",
}
# What a project may call its own modules, of which a checkpoint may hold the classes.
LIKE_A_PROJECT = (
    "acme", "airflow", "bandit", "behave", "box", "build", "core", "coverage", "data", "dataset",
    "decouple", "factory", "falcon", "graphene", "halo", "hunter", "identify", "impala", "injector",
    "locust", "mamba", "models", "motor", "mss", "net", "obs", "odf", "ply", "poetry", "project",
    "pyramid", "radon", "records", "regress", "remi", "robot", "rope", "safety", "salt", "schedule",
    "slack", "tortoise", "train", "utils", "vcr",
)  # fmt: skip
# Packages of which trainers pickle objects.
OF_TRAINERS = (
    "PIL", "accelerate", "addict", "deepspeed", "detectron2", "diffusers", "easydict", "espnet",
    "fairseq", "fastai", "fastcore", "gym", "gymnasium", "lightning", "matplotlib",
    "ml_collections", "mmcv", "mmengine", "nemo", "omegaconf", "pandas", "peft", "pydantic",
    "pytorch_lightning", "pytz", "regex", "scipy", "sentencepiece", "sklearn", "speechbrain",
    "stable_baselines3", "tensordict", "timm", "tokenizers", "torchaudio", "torchtext",
    "torchvision", "tqdm", "transformers", "ultralytics", "yacs",
)  # fmt: skip


def trust(module: str, name: str) -> str:
    return trust_of(NamedGlobal(GlobalRef(module, name), called=False, pickle="data.pkl"))


def required(name: str, extras: tuple[str, ...], found: dict[str, None]) -> dict[str, None]:
    """Return all distributions that one needs, by their names."""
    if name.lower() in found:
        return found
    found[name.lower()] = None
    for line in distribution(name).requires or ():
        need = Requirement(line)
        if need.marker is None or any(
            need.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            required(need.name, tuple(need.extras), found)
    return found


def test_any_name_of_a_package_that_the_tests_install_is_dangerous():
    needed = {each.replace("_", "-") for each in required("ckptool", ("dev",), {})}
    imported = [
        package
        for package, sources in packages_distributions().items()
        if any(source.lower().replace("_", "-") in needed for source in sources)
        and package.isidentifier()
    ]
    assert len(imported) > 50
    milder = {
        package
        for package in imported
        if package not in OWN_PACKAGES | BROUGHT_ALONG | {*KEPT, *LIKE_A_PROJECT}
        if {trust(package, "Thing"), trust(f"{package}.part", "thing")} != {"dangerous"}
    }
    assert not milder


@pytest.mark.parametrize("package", [*KEPT, *LIKE_A_PROJECT, *OF_TRAINERS])
def test_names_that_checkpoints_hold_are_in_no_table(package):
    assert trust(package, "Thing") == "unknown"


def test_each_package_is_named_once_by_its_top_module():
    names = [name for names in BY_KIND.values() for name in names.split()]
    assert len(names) == len(stateless()) > 700
    assert all(name.isidentifier() for name in names)


def test_of_packages_that_hold_settings_the_classes_that_act_are_dangerous():
    assert trust("traitlets.config.loader", "Config") == "unknown"
    assert trust("traitlets.config.application", "Application") == "dangerous"
    assert trust("traitlets.config", "Application") == "dangerous"


@pytest.mark.parametrize("module", ["jsonargparse", "jsonargparse._namespace"])
def test_settings_that_a_parser_of_a_stateless_package_made_are_no_danger(module):
    assert trust(module, "Namespace") == "unknown"
    assert trust(module, "ArgumentParser") == "dangerous"
