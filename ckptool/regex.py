"""Regular expressions that are compiled when they are first asked.

Some eighty stand at the top of modules. Compiling all of them takes a tenth of the time in which
a small file is inspected, and few of them are asked about any one file.
"""

from __future__ import annotations

import re
from typing import Any, AnyStr, cast


class _Regex:
    def __init__(self, pattern: Any, flags: int) -> None:
        self.pattern, self._flags = pattern, flags

    def __getattr__(self, name: str) -> Any:
        self.__dict__[name] = found = getattr(re.compile(self.pattern, self._flags), name)
        return found


def regex(pattern: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return what ``re.compile`` does, to all that call its methods.

    The functions of ``re`` do not take it. A mistake in the pattern is raised when it is asked.
    """
    return cast("re.Pattern[AnyStr]", _Regex(pattern, flags))
