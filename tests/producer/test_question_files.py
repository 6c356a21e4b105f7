"""Which questions can be asked, and how each mistake is reported."""

import json
from pathlib import Path

import pytest

from producer import question_files
from producer.cli.main import run
from qsit.errors import UsageError
from qsit.questions import BUILTIN_QUESTIONS, Question

FACES = '[[question]]\nname = "faces"\ntext = "Are the faces sharp?"\nchoices = ["yes", "no"]\n'


def of_file(tmp_path: Path, content: str | bytes) -> tuple[Question, ...]:
    file = tmp_path / "questions.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return question_files.parse_questions([], str(file))


def test_ask_takes_the_name_of_a_ready_question_or_a_text() -> None:
    assert question_files.parse_questions(["sharpness", " Is it sharp?\n"], None) == (
        BUILTIN_QUESTIONS["sharpness"],
        Question("Is it sharp?", "Is it sharp?"),
    )


def test_text_is_composed_as_tokenizers_read_it() -> None:
    composed, decomposed = "Wie schön ist das?", "Wie scho\u0308n ist das?"

    assert question_files.parse_questions([composed, decomposed], None) == (Question(composed, composed),)


def test_questions_from_a_file_follow_those_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.toml"
    file.write_text(FACES + '[[question]]\nname = "why"\ntext = """\nWhy?\nIn short.\n"""\n')

    assert question_files.parse_questions(["noise"], str(file), 50) == (
        Question("noise", BUILTIN_QUESTIONS["noise"].text, BUILTIN_QUESTIONS["noise"].choices, 50),
        Question("faces", "Are the faces sharp?", ("yes", "no"), 50),
        Question("why", "Why?\nIn short.", (), 50),
    )


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert [question.name for question in of_file(tmp_path, "\ufeff" + FACES)] == ["faces"]


def test_questions_with_the_same_text_and_choices_are_asked_once(tmp_path: Path) -> None:
    other_name = FACES.replace('"faces"', '"people"')

    assert [question.name for question in of_file(tmp_path, FACES + other_name)] == ["faces"]
    assert question_files.parse_questions(["noise", "noise", "Why?", "Why? "], None) == (
        BUILTIN_QUESTIONS["noise"],
        Question("Why?", "Why?"),
    )
    [same] = question_files.parse_questions([BUILTIN_QUESTIONS["overall"].text, "overall"], None)
    assert same.name == BUILTIN_QUESTIONS["overall"].text


def test_questions_with_different_choices_are_different(tmp_path: Path) -> None:
    bare = '[[question]]\nname = "bare"\ntext = "Are the faces sharp?"\n'

    assert len(of_file(tmp_path, FACES + bare)) == 2


def test_different_questions_cannot_have_the_same_name(tmp_path: Path) -> None:
    file = tmp_path / "questions.toml"
    file.write_text('[[question]]\nname = "noise"\ntext = "Is it noisy?"\n')

    with pytest.raises(UsageError, match='two different questions have the name "noise"'):
        question_files.parse_questions(["noise"], str(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("x?" * 1001, "2,002 characters, more than 2,000"),
        ("caf\udce9?", "invalid UTF-8"),
        ("What is <image> about?", '"<image>" is a special token'),
        ("What is <video> about?", '"<video>" is a special token'),
        ("Sharp?<|im_end|>", '"<|im_end|>" is a special token'),
        ("Sharp? <|a\nb|>", r'"<|a\nb|>" is a special token'),
        ("sharpnes", "no ready question has this name; choose from sharpness, noise"),
        ("美" * 1999 + "?", '美..." has more than 2,500 bytes'),
    ],
)
def test_a_bad_question_is_refused_in_one_line(capfd: pytest.CaptureFixture[str], text: str, words: str) -> None:
    assert run(["score", "/tmp", "--model", "demo", "--ask", text]) == 2

    error = capfd.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert len(error) < 300


@pytest.mark.parametrize("text", ["x?" * 1000, "a < b or b |> c?", "<Image> or <|?", "清晰吗?", "Sharp?"])
def test_a_text_that_resembles_a_special_token_is_accepted(text: str) -> None:
    assert question_files.parse_questions([text], None) == (Question(text, text),)


def test_choices_count_towards_the_size_of_a_question(tmp_path: Path) -> None:
    choices = [f"{letter}{'x' * 150}" for letter in "abcdefghijklmnopq"]

    assert of_file(tmp_path, with_choices(json.dumps(choices[:15])))
    with pytest.raises(UsageError, match='the question "faces" has more than 2,500 bytes'):
        of_file(tmp_path, with_choices(json.dumps(choices)))


def with_choices(choices: str) -> str:
    return f'[[question]]\nname = "faces"\ntext = "Sharp?"\nchoices = {choices}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the file has no question; begin each with [[question]]"),
        ("question = []", "the file has no question"),
        ('[question]\nname = "a"\ntext = "A?"', "question is not a list of tables; begin each with [[question]]"),
        ('question = ["A?"]', "not a list of tables"),
        (
            "questions = 1\nmore = 2\n" + FACES,
            "unknown keys more, questions; write each question as a table [[question]]",
        ),
        (FACES + "answer = 1", "question 1: unknown key answer; the keys are name, text, choices"),
        ('[[question]]\ntext = "Sharp?"', "question 1: name is missing"),
        ('[[question]]\nname = "a"', "question 1: text is missing"),
        ('[[question]]\nname = 1\ntext = "Sharp?"', "question 1: name is not a string"),
        ('[[question]]\nname = "a"\ntext = ["Sharp?"]', "question 1: text is not a string"),
        ('[[question]]\nname = " "\ntext = "Sharp?"', "question 1: a name must be one line of 1 to 100 characters"),
        (f'[[question]]\nname = "{"a" * 101}"\ntext = "Sharp?"', "one line of 1 to 100 characters"),
        ('[[question]]\nname = "a\\nb"\ntext = "Sharp?"', "one line of 1 to 100 characters"),
        ('[[question]]\nname = "a\\u001b[1mb"\ntext = "Sharp?"', "one line of 1 to 100 characters"),
        ('[[question]]\nname = "a"\ntext = ""', "question 1 (a): the question is empty"),
        ('[[question]]\nname = "a"\ntext = "A\\u0000?"', "question 1 (a): the text contains a NUL character"),
        ('[[question]]\nname = "a"\ntext = "<image>?"', 'question 1 (a): "<image>" is a special token of the model'),
        (FACES + FACES, 'two questions have the name "faces"'),
        (FACES + FACES.replace("Are", "Were"), 'two questions have the name "faces"'),
        (with_choices('"yes"'), "question 1 (faces): choices is not a list of strings"),
        (with_choices("[1, 2]"), "choices is not a list of strings"),
        (with_choices("[]"), "the question has 0 choices; write 2 to 26"),
        (with_choices('["yes"]'), "1 choices; write 2 to 26"),
        (with_choices(json.dumps([f"choice {number}" for number in range(27)])), "27 choices"),
        (with_choices('["yes", " "]'), "a choice is empty"),
        (with_choices('["yes", " yes "]'), "two choices are the same"),
        (with_choices(json.dumps(["yes", "n" * 201])), "a choice has 201 characters, more than 200"),
        (with_choices('["yes", "n\\no"]'), r'the choice "n\no" has more than one line'),
        (with_choices('["yes", "n\\u2028o"]'), "has more than one line"),
        (with_choices('["yes", "<|no|>"]'), '"<|no|>" is a special token'),
        (with_choices('["yes", "n\\u0000"]'), "a NUL character"),
        (with_choices('["B", "A"]'), "the reply A would mean two choices"),
        ("question = [", "the file is not valid TOML: "),
        ("[" * 100_000, "the file is not valid TOML: "),
        (b'[[question]]\nname = "caf\xe9"', "the file is not UTF-8: "),
    ],
)
def test_a_mistake_in_a_file_is_reported_in_one_line(
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
        (["--ask-file", "/no/such/file"], "cannot read the questions in /no/such/file: No such file"),
        (["--ask-file", "/tmp"], "cannot read the questions in /tmp: Is a directory"),
        (["--ask-below", "0.5"], "--ask-below needs a question: use --ask or --ask-file"),
        (["--max-new-tokens", "50"], "--max-new-tokens needs a question"),
        (["--ask", "noise", "--ask-below", "1.5"], "0<=x<=1"),
        (["--ask", "noise", "--ask-below", "nan"], "it is not a number"),
        (["--ask", "noise", "--max-new-tokens", "0"], "1<=x<=2000"),
        (["--ask", "noise", "--max-new-tokens", "2001"], "1<=x<=2000"),
    ],
)
@pytest.mark.parametrize("command", ["score", "submit"])
def test_options_without_a_question_or_out_of_range_are_refused(
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


def test_ready_questions_can_be_asked(tmp_path: Path) -> None:
    assert question_files.parse_questions(list(BUILTIN_QUESTIONS), None) == tuple(BUILTIN_QUESTIONS.values())
    tables = (
        f"[[question]]\nname = {json.dumps(question.name)}\ntext = {json.dumps(question.text)}\n"
        + (f"choices = {json.dumps(question.choices)}\n" if question.choices else "")
        for question in BUILTIN_QUESTIONS.values()
    )
    assert of_file(tmp_path, "\n".join(tables)) == tuple(BUILTIN_QUESTIONS.values())
