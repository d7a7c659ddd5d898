"""Records of storages that torch takes for folders: the memory of the tensor stays as it was."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from helpers.opcodes import dct, tensor, text, zipped

VALUES = bytes(range(16))


def saved(key: str, attributes: int = 0) -> bytes:
    """A file whose record of the storage has these attributes of DOS."""
    written = zipped(dct((text("w"), tensor(key, 4))), {key: VALUES})
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in records:
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes if name.startswith("archive/data/") else 0
            archive.writestr(info, content)
    return out.getvalue()


FOLDERS = {"an attribute": ("0", 0x10), "a slash": ("a/", 0), "no name": ("", 0)}


@pytest.mark.parametrize(("key", "attributes"), FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize("command", ["inspect", "extract-ema", "promote-ema"])
def test_a_storage_in_a_folder_has_no_values(command, key, attributes, ckptool, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(saved(key, attributes))
    options = () if command == "inspect" else ("-o", tmp_path / "out.pt")
    done = ckptool(command, path, *options, "--json")
    assert done.exit_code == 2
    assert "marked as a folder" in done.json["error"]["message"]


@pytest.mark.parametrize("attributes", [0o40755 << 16, 0o120777 << 16, 0x20])
def test_other_attributes_change_nothing(attributes, ckptool, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(saved("0", attributes))
    wanted = torch.load(path)["w"]
    (entry,) = ckptool("inspect", path, "--stats", "--json").json["entries"]
    assert entry["stats"]["max"] == wanted.max().item()
