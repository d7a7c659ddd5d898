"""The words of the package: docstrings begin as sentences do, and people read the field's terms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ckptool

PACKAGE = Path(ckptool.__file__).parent
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))

# A function's docstring begins with a verb (ruff's D401 knows verbs in the wrong form, not these).
NO_VERBS = {
    "a", "about", "all", "an", "and", "any", "as", "at", "both", "by", "each", "either", "every",
    "everything", "exactly", "for", "from", "how", "if", "in", "it", "its", "no", "none", "nothing",
    "of", "on", "one", "only", "other", "others", "some", "something", "such", "that", "the",
    "their", "these", "this", "those", "to", "two", "what", "whatever", "when", "where", "whether",
    "which", "who", "whoever", "whose", "why", "with",
}  # fmt: skip
# A class's and a module's begins with a noun, with or without an article.
HEADLESS = {
    "how", "what", "whatever", "when", "where", "whether", "which", "who", "whoever", "whose",
    "why",
}  # fmt: skip


@cache
def source(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text())


def first_word(node: ast.AST) -> str:
    """Return the first word of the docstring, in lower case; "" without a docstring."""
    said = (ast.get_docstring(node) or "").split()  # type: ignore[arg-type]
    return said[0].rstrip(",.:;").lower() if said else ""


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(each) for each in node.decorator_list)


def test_docstrings_of_functions_begin_with_a_verb():
    wrong = {
        f"{module}: {node.name}, line {node.lineno}": first_word(node)
        for module in MODULES
        for node in ast.walk(source(module))
        if isinstance(node, ast.FunctionDef) and first_word(node) in NO_VERBS
        if not is_property(node)
    }
    assert not wrong


def test_docstrings_of_classes_and_modules_begin_with_a_noun():
    wrong = {
        f"{module}: {getattr(node, 'name', 'the module')}"
        for module in MODULES
        for node in ast.walk(source(module))
        if isinstance(node, (ast.Module, ast.ClassDef)) and first_word(node) in HEADLESS
    }
    assert not wrong


# ------------------------------------------------------------------------------- what people read

# Words that stood for what the field has a word for, with that word. Docstrings may need them.
RETIRED = {
    r"element types?": "dtype",
    r"processors?": "CPU",
    r"not finite": "non-finite",
    r"markers?": "keyword",
    r"(twins|neighbours?|siblings?)": "sidecar file, or shared tensor",
    r"(belie(f|ves?|ved)|soundness)": "assumed equal; validation",
    r"(told|said|speaks?|as it stands|stands)": "reported, states, is",
    r"(nobody|somebody|whoever)": "a subject that acts",
}


def shown(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string of several words that is no docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and " " in node.value.strip() and id(node) not in docstrings:
            yield node.lineno, node.value


def test_people_read_the_terms_of_the_field():
    wrong = [
        (module, line, word[0], term)
        for module in MODULES
        for line, text in shown(source(module))
        for retired, term in RETIRED.items()
        if (word := re.search(rf"\b{retired}\b", text))
    ]
    assert not wrong
