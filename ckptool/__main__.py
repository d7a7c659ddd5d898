"""``ckptool`` and ``python -m ckptool``: ready to be interrupted before anything is imported.

A short process frees nothing that matters: collecting costs a tenth of the start, and a fifth of
the reading of a large pickle. And it has no use for the threads that numpy's BLAS starts on being
imported, one for each processor, which then wait by spinning: 0.08 s of a core each.
"""

import gc
import os

from ckptool.interrupts import end_cleanly


def run() -> None:
    """The console script."""
    end_cleanly()
    gc.disable()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ckptool import cli  # noqa: PLC0415 - takes most of the start

    cli.run()


if __name__ == "__main__":
    run()
