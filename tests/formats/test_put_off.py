"""A call that is put off is a call: what a pickle binds to a function has to be plain.

What people save is told at most as a warning (CK210): partials of layers, of initializers and of
collate functions, hooks that know the names of their layers.
"""

from __future__ import annotations

import argparse
import functools
import operator
import re
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn import functional

from ckptool.formats.pickles.put_off import may_be_put_off
from ckptool.tree.nodes import GlobalRef
from helpers.assembling import (
    EMPTY_DICT,
    EMPTY_TUPLE,
    NONE,
    build,
    call,
    data,
    fields,
    instance,
    listed,
    name,
    namespace,
    new,
    number,
    program,
    row,
    text,
)
from helpers.quiet import is_reported

PATH, WORD = text("/home/u/.bashrc"), text("canary")
F = name("somelib.helpers.work")


def bound(func: bytes, *args: bytes, **kwargs: bytes) -> bytes:
    """A partial as Python pickles it."""
    state = row(func, row(*args), fields(**kwargs) if kwargs else NONE, NONE)
    return build(call("functools.partial", func), state)


def method(cls: str, part: str) -> bytes:
    return call("builtins.getattr", name(cls), text(part))


DANGEROUS = {
    "a path": bound(F, PATH),
    "a path by name": bound(F, where=PATH),
    "a command line": bound(F, text("touch canary")),
    "a URL": bound(F, text("http://localhost")),
    "code": bound(F, text("open('canary','w')")),
    "the name of a function": bound(F, text("os.system")),
    "a file": bound(F, text("setup.sh")),
    "bytes": bound(F, b"C\x06/tmp/x"),
    "a path in a row": bound(F, listed(PATH)),
    "a path in settings": bound(F, namespace(command=PATH)),
    "a path of which an object is made": bound(F, new("somelib.Text", PATH)),
    "a path among the elements of an object": bound(F, new("somelib.List") + b"(" + PATH + b"e"),
    "a path that an object holds too": bound(F, listed(instance("a.B", c=PATH), PATH)),
    "a path in a call in an object": bound(F, instance("a.B", c=bound(F, PATH))),
    "a file of a hub": bound(F, text("timm/weights.bin")),
    "two slashes": bound(F, text("a/b/c")),
    "a hidden file": bound(F, text(".git/hooks")),
    "a folder of Windows's": bound(F, text("a\\b")),
    "a path that begins as an id": bound(F, text("~a/b")),
    "an id that acts on text": bound(name("somelib.install"), text("timm/vit_base")),
    "an id for what opens": bound(name("cv2.imwrite"), text("timm/vit_base")),
    "an id for a file of Python's": bound(name("xml.dom.minidom.parse"), text("timm/vit_base")),
    "a call in a namespace": namespace(task=instance("somelib.Task", func=F, args=row(PATH))),
    "a call in a namespace that is bound": namespace(func=bound(F, PATH), args=EMPTY_TUPLE),
    "a pathlib path": bound(F, call("pathlib.PurePosixPath", WORD)),
    "text that is computed": bound(F, call("builtins.str", b"C\x03abc", text("utf-7"))),
    "set later": build(call("functools.partial", F), row(F, row(PATH), NONE, NONE)),
    "made without a state": call("functools.partial", F, PATH),
    "made by __new__": new("functools.partial", F, PATH),
    "bound twice": bound(bound(F), PATH),
    "a method": bound(method("somelib.Repo", "clone"), PATH),
    "a class": bound(name("somelib.Repo"), PATH),
    "an object that can be called": bound(instance("somelib.Runner"), PATH),
    "a function among the arguments": bound(name("builtins.max"), listed(PATH), key=F),
    "a function of torch's": bound(name("torch.utils.data.graph.traverse"), PATH),
    "a class of what torch brings along": bound(name("networkx.readwrite.Reader"), PATH),
    "a file of Python's": bound(name("xml.dom.minidom.parse"), PATH),
    "a partial under another name": build(
        new("somelib.compat.Later"), row(F, row(PATH), NONE, NONE)
    ),
    "by a class named after it": new("somelib.compat.Curry", F, PATH),
    "a list of callbacks": instance("somelib.Stack", _callbacks=listed(row(F, row(PATH)))),
    "a list of callbacks with more": instance(
        "somelib.Stack", _exits=listed(row(F, EMPTY_TUPLE, fields(where=PATH)))
    ),
    "callbacks as elements": b"".join(
        (new("somelib.Stack"), b"(", row(F, row(PATH)), row(F, row(PATH)), b"e")
    ),
    "filled after its state": instance("somelib.Table", size=number(1))
    + text("a")
    + instance("somelib.Item", is_table=name("otherlib.work"))
    + b"s",
    "callbacks as items": new("somelib.Table") + b"(" + text("a") + row(F, row(PATH)) + b"u",
    "the parts of a call": instance("somelib.Task", _func=F, _args=row(PATH)),
    "the parts of a call by name": instance("somelib.Task", target=F, kwargs=fields(a=PATH)),
    "thrown away": instance("somelib.Task", fn=F, args=row(PATH)) + b"0N",
    "a word for what acts": bound(name("somelib.system"), text("reboot")),
    "a word for a class that opens": bound(name("dateutil.zoneinfo.TarFile"), WORD, text("w")),
}
# Names that say what they do: nobody's object holds them, with or without arguments.
REACHING = {
    each: bound(name(f"somelib.{each}"), WORD)
    for each in (
        "mkdir", "save_file", "serialize_file", "ensure_dir", "rmtree", "_rmtree", "run_command",
        "check_output", "urlopen", "removeFile", "write_text", "exec_command",
    )
} | {
    "held alone": instance("somelib.Task", work=name("otherlib.mkdir"), name=WORD),
    "a method": bound(method("somelib.Path", "write_text"), WORD),
    "a method held alone": instance("somelib.Task", work=method("somelib.Path", "mkdir")),
}  # fmt: skip


@pytest.mark.parametrize("body", (DANGEROUS | REACHING).values(), ids=(DANGEROUS | REACHING))
def test_a_call_that_is_put_off_is_dangerous_with_what_a_call_may_not_be_given(body):
    assert is_reported(body)


@pytest.mark.parametrize(
    ("qualname", "may_be"),
    [
        ("torch.nn.functional.relu", False),
        ("torch.nn.utils._deprecation_utils.lazy_deprecated_import", True),
        ("torch.nn.modules.linear.Linear", False),
        ("torch.optim.lr_scheduler.partial", True),  # Python's
        ("torch.utils.data.graph.traverse", True),
        ("math.sqrt", False),
        ("xml.dom.minidom.parse", True),
        ("einops.einops.rearrange", False),
        ("somelib.Net", True),
    ],
)
def test_functions_that_only_compute_are_known_by_their_families(qualname, may_be):
    assert may_be_put_off(GlobalRef(*qualname.rpartition(".")[::2])) == may_be


# --------------------------------------------------------------------------------- what people save


@pytest.fixture
def publish(monkeypatch):
    """Functions and classes in modules that exist for the time of a test."""

    def published(path: str, made):
        module, _, made_name = path.rpartition(".")
        made.__module__, made.__name__, made.__qualname__ = module, made_name, made_name
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            whole = ".".join(parts[:count])
            if whole not in sys.modules:
                monkeypatch.setitem(sys.modules, whole, types.ModuleType(whole))
        setattr(sys.modules[module], made_name, made)
        return made

    def function(path: str):
        return published(path, lambda *_args, **_kwargs: 1.0)

    def cls(path: str, *bases: type):
        return published(path, types.new_class("Made", bases or (object,)))

    return types.SimpleNamespace(function=function, cls=cls)


def layers(_publish):
    return [
        partial(nn.LayerNorm, eps=1e-6), partial(nn.GELU, approximate="tanh"),
        partial(functional.interpolate, scale_factor=2, mode="bilinear"),
        partial(torch.clamp, min=0), partial(torch.einsum, "bij,bjk->bik"),
        partial(nn.init.kaiming_normal_, mode="fan_out"),
        partial(torch.utils.checkpoint.checkpoint, use_reentrant=False),
        partial(torch.optim.AdamW, lr=1e-3), partial(torch.distributions.Normal, scale=1.0),
        partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="min", patience=10),
    ]  # fmt: skip


def of_python(_publish):
    return [
        partial(operator.mul, 2), partial(round, ndigits=2), partial(max, key=len),
        partial(re.sub, r"\s+", " "), partial(int, base=2), partial(np.clip, a_min=0, a_max=1),
        partial(np.einsum, "ij,jk->ik"), partial(np.add, 1),
        functools.partial(dict, path="/data/a"),
    ]  # fmt: skip


def quantized(_publish):
    return torch.ao.quantization.get_default_qat_qconfig("fbgemm")


def patterns(publish):
    return partial(publish.function("einops.einops.rearrange"), pattern="b c h -> b (h c)")


QUIET = {"layers": layers, "python": of_python, "quantization": quantized, "patterns": patterns}


def block(publish):
    cls = publish.cls("timm.models.vision_transformer.Block", nn.Module)
    return partial(cls, norm_layer=partial(nn.LayerNorm, eps=1e-6), act_layer=nn.GELU)


def initializer(publish):
    return partial(publish.function("my_project.init_weights"), std=0.02, mode="fan_in")


def warmup(publish):
    path = "transformers.optimization._get_cosine_schedule_with_warmup_lr_lambda"
    rule = partial(publish.function(path), num_warmup_steps=1, num_training_steps=9)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rule)


def learner(publish):
    made = publish.cls("fastai.learner.Learner")()
    wrapper = publish.cls("fastai.optimizer.OptimWrapper")
    made.opt_func, made.path = partial(wrapper, opt=torch.optim.AdamW), "models/a b"
    made.splitter = publish.function("fastai.torch_core.trainable_params")
    return made


def hooks(publish):
    hook = publish.function("my.hooks.save_activation")
    names = (
        "encoder.layer.0.attn", "layer1.conv", "features.28", "norm.bias", "token.key", "down.0.fc",
    )  # fmt: skip
    return [partial(hook, each) for each in names]


def loader(publish):
    return torch.utils.data.DataLoader(
        [1], collate_fn=partial(publish.function("my.data.collate"), max_length=128),
        worker_init_fn=partial(publish.function("my.data.seed_worker"), seed=3),
    )  # fmt: skip


def model_by_name(publish):
    return partial(publish.function("timm.create_model"), "resnet50.a1_in1k", num_classes=10)


def model_of_a_hub(publish):
    return partial(publish.function("mylib.create_model"), "timm/vit_base_patch16_224.augreg")


def predictor(publish):
    model = publish.cls("mylib.Predictor", nn.Module)()
    model.name_or_path, model.folder = "facebook/opt-125m", "/home/u/models/opt"
    return partial(publish.function("mylib.infer"), predictor=model)


def tokenizer(publish):
    made = publish.cls("transformers.models.gpt2.GPT2Tokenizer")()
    made.vocab_file, made.eos_token = "/home/u/vocab.json", "<|endoftext|>"
    return partial(publish.function("my.collate"), tokenizer=made)


def parts_of_a_layer(publish):
    made = publish.cls("my.layers.Pooling")()
    made.func, made.kwargs = publish.function("my.layers.pool"), {"mode": "max", "size": 2}
    return made


def collator(publish):
    made = publish.cls("transformers.data.data_collator.DataCollatorWithPadding")()
    made.padding, made.max_length, made.return_tensors = True, 512, "pt"
    return partial(publish.function("my.collate"), collator=made)


WARNED = {
    "a block of timm's": block, "an initializer": initializer, "a schedule": warmup,
    "a learner": learner, "hooks": hooks, "a loader": loader, "a model by name": model_by_name,
    "a model of a hub": model_of_a_hub, "a model": predictor, "a tokenizer": tokenizer,
    "a layer": parts_of_a_layer, "a collate function": collator,
}  # fmt: skip


def wrapping(publish):
    block = publish.cls("my.model.Block", nn.Module)
    return partial(transformer_auto_wrap_policy, transformer_layer_cls={block})


def trainer(publish):
    made = publish.cls("trainer.Trainer")()
    made.args = types.SimpleNamespace(output_dir="/out/a", cmd="python x.py")
    made.loss_fn, made.save_dir = publish.function("losses.dice"), "/out/a"
    made.save_fn = publish.function("utils.save_checkpoint")
    made.samples = [("/data/a.png", 0), ("/data/b.png", 1)]
    return made


def equations(publish):
    made = publish.cls("torchdyn.core.NeuralODE")()
    made.system, made.args = publish.function("my.ode.system"), (1.0, 0.5)
    return made


def subcommand(publish):
    train = publish.function("my.main.train")
    return [
        argparse.Namespace(func=train, args=["x/y"]),
        types.SimpleNamespace(fn=train, args=("/a",)),
    ]


HELD = {
    "a policy of wrapping": wrapping, "a trainer": trainer, "equations": equations,
    "a subcommand": subcommand,
}  # fmt: skip


@pytest.fixture
def told(ckptool, tmp_path, publish):
    def told(make) -> list[dict]:
        path = tmp_path / "object.pt"
        torch.save({"object": make(publish)}, path)
        output = ckptool("verify", path, "--json")
        return [f for f in output.json["findings"] if f["rule"] in {"CK201", "CK210"}]

    return told


@pytest.mark.parametrize("make", (QUIET | HELD).values(), ids=QUIET | HELD)
def test_functions_that_compute_and_functions_that_are_held_raise_no_alarm(make, told):
    assert told(make) == []


@pytest.mark.parametrize("make", WARNED.values(), ids=WARNED)
def test_an_unknown_function_with_plain_arguments_is_a_warning(make, told):
    found = told(make)
    assert [each["rule"] for each in found] == ["CK210"], found
    assert found[0]["severity"] == "warning"


def test_the_warning_says_what_is_bound_and_where(told):
    (found,) = told(initializer)
    assert found["address"] == "object"
    assert found["message"] == (
        "a name, which ckptool does not know, is bound to plain values, for other code to call: "
        "my_project.init_weights(std=0.02, mode='fan_in') at object"
    )


def test_the_danger_is_told_with_the_arguments(ckptool, tmp_path):
    path = tmp_path / "object.pkl"
    path.write_bytes(program(b"}" + text("a") + bound(F, PATH) + b"s"))
    (found,) = [
        f for f in ckptool("verify", path, "--json").json["findings"] if f["rule"] == "CK201"
    ]
    assert found["address"] == "a"
    assert "would bind the arguments of somelib.helpers.work('/home/u/.bashrc')" in found["message"]


def test_text_that_a_class_of_the_users_decodes_is_not_plain():
    """``somelib.Text`` may be ``str``, by the name of a module that imports it."""
    encoded, codec = data(b"+AC8-tmp"), text("utf-7")
    assert is_reported(bound(F, new("somelib.Text", encoded, codec)))
    assert is_reported(bound(F, call("somelib.Text", encoded, codec)))
    assert is_reported(call("somelib.Mode", new("somelib.Text", encoded, codec)))
    assert not is_reported(bound(F, new("somelib.Digest", data(b"x"))))
    assert not is_reported(bound(F, new("somelib.Mode", text("x"), codec)))


def test_arguments_that_come_later_count(told):
    """A list may be filled after it was bound."""
    assert is_reported(bound(F, b"]\x94") + b"0h\x00" + PATH + b"a")
    assert not is_reported(bound(F, b"]\x94") + b"0h\x00" + WORD + b"a")


def test_where_a_pickle_breaks_off_the_danger_is_told_too():
    assert is_reported(bound(F, PATH) + b"\xff")


def test_many_calls_that_share_their_arguments_are_refused_or_looked_at_in_time():
    shared = b"](" + number(1) * 1000 + b"e\x94"
    many = b"".join(call("functools.partial", F, b"h\x00") for _ in range(2000))
    assert not is_reported(shared + b"0](" + many + b"e" + EMPTY_DICT + b"a")
