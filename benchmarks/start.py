"""What does the start cost, before there is anything to answer?

Against ``python -c pass``, the start of the interpreter that every program in Python has.
"""

from __future__ import annotations

from harness import Contender, Question, answer, arguments, ckptool, make, python, workplace


def main() -> int:
    """Make a small file, measure four contenders."""
    options = arguments(__doc__, runs=15)
    with workplace(options.dir) as folder:
        small = make("small", folder / "small.pt")
        bare = Contender("python -c pass", python("pass"))
        return answer(
            (
                Question(
                    "inspect of a small file : python -c pass",
                    Contender("inspect", ckptool("inspect", small), (small,)), bare, limit=6,
                    predicted="7: 135 modules of ours, and 50 of Python",
                ),
                Question(
                    "--help : python -c pass", Contender("--help", ckptool("--help")), bare,
                    limit=5, predicted="3: laid out without typer, and in a pipe without Rich",
                ),
                Question(
                    "--version : python -c pass", Contender("--version", ckptool("--version")),
                    bare, limit=5, predicted="2: it is told before anything is imported",
                ),
            ),
            options,
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
