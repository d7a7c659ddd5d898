"""Does inspecting 100,000 tensors stay well below ``torch.load``, and a million in linear time?

Once as one model, once as a model with its EMA and Adam, where the averages must also be found and
paired by name; and the latter ten times as large.
"""

from __future__ import annotations

from harness import Contender, Question, answer, arguments, ckptool, make, python, workplace

LOAD = "import sys, torch; torch.load(sys.argv[1], map_location='cpu', mmap=True)"


def main() -> int:
    """Make the three files, measure five contenders."""
    options = arguments(__doc__, runs=5)
    with workplace(options.dir) as folder:
        names = make("names", folder / "names.pt")
        training = make("named-training", folder / "named-training.pt")
        large = make("large-named-training", folder / "large-named-training.pt")
        of_training = Contender("inspect training", ckptool("inspect", training), (training,))
        questions = (
            Question(
                "inspect 100,000 tensors, a model : torch.load",
                Contender("inspect", ckptool("inspect", names), (names,)),
                Contender("torch.load", python(LOAD, names), (names,)),
                limit=0.2,
                predicted="0.19: the tensors of a dict are read in one call; torch makes real ones",
            ),
            Question(
                "inspect 100,000 tensors, with EMA and Adam : torch.load",
                of_training,
                Contender("torch.load training", python(LOAD, training), (training,)),
                limit=0.2,
                predicted="0.17: the dicts of an optimizer are read in one call too",
            ),
            Question(
                "inspect 1,000,000 tensors, with EMA and Adam : a tenth of them",
                Contender("inspect large", ckptool("inspect", large), (large,)),
                of_training,
                limit=11,
                peak_limit=2048,
                predicted="10.8: caches that hold a hundred thousand hold no million",
            ),
        )
        return answer(questions, options)


if __name__ == "__main__":
    raise SystemExit(main())
