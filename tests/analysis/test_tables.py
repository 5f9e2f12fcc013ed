"""The paper's tables: counts held to the models themselves, and text that survives markup."""

import re

import pytest
import torch
from transformers import ViTModel

from kdbench import load_matrix
from kdbench.analysis.markup import Table, latex, markdown
from kdbench.analysis.paper_tables import student_parameters, tables, teacher_parameters
from kdbench.cli import main
from kdbench.common.errors import InputError
from kdbench.spec.settings import Student, Teacher
from kdbench.worker.models.student import Student as StudentModel
from kdbench.worker.models.teacher import vit_config
from tests.cli.test_imports import imported_by
from tests.support import REPOSITORY

FIG4 = REPOSITORY / "benchmarks/fig4.toml"


def counted(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("teacher_width", [None, 768, 1024])
@pytest.mark.parametrize(
    ("patch", "width", "depth", "heads", "size", "classes"),
    [(4, 256, 6, 8, 32, 100), (4, 512, 10, 8, 64, 100), (3, 40, 2, 5, 17, 7)],
)
def test_a_students_count_is_the_models(patch, width, depth, heads, size, classes, teacher_width):
    shape = Student(patch_size=patch, width=width, depth=depth, heads=heads)
    told = {"image_size": size, "classes": classes, "teacher_width": teacher_width}
    with torch.device("meta"):
        model = StudentModel(shape, attention="eager", **told)
    assert student_parameters(shape, **told) == counted(model)


@pytest.mark.parametrize(
    ("patch", "width", "depth", "heads", "size"),
    [(32, 1024, 24, 16, 224), (16, 768, 12, 12, 224), (4, 64, 2, 4, 18)],
)
def test_a_teachers_count_is_transformers_own(patch, width, depth, heads, size):
    shape = Teacher(patch_size=patch, width=width, depth=depth, heads=heads, image_size=size)
    with torch.device("meta"):
        model = ViTModel(vit_config(shape))
    assert teacher_parameters(shape) == counted(model)


def rows_of(text):
    """Cells of each row of a markdown table, by its first cell."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_papers_models(capsys):
    assert main(["tables", "--matrix", str(FIG4), "--table", "teachers"]) == 0
    teachers = rows_of(capsys.readouterr().out)
    checkpoint = "google/vit-large-patch32-224-in21k"
    assert teachers["vit-large-patch32"] == [
        checkpoint,
        "32",
        "1024",
        "24",
        "16",
        "224",
        "306.56 M",
        "random",
    ]
    assert main(["tables", "--matrix", str(FIG4), "--table", "students"]) == 0
    text = capsys.readouterr().out
    assert "5.06 M" in text
    assert rows_of(text)["large\\*"][0] == "4"
    assert "\\* shape inferred" in text


def test_the_training_parameters_and_their_differences():
    matrix = load_matrix(
        FIG4, preset="control", assignments=["axes.alpha2=[0.1, 0.9]", "seeds=[3, 4]"]
    )
    rows = rows_of(tables(matrix, table="training"))
    assert rows["learning rate"] == ["0.0001"]
    assert rows["optimizer"] == ["adamw"]
    assert rows["batch size"] == ["64"]
    assert rows["data set"] == ["cifar100-shaped"]
    # The student alone weighs nothing.
    assert rows["alpha2 (distillation)"] == ["0.1, 0.9"]
    assert rows["alpha1 (classification)"] == ["0.9, 0.1"]
    assert rows["seeds"] == ["3, 4"]


def test_a_student_without_a_teacher_has_no_projection():
    matrix = load_matrix(FIG4, assignments=['axes.method=["student-only"]', "exclude=[]"])
    text = tables(matrix)
    assert "**Teachers**" not in text  # none is used
    assert "alpha2" not in text
    assert rows_of(text)["base"][-2:] == ["–", "4.84 M"]
    with pytest.raises(InputError, match="no teachers in this matrix"):
        tables(matrix, table="teachers")


def test_latex_is_well_formed():
    text = tables(load_matrix(FIG4), format="latex")
    for kind in ("table", "tabular"):
        assert text.count(rf"\begin{{{kind}}}") == text.count(rf"\end{{{kind}}}") == 3
    for body in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.DOTALL):
        width = len(re.match(r"\\begin\{tabular\}\{(\w+)\}", body)[1])
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        assert {row.count(" & ") for row in rows} == {width - 1}


NASTY = "a|b_c%d&e#f$g{h}i\\j~k^l*m`n<o>p"


def test_markdown_is_escaped():
    text = markdown(Table("t", ("x", "y"), (False, True), ((NASTY, "1"),)))
    row = text.splitlines()[-1]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert r"a\|b\_c%d\&e\#f\$g{h}i\\j\~k^l\*m\`n\<o>p" in row


def test_latex_is_escaped():
    text = latex(Table("100 %", ("x",), (False,), ((NASTY,),)))
    assert r"\caption{100 \%}" in text
    assert (
        r"a\textbar{}b\_c\%d\&e\#f\$g\{h\}i\textbackslash{}j\textasciitilde{}k"
        r"\textasciicircum{}l*m`n\textless{}o\textgreater{}p \\"
    ) in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--table", "teacher"], "--table: unknown table 'teacher'; did you mean 'teachers'?"),
        (["--format", "html"], "--format: unknown format 'html'; the formats are"),
        (["--preset", "pape"], "did you mean 'paper'?"),
    ],
)
def test_broken_usage_is_told(capsys, options, told):
    assert main(["tables", "--matrix", str(FIG4), *options]) == 2
    assert told in capsys.readouterr().err


def test_tables_need_no_torch():
    code, modules = imported_by("tables", "--matrix", FIG4)
    assert code == 0
    assert not {"torch", "transformers", "matplotlib", "pandas"} & set(modules)


@pytest.mark.parametrize(("method", "width"), [("teacher-kd", "1024"), ("vanilla-kd", "–")])
def test_a_student_projects_embeddings_alone(method, width, capsys):
    axes = ["--set", f'axes.method="{method}"', "--set", 'axes.student="base"']
    arguments = ["--matrix", str(FIG4), "--table", "students", *axes, "--set", "exclude=[]"]
    assert main(["tables", *arguments]) == 0
    row = rows_of(capsys.readouterr().out)["base"]
    assert row[6] == width
