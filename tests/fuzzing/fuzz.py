# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["atheris>=3.0", "ckptool"]
# ///
"""A long run by hand: ``python tests/fuzzing/fuzz.py zip -max_total_time=3600``.

Everything behind the target's name goes to libFuzzer. The corpus begins with the small fixtures
(the locator's with nothing: its bytes are no file), and what is found grows in
``CORPUS/<target>`` (by default under the temporary folder). A crash is written to ``crash-…``
there: make it a file of ``tests/regressions``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ckptool"]):
    from targets import MEMORY, SECONDS, TARGETS

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
MAX_SEED = 1 << 14  # bytes; larger ones only slow the search down

# Words that a search byte by byte would take long to find.
WORDS = (
    b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
    b"ctorch.storage\n_load_from_bytes\n", b"ctorch\nFloatStorage\n", b"X\x07\x00\x00\x00storage",
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"ccopy_reg\n_reconstructor\n",
    b"c_codecs\nencode\n", b"c__builtin__\nset\n", b"state_dict", b"ema", b"_parameters",
    b"_modules", b"_buffers", b"param_groups", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06",
    b"PK\x06\x06", b"PK\x06\x07", b"data.pkl", b"ustar", b"storages", b"tensors", b"data_offsets",
    b"__metadata__", b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
)  # fmt: skip


def _quoted(word: bytes) -> str:
    """As libFuzzer's dictionaries spell bytes."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


def main() -> None:
    """Fuzz the target that the command line names."""
    name, *options = sys.argv[1:]
    root = Path(os.environ.get("CORPUS", tempfile.gettempdir())) / name
    root.mkdir(parents=True, exist_ok=True)
    for seed in sorted(FIXTURES.rglob("*")) if name != "locator" else ():
        if seed.is_file() and seed.stat().st_size <= MAX_SEED and "README" not in seed.name:
            (root / f"seed-{seed.parent.name}-{seed.name}").write_bytes(seed.read_bytes())
    words = root.with_suffix(".words")
    words.write_text("\n".join(map(_quoted, WORDS)))
    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY >> 20}", f"-artifact_prefix={root}/"]
    command = [sys.argv[0], *limits, f"-dict={words}", "-max_len=65536", *options, str(root)]
    atheris.Setup(command, lambda data: TARGETS[name](bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
