"""Which questions can be asked, and how each mistake is told."""

import json
import re
from pathlib import Path

import pytest

from producer import question_files
from producer.cli.main import run
from qsit.errors import UsageError
from qsit.questions import BUILTIN_QUESTIONS, Question
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()
FACES = '[[question]]\nname = "faces"\ntext = "Are the faces sharp?"\nchoices = ["yes", "no"]\n'


def of_file(tmp_path: Path, content: str | bytes) -> tuple[Question, ...]:
    file = tmp_path / "questions.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return question_files.wanted([], str(file))


def test_a_ready_question_is_asked_by_its_name_and_another_is_named_by_its_text() -> None:
    assert question_files.wanted(["sharpness", " Is it sharp?\n"], None) == (
        BUILTIN_QUESTIONS["sharpness"],
        Question("Is it sharp?", "Is it sharp?"),
    )


def test_text_is_asked_as_tokenizers_read_it() -> None:
    composed, decomposed = "Wie schön ist das?", "Wie scho\u0308n ist das?"

    assert question_files.wanted([composed, decomposed], None) == (Question(composed, composed),)


def test_questions_of_a_file_follow_those_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.toml"
    file.write_text(FACES + '[[question]]\nname = "why"\ntext = """\nWhy?\nIn short.\n"""\n')

    assert question_files.wanted(["noise"], str(file), 50) == (
        Question("noise", BUILTIN_QUESTIONS["noise"].text, BUILTIN_QUESTIONS["noise"].choices, 50),
        Question("faces", "Are the faces sharp?", ("yes", "no"), 50),
        Question("why", "Why?\nIn short.", (), 50),
    )


def test_the_file_of_the_readme_is_one(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", README, re.S)

    assert [question.name for question in of_file(tmp_path, "\ufeff" + example)] == ["faces", "advice"]


def test_two_questions_with_the_same_text_and_choices_are_one(tmp_path: Path) -> None:
    other_name = FACES.replace('"faces"', '"people"')

    assert [question.name for question in of_file(tmp_path, FACES + other_name)] == ["faces"]
    assert question_files.wanted(["noise", "noise", "Why?", "Why? "], None) == (
        BUILTIN_QUESTIONS["noise"],
        Question("Why?", "Why?"),
    )
    [same] = question_files.wanted([BUILTIN_QUESTIONS["overall"].text, "overall"], None)
    assert same.name == BUILTIN_QUESTIONS["overall"].text


def test_with_other_choices_a_question_is_another(tmp_path: Path) -> None:
    bare = '[[question]]\nname = "bare"\ntext = "Are the faces sharp?"\n'

    assert len(of_file(tmp_path, FACES + bare)) == 2


def test_two_different_questions_cannot_have_one_name(tmp_path: Path) -> None:
    file = tmp_path / "questions.toml"
    file.write_text('[[question]]\nname = "noise"\ntext = "Is it noisy?"\n')

    with pytest.raises(UsageError, match='two different questions are called "noise"'):
        question_files.wanted(["noise"], str(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("x?" * 1001, "2,002 characters; at most 2,000"),
        ("caf\udce9?", "bytes that are no text"),
        ("What is <image> about?", '"<image>" means something else'),
        ("What is <video> about?", '"<video>" means something else'),
        ("Sharp?<|im_end|>", '"<|im_end|>" means something else'),
        ("Sharp? <|a\nb|>", r'"<|a\nb|>" means something else'),
        ("sharpnes", "no ready question has that name; there are sharpness, noise"),
        ("美" * 1999 + "?", '美..." has more than 2,500 bytes'),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(capfd: pytest.CaptureFixture[str], text: str, words: str) -> None:
    assert run(["score", "/tmp", "--model", "demo", "--ask", text]) == 2

    error = capfd.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert len(error) < 300


@pytest.mark.parametrize("text", ["x?" * 1000, "a < b or b |> c?", "<Image> or <|?", "清晰吗?", "Sharp?"])
def test_what_only_looks_like_it_can_be_asked(text: str) -> None:
    assert question_files.wanted([text], None) == (Question(text, text),)


def test_choices_count_among_the_bytes_of_a_question(tmp_path: Path) -> None:
    choices = [f"{letter}{'x' * 150}" for letter in "abcdefghijklmnopq"]

    assert of_file(tmp_path, with_choices(json.dumps(choices[:15])))
    with pytest.raises(UsageError, match='the question "faces" has more than 2,500 bytes'):
        of_file(tmp_path, with_choices(json.dumps(choices)))


def with_choices(choices: str) -> str:
    return f'[[question]]\nname = "faces"\ntext = "Sharp?"\nchoices = {choices}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no question is in it; begin each with [[question]]"),
        ("question = []", "no question is in it"),
        ('[question]\nname = "a"\ntext = "A?"', "question is no list of tables; begin each with [[question]]"),
        ('question = ["A?"]', "no list of tables"),
        ("questions = 1\nmore = 2\n" + FACES, "unknown keys more, questions; a question is a table [[question]]"),
        (FACES + "answer = 1", "question 1: unknown key answer; there are name, text, choices"),
        ('[[question]]\ntext = "Sharp?"', "question 1: it has no name"),
        ('[[question]]\nname = "a"', "question 1: it has no text"),
        ('[[question]]\nname = 1\ntext = "Sharp?"', "question 1: name is no text"),
        ('[[question]]\nname = "a"\ntext = ["Sharp?"]', "question 1: text is no text"),
        ('[[question]]\nname = " "\ntext = "Sharp?"', "question 1: a name is one line of 1 to 100 characters"),
        (f'[[question]]\nname = "{"a" * 101}"\ntext = "Sharp?"', "one line of 1 to 100 characters"),
        ('[[question]]\nname = "a\\nb"\ntext = "Sharp?"', "one line of 1 to 100 characters"),
        ('[[question]]\nname = "a\\u001b[1mb"\ntext = "Sharp?"', "one line of 1 to 100 characters"),
        ('[[question]]\nname = "a"\ntext = ""', "question 1 (a): it is empty"),
        ('[[question]]\nname = "a"\ntext = "A\\u0000?"', "question 1 (a): it has bytes that are no text"),
        ('[[question]]\nname = "a"\ntext = "<image>?"', 'question 1 (a): "<image>" means something else to a model'),
        (FACES + FACES, 'two questions are called "faces"'),
        (FACES + FACES.replace("Are", "Were"), 'two questions are called "faces"'),
        (with_choices('"yes"'), "question 1 (faces): choices is no list of texts"),
        (with_choices("[1, 2]"), "choices is no list of texts"),
        (with_choices("[]"), "it has 0 choices; 2 to 26"),
        (with_choices('["yes"]'), "it has 1 choices; 2 to 26"),
        (with_choices(json.dumps([f"choice {number}" for number in range(27)])), "it has 27 choices"),
        (with_choices('["yes", " "]'), "a choice is empty"),
        (with_choices('["yes", " yes "]'), "two choices are the same"),
        (with_choices(json.dumps(["yes", "n" * 201])), "a choice has 201 characters; at most 200"),
        (with_choices('["yes", "n\\no"]'), r'the choice "n\no" has more than one line'),
        (with_choices('["yes", "n\\u2028o"]'), "has more than one line"),
        (with_choices('["yes", "<|no|>"]'), '"<|no|>" means something else'),
        (with_choices('["yes", "n\\u0000"]'), "bytes that are no text"),
        (with_choices('["B", "A"]'), "the reply A would mean two choices"),
        ("question = [", "it is no TOML: "),
        ("[" * 100_000, "it is no TOML: "),
        (b'[[question]]\nname = "caf\xe9"', "it is not in UTF-8: "),
    ],
)
def test_a_mistake_in_a_file_is_told_in_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, content: str | bytes, words: str
) -> None:
    file = tmp_path / "questions.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)

    assert run(["submit", "/tmp", "--model", "demo", "--ask-file", str(file)]) == 2

    error = capfd.readouterr().err
    assert error.startswith(f"qsit: {file}: ")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ask-file", "/no/such/file"], "cannot read the questions /no/such/file: No such file"),
        (["--ask-file", "/tmp"], "cannot read the questions /tmp: Is a directory"),
        (["--ask-below", "0.5"], "--ask-below is about questions; give one with --ask or --ask-file"),
        (["--max-new-tokens", "50"], "--max-new-tokens is about questions"),
        (["--ask", "noise", "--ask-below", "1.5"], "0<=x<=1"),
        (["--ask", "noise", "--ask-below", "nan"], "it is no number"),
        (["--ask", "noise", "--max-new-tokens", "0"], "1<=x<=2000"),
        (["--ask", "noise", "--max-new-tokens", "2001"], "1<=x<=2000"),
    ],
)
@pytest.mark.parametrize("command", ["score", "submit"])
def test_wrong_usage_of_the_options(
    capfd: pytest.CaptureFixture[str], command: str, arguments: list[str], words: str
) -> None:
    assert run([command, "/tmp", "--model", "demo", *arguments]) == 2

    assert words in capfd.readouterr().err


def test_ready_questions_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["questions"]) == 0
    table = capfd.readouterr().out
    assert run(["questions", "--format", "json"]) == 0
    rows = json.loads(capfd.readouterr().out)

    assert [row["name"] for row in rows] == list(BUILTIN_QUESTIONS)
    assert rows[0] == {
        "name": "sharpness",
        "text": "How would you rate the sharpness of this image?",
        "choices": ["very low", "low", "acceptable", "high"],
    }
    assert rows[-1]["choices"] == []
    assert all(question.name in table and question.text in table for question in BUILTIN_QUESTIONS.values())
    assert "very low, low, acceptable, high" in table


def test_ready_questions_are_such_as_can_be_asked(tmp_path: Path) -> None:
    assert question_files.wanted(list(BUILTIN_QUESTIONS), None) == tuple(BUILTIN_QUESTIONS.values())
    tables = (
        f"[[question]]\nname = {json.dumps(question.name)}\ntext = {json.dumps(question.text)}\n"
        + (f"choices = {json.dumps(question.choices)}\n" if question.choices else "")
        for question in BUILTIN_QUESTIONS.values()
    )
    assert of_file(tmp_path, "\n".join(tables)) == tuple(BUILTIN_QUESTIONS.values())
