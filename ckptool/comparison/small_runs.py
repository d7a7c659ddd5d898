"""Comparison of many small tensors at once: a run of each is a few bytes, and takes many calls.

They are read by windows. Those whose bytes differ are measured together where they are floats of
one dtype and as many, row by row of a matrix: a kernel makes some thirty calls for one tensor, and
as many for a thousand. The numbers are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckptool.comparison.arrays import BLOCK, NumpyArrays
from ckptool.comparison.kernels import ROW, Partial
from ckptool.comparison.measuring import measured_in_blocks, measured_together
from ckptool.comparison.tolerances import Tolerance
from ckptool.comparison.values import Job, Values
from ckptool.tensors.windows import SMALL, read_each


def is_small(job: Job) -> bool:
    """Return whether both tensors are a few bytes in one place that is near.

    Each is one run: it is measured as a whole or equal, and a norm of one side is never asked.
    """
    return not (job.is_bytewise or job.is_one_sided) and all(
        values.nbytes <= SMALL
        and values.spans is not None
        and len(values.spans) == 1
        and values.spans[0].source.is_near
        for values in job.sides
    )


def compare_small(arrays: NumpyArrays, jobs: Sequence[Job]) -> list[Partial | None]:
    """Return the numbers of each of several small jobs; None for equal bytes."""
    found: list[Partial | None] = [None] * len(jobs)
    pairs = list(zip(_read([job.a for job in jobs]), _read([job.b for job in jobs]), strict=True))
    alike: dict[tuple[str, int, Tolerance], list[int]] = {}
    for at, (job, (a, b)) in enumerate(zip(jobs, pairs, strict=True)):
        if a == b and job.is_one_type:
            continue
        elements = len(a) // job.a.dtype.itemsize
        if job.is_of_floats and elements < ROW:
            alike.setdefault((job.a.dtype.name, elements, job.rule), []).append(at)
        else:
            found[at] = measured_in_blocks(arrays, a, b, job)
    for (_, elements, _), group in alike.items():
        step = BLOCK // elements
        for own in (group[begin : begin + step] for begin in range(0, len(group), step)):
            job = jobs[own[0]]
            together = measured_together(arrays, [pairs[at] for at in own], job)
            for at, partial in zip(own, together, strict=True):
                found[at] = partial or measured_in_blocks(arrays, *pairs[at], job)
    return found


def _read(tensors: Sequence[Values]) -> list[bytes]:
    """Return the bytes of the small tensors of a side."""
    spans = [values.spans[0] for values in tensors if values.spans]
    return read_each(spans, tensors[0].reader.read) if tensors else []
