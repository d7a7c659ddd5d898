"""``ckptool`` and ``python -m ckptool``: ready to be interrupted before anything is imported."""

from ckptool.interrupts import end_cleanly


def run() -> None:
    """The console script."""
    end_cleanly()
    from ckptool import cli  # noqa: PLC0415 - takes most of the start

    cli.run()


if __name__ == "__main__":
    run()
