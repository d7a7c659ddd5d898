"""Does inspecting 100,000 tensors stay well below ``torch.load``?

Once as one model, once as a model with its EMA and Adam, where the averages must also be found and
paired by name.
"""

from __future__ import annotations

from harness import Contender, Question, answer, arguments, ckptool, make, python, workplace

LOAD = "import sys, torch; torch.load(sys.argv[1], map_location='cpu')"


def main() -> int:
    """Make the two files, measure four contenders."""
    options = arguments(__doc__, runs=5)
    with workplace(options.dir) as folder:
        names = make("names", folder / "names.pt")
        training = make("named-training", folder / "named-training.pt")
        questions = (
            Question(
                "inspect 100,000 tensors, a model : torch.load",
                Contender("inspect", ckptool("inspect", names), (names,)),
                Contender("torch.load", python(LOAD, names), (names,)),
                limit=0.35,
                predicted="0.3: 1.6 million opcodes either way, and torch makes real tensors",
            ),
            Question(
                "inspect 100,000 tensors, with EMA and Adam : torch.load",
                Contender("inspect training", ckptool("inspect", training), (training,)),
                Contender("torch.load training", python(LOAD, training), (training,)),
                limit=0.35,
                predicted="0.3: the pairing is linear in the names",
            ),
        )
        return answer(questions, options)


if __name__ == "__main__":
    raise SystemExit(main())
