"""A slot in a zip inside the pickle keeps its values: the zip has checksums of its own."""

from __future__ import annotations

import io

import pytest
import torch

from helpers.assembler import (
    binary,
    call,
    integer,
    integers,
    mapping,
    name,
    program,
    streamed,
    text,
    zipped,
)

COUNT = 16
CONTAINERS = {
    "pickle": (".pkl", program),
    "legacy": (".pt", lambda body: streamed(program(body, 2), [])),
    "zip": (".pt", lambda body: zipped(program(body), {})),
}


def _tensor(values: torch.Tensor, *, in_zip: bool) -> bytes:
    """A tensor whose storage is a stream of ``torch.save``."""
    stream = io.BytesIO()
    storage = torch.storage.TypedStorage(
        wrap_storage=values.untyped_storage(), dtype=torch.float32, _internal=True
    )
    torch.save(storage, stream, _use_new_zipfile_serialization=in_zip)
    made = call(name("torch.storage", "_load_from_bytes"), binary(stream.getvalue()))
    hooks = call(name("collections", "OrderedDict"))
    place = (integer(0), integers(COUNT), integers(1), b"\x89", hooks)
    return call(name("torch._utils", "_rebuild_tensor_v2"), made, *place)


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_slot_in_a_nested_zip_is_refused(container, in_zip, ckptool, tmp_path):
    suffix, write = CONTAINERS[container]
    model, average = torch.arange(16.0), torch.arange(16.0) + 0.5
    body = mapping(
        (text("model"), mapping((text("w"), _tensor(model, in_zip=in_zip)))),
        (text("ema"), mapping((text("w"), _tensor(average, in_zip=in_zip)))),
    )
    path, output = tmp_path / f"last{suffix}", tmp_path / f"out{suffix}"
    path.write_bytes(write(body))
    done = ckptool("promote-ema", path, "-o", output, "--ema", "ema", "--model", "model", "--json")
    if in_zip:
        assert done.exit_code == 2
        assert "a zip archive inside the pickle" in done.json["error"]["message"]
    else:
        assert done.exit_code == 0
