"""Every row of the README's fault table names tests that are there."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"


def rows() -> list[list[str]]:
    section = (ROOT / "README.md").read_text().split("\n## Reliability\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def named_tests(cell: str) -> list[tuple[str, str]]:
    """(file, function or "") of a cell; "::name" is of the file named before it."""
    found, file = [], ""
    for name in re.findall(r"`([^`]+)`", cell):
        path, _, function = name.partition("::")
        file = path or file
        found.append((file, function.split("[")[0]))
    return found


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_there_is_a_table():
    assert len(rows()) > 30


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_row_names_tests_that_exist(row):
    assert len(row) == 3 and all(row)
    tests = named_tests(row[2])
    assert tests
    for file, function in tests:
        paths = [ROOT / file] if "/" in file else list(TESTS.rglob(file))  # no two tests have one file name
        assert len(paths) == 1 and paths[0].exists(), f"{file} is not there"
        assert not function or function in functions(paths[0]), f"{file} has no {function}"
