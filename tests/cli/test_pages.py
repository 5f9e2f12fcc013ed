"""The written pages: their links lead somewhere, and their commands and code are of today."""

import ast
import re
import tomllib

import pytest
import typer
import yaml

from kdbench.cli import app
from kdbench.matrix.file import load_matrix
from kdbench.spec.settings import Data, Teacher
from tests.support import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
]
#: The site builder checks links between its own pages, generated ones included.
LOOSE = PAGES[:3]
COMMANDS = typer.main.get_command(app).commands


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def name(page):
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", LOOSE, ids=name)
def test_links_to_files_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


@pytest.mark.parametrize("page", LOOSE, ids=name)
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`((?:kdbench|tests|docs|benchmarks)/[\w/.-]+)`", page.read_text())
    there = [path for path in named if "NAME" not in path]
    assert [path for path in there if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_exist(page):
    indented = re.findall(r"^    .*", page.read_text(), re.MULTILINE)
    shell = "\n".join([*blocks(page, "sh"), *indented])
    for line in re.findall(r"^\s*(?:\$ )?(kdbench [a-z]+ [^#\n]*)", shell, re.MULTILINE):
        _, command, *rest = line.split()
        assert command in COMMANDS, line
        known = {option for param in COMMANDS[command].params for option in param.opts}
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert given <= known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_parses_and_toml_loads(page):
    for code in blocks(page, "python"):
        ast.parse(code)
    for document in blocks(page, "toml"):
        tomllib.loads(document)


def test_the_guides_matrix_is_one(tmp_path):
    first, *_ = blocks(DOCS / "how-to/write-a-matrix.md", "toml")
    path = tmp_path / "mine.toml"
    path.write_text(first)
    assert len(load_matrix(path).cells) == 5
    assert load_matrix(path, preset="laptop").cells


@pytest.mark.parametrize(
    ("guide", "table", "model"),
    [("use-your-own-data", "data", Data), ("use-your-own-teacher", "teachers", Teacher)],
)
def test_the_snippets_of_teacher_and_data_hold(guide, table, model):
    first, *_ = blocks(DOCS / f"how-to/{guide}.md", "toml")
    document = tomllib.loads(first)[table]
    model.model_validate(document.get("mine", document))


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """Passes over the tags of Python objects, of which the file may have some."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    navigation = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)["nav"]
    listed = re.findall(r"[\w/-]+\.md", str(navigation))
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert {path for path in listed if not path.startswith("reference/")} == written
    assert len(listed) == len(set(listed))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
