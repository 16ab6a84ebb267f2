"""README and docs/ name only what is there: pages, commands, options, config keys, Python names, tests."""

import ast
import importlib
import re
import runpy
from pathlib import Path

import pytest
from fastreid.config import get_cfg
from yacs.config import CfgNode

from fastreid_sskd import add_sskd_config
from fastreid_sskd.engine import default_argument_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "MODEL_ZOO.md")] + sorted(
    ROOT.glob("docs/*.md")
)
all_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@all_pages
def test_links(page):
    for link in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        target, _, anchor = "".join(link).partition("#")
        if not target.startswith("http"):
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), f"{page.name} links to {target}, which is not there"
            assert not anchor or anchor in anchors(file), (
                f"{page.name} links to {target}#{anchor}: no such heading"
            )


@all_pages
def test_scripts_configs_and_make_targets(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(
        r"\b(?:tools|benchmarks|constraints|tests)/[\w/]+\.\w+|\bconfigs/[\w/]+\.yml", text
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which is not there"
    for command in re.findall(r"\bfastreid-sskd ([a-z-]+)", text):
        script = {"train": "train_net"}.get(command, command.replace("-", "_"))
        assert (ROOT / "tools" / f"{script}.py").exists(), command
    for name in re.findall(r"fastreid-sskd [^`\n]*--config-file (\S+\.yml)", text):
        assert (ROOT / "configs" / name).exists(), f"{page.name} names the config {name}, which is not there"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    code = "\n".join([*blocks(page, "sh"), *re.findall(r"`([^`\n]+)`", text)])
    for name in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE):
        assert name in targets, f"{page.name} names `make {name}`, which the Makefile lacks"


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The --options of all scripts."""
    folders = ("tools", "benchmarks", "fastreid_sskd", "docs")
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {option for text in texts for option in re.findall(r"[\"'](--[\w-]+)[\"']", text)}
    return found | set(default_argument_parser()._option_string_actions)


@all_pages
def test_options(page, options):
    """Each --option of a command of this repository is an argument of a script."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]*\.py [^`\n]*)`", page.read_text(encoding="utf-8"))
    for line in lines:
        command = re.search(
            r"(?:\b(?:tools|benchmarks|docs)/\w+\.py|-m fastreid_sskd[\w.]*|\bfastreid-sskd)(.*)", line
        )
        for option in re.findall(r"\s(--[\w-]+)", command.group(1)) if command else ():
            assert option in options, f"{page.name}: no script takes {option}: {line}"


def keys(node: CfgNode, prefix: str = "") -> set[str]:
    """The dotted names of all nodes and values of a config."""
    below = [keys(value, f"{prefix}{key}.") for key, value in node.items() if isinstance(value, CfgNode)]
    return {f"{prefix}{key}" for key in node}.union(*below)


@all_pages
def test_config_keys(page):
    cfg = get_cfg()
    add_sskd_config(cfg)
    known, text = keys(cfg), page.read_text(encoding="utf-8")
    for name in re.findall(
        r"(?<!cfg\.)\b(?:SSKD|SOLVER|DATASETS|DATALOADER|INPUT|TEST|MODEL)(?:\.\w+)+", text
    ):
        if not name.startswith("SSKD.FOLDERS."):  # its nodes are the user's
            assert name in known, f"{page.name} names {name}: no such key"


@all_pages
def test_python_blocks(page):
    """Blocks parse, and import names of this package that are there."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("fastreid_sskd"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), (
                    f"{page.name}: {ast.unparse(node)}"
                )


def test_api_page_is_what_the_package_exports():
    """`python docs/make_api.py` writes the page."""
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]()
    assert made == (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), "run `python docs/make_api.py`"
    for name in (
        "add_sskd_config",
        "multi_similarity",
        "pseudo_labels",
        "CropFolder",
        "SSKD",
        "run",
        "write_report",
    ):
        assert f"`{name}" in made


# ---- the table of faults -------------------------------------------------------------------------

FAULTS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| fault ")
]


@pytest.fixture(scope="module")
def names_of_tests() -> set[str]:
    """The names of all functions of the test suite."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_is_a_table_of_faults():
    assert len(FAULTS) > 30


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row[0][:60])
def test_row_of_the_table_of_faults_names_tests_that_exist(row, names_of_tests):
    assert len(row) == 3 and all(row)
    tests = re.findall(r"`(\w+)[^`]*`", row[2])
    assert tests
    for name in tests:
        assert name in names_of_tests, f"there is no test {name}"
