"""``open_checkpoint``: the loader that every command shares.

A file is recognised by what it holds, never by its suffix: people write zips called ``.ckpt``, pickles called
``.pt`` and safetensors called ``.bin``.
"""

from __future__ import annotations

from ckptool.formats.torch_zip import TorchZip

FORMATS = (TorchZip(),)
