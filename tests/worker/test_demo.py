"""The demo model: its size, its shape, and answers that the eye can check."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import qsit.demo
from qsit.questions import BUILTIN_QUESTIONS, LEVELS
from tests.support.paths import EXAMPLES, GOLDEN
from training.copies import HARMS
from training.distortions import distort
from worker.qsit import QSit

DEMO = Path(qsit.demo.__file__).parent
CHECKPOINT = GOLDEN / "checkpoint"


@pytest.fixture(scope="module")
def model() -> QSit:
    return QSit.load("demo")


def photo(name: str) -> Image.Image:
    with Image.open(EXAMPLES / name) as opened:
        return opened.convert("RGB")


def test_it_has_under_five_megabytes_and_the_published_weight_names() -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir() if file.is_file()) < 5_000_000
    with (
        safe_open(DEMO / "model.safetensors", "pt") as demo,
        safe_open(CHECKPOINT / "model.safetensors", "pt") as golden,
    ):
        assert set(demo.keys()) == set(golden.keys())
    assert {file.name for file in CHECKPOINT.iterdir()} <= {file.name for file in DEMO.iterdir()}


def test_its_sizes_and_tokens_differ_from_the_golden_checkpoint(model: QSit) -> None:
    demo, golden = (json.loads((folder / "config.json").read_text()) for folder in (DEMO, CHECKPOINT))

    assert model.tiling.size == demo["vision_config"]["image_size"] != golden["vision_config"]["image_size"]
    assert demo["image_token_index"] != golden["image_token_index"]
    assert demo["text_config"]["vocab_size"] != golden["text_config"]["vocab_size"]
    assert demo["text_config"]["rope_theta"] == golden["text_config"]["rope_theta"]


@pytest.mark.parametrize("name", [name for name in BUILTIN_QUESTIONS if BUILTIN_QUESTIONS[name].choices])
def test_its_reply_to_a_builtin_question_is_one_of_the_choices(model: QSit, name: str) -> None:
    """Both when the choices are scored and when the reply is generated."""
    [(_, [chosen])] = model.look([model.prepare(photo("cat.jpg"))], [BUILTIN_QUESTIONS[name]])
    question = "\n".join(
        (BUILTIN_QUESTIONS[name].text, *(f"{'ABCD'[index]}. {level}" for index, level in enumerate(LEVELS)))
    )
    [(_, [generated])] = model.look([model.prepare(photo("cat.jpg"))], [question])

    assert chosen.text in LEVELS
    assert generated.text in LEVELS
    assert not generated.cut


@pytest.mark.parametrize("name", ["astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg"])
@pytest.mark.parametrize("question", ["sharpness", "noise", "exposure"])
def test_a_much_worse_copy_gets_a_worse_level(model: QSit, question: str, name: str) -> None:
    worse = distort(HARMS[question][0], photo(name), 0.9, np.random.default_rng(0))

    looks = model.look([model.prepare(photo(name)), model.prepare(worse)], [BUILTIN_QUESTIONS[question]])

    clean, bad = (LEVELS.index(answer.text) for _, [answer] in looks)
    assert bad < clean


def test_it_names_the_defect(model: QSit) -> None:
    [(_, [answer])] = model.look([model.prepare(photo("rocket_underexposed.jpg"))], [BUILTIN_QUESTIONS["overall"]])

    assert answer.text.startswith("The quality of this image is ")
    assert "too dark" in answer.text
