"""The rules of the house that no linter knows, checked on the syntax tree of our own package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "kvstrata"
LAB = REPOSITORY / "lab"
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
FORBIDDEN_NAMES = {"core", "common", "utils", "managers"}
BROAD = {"Exception", "BaseException"}

Complaints = Iterator[str]


def long_module(source: str, _tree: ast.Module) -> Complaints:
    lines = len(source.splitlines())
    if lines >= LONGEST_MODULE:
        yield f"1: {lines} lines, the limit is {LONGEST_MODULE}"


def long_functions(_source: str, tree: ast.Module) -> Complaints:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines >= LONGEST_FUNCTION:
                yield f"{node.lineno}: {node.name} has {lines} lines, limit {LONGEST_FUNCTION}"


def broad_excepts(source: str, tree: ast.Module) -> Complaints:
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler) or not _is_broad(node.type):
            continue
        last = node.body[-1]
        if isinstance(last, ast.Raise) and last.exc is None:
            continue  # it cleans up and lets the error pass: nothing is hidden
        # The reason stands on the line of the except or on the first line inside it.
        near = lines[node.lineno - 1 : node.body[0].lineno]
        if not any("# boundary: " in line for line in near):
            yield f"{node.lineno}: a broad except without '# boundary: why'"


def _is_broad(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(name, ast.Name) and name.id in BROAD for name in names)


def global_statements(_source: str, tree: ast.Module) -> Complaints:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: a global statement"


def prints(_source: str, tree: ast.Module) -> Complaints:
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id == "print":
            yield f"{node.lineno}: a print outside command-line code"


SIZE_RULES = (long_module, long_functions, broad_excepts)
ALL_RULES = (*SIZE_RULES, global_statements, prints)


def complaints_about(path: Path, rules: tuple) -> list[str]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    return [
        f"{path.relative_to(REPOSITORY)}:{complaint}"
        for rule in rules
        for complaint in rule(source, tree)
    ]


def test_the_package_keeps_the_rules() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        in_cli = path.is_relative_to(PACKAGE / "cli")
        rules = tuple(rule for rule in ALL_RULES if not (in_cli and rule is prints))
        found += complaints_about(path, rules)
    assert found == []


def test_the_lab_keeps_the_size_rules() -> None:
    found = [
        one for path in sorted(LAB.rglob("*.py")) for one in complaints_about(path, SIZE_RULES)
    ]
    assert found == []


def test_no_folder_or_module_without_a_subject() -> None:
    named = [*PACKAGE.rglob("*.py"), *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    assert [path for path in named if path.stem in FORBIDDEN_NAMES] == []


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (long_module, "x = 1\n" * 400, "x = 1\n" * 399),
        (long_functions, "def f():\n" + " x = 1\n" * 59, "def f():\n" + " x = 1\n" * 58),
        (
            broad_excepts,
            "try:\n x\nexcept (ValueError, Exception):\n pass",
            "try:\n x\nexcept Exception:  # boundary: a callback of the engine\n pass",
        ),
        (
            broad_excepts,
            "try:\n x\nexcept:\n pass",
            "try:\n x\nexcept BaseException:\n # boundary: thread\n pass",
        ),
        (
            broad_excepts,
            "try:\n x\nexcept Exception:\n # because\n y",
            "try:\n x\nexcept OSError: y",
        ),
        (
            broad_excepts,
            "try:\n x\nexcept BaseException:\n y\n raise ValueError",
            "try:\n x\nexcept BaseException:\n y\n raise",
        ),
        (global_statements, "def f():\n global x\n x = 1", "x = 1"),
        (prints, "print('x')", "log.info('print')"),
    ],
)
def test_each_rule_can_fail(rule, bad: str, good: str) -> None:
    assert list(rule(bad, ast.parse(bad))) != []
    assert list(rule(good, ast.parse(good))) == []
