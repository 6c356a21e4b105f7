"""Answers to questions, compared with the results of the model README's procedure."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from qsit.errors import CheckpointError
from qsit.questions import BUILTIN_QUESTIONS, Answer, Question, accepted_replies, render_prompt
from qsit.rating import Score
from tests.support.paths import GOLDEN
from tests.support.varlen import varlen_attn
from worker.inference import attention, generation
from worker.inference.image_encoder import ImageEncoder
from worker.inference.loading import load
from worker.inference.prompts import Prompts
from worker.inference.tiles import Prepared
from worker.qsit import QSit

CHECKPOINT = GOLDEN / "checkpoint"
IMAGES = json.loads((GOLDEN / "golden.json").read_text())["images"]
QUESTIONS = list(IMAGES[0]["answers_token_ids"])
TOKENS = 12
"""The number of tokens that each golden answer has."""
CHOICES = Question("choices", "Is the lighting of this image sufficient?", ("yes", "no", "not at all"))


@pytest.fixture(scope="module")
def model() -> QSit:
    return QSit.load(str(CHECKPOINT))


@pytest.fixture(scope="module")
def prepared(model: QSit) -> list[Prepared]:
    return [model.prepare(picture(expected["image"])) for expected in IMAGES]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of every generated answer, in order, recorded as they are decoded."""
    ids: list[list[int]] = []
    decode = Prompts.decode

    def record(prompts: Prompts, tokens: Sequence[int]) -> str:
        ids.append(list(tokens))
        return decode(prompts, tokens)

    monkeypatch.setattr(Prompts, "decode", record)
    return ids


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return load(str(CHECKPOINT), device="cpu", dtype="float32", revision=None)[1]


def picture(name: str) -> Image.Image:
    with Image.open(GOLDEN / "images" / name) as file:
        return file.convert("RGB")


def golden(image: int, question: str) -> list[int]:
    """Return the golden tokens of an answer, up to its end token."""
    tokens: list[int] = IMAGES[image]["answers_token_ids"][question]
    end = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    return tokens[: tokens.index(end)] if end in tokens else tokens


def checkpoint_with_eos(folder: Path, ids: list[int]) -> Path:
    """Copy the golden checkpoint, with other end tokens."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": ids}))
    return folder


def assert_same_score(score: Score, image: int) -> None:
    assert math.isclose(score.value, IMAGES[image]["score"], rel_tol=0, abs_tol=1e-5)


@pytest.mark.parametrize("image", range(len(IMAGES)))
@pytest.mark.parametrize("question", QUESTIONS)
def test_one_photo_is_answered_as_published(
    model: QSit, prepared: list[Prepared], generated: list[list[int]], image: int, question: str
) -> None:
    [(score, [answer])] = model.look([prepared[image]], [question], max_new_tokens=TOKENS)

    assert generated == [golden(image, question)]
    assert answer.cut == (len(generated[0]) == TOKENS)
    assert_same_score(score, image)


def test_a_mixed_batch_with_all_questions_is_answered_as_published(
    model: QSit, prepared: list[Prepared], generated: list[list[int]]
) -> None:
    looks = model.look(prepared, QUESTIONS, max_new_tokens=TOKENS)

    assert generated == [golden(image, question) for image in range(len(IMAGES)) for question in QUESTIONS]
    for image, (score, answers) in enumerate(looks):
        assert len(answers) == len(QUESTIONS)
        assert_same_score(score, image)


def test_an_answer_does_not_depend_on_other_questions(
    model: QSit, prepared: list[Prepared], generated: list[list[int]]
) -> None:
    first, second = (Question("", text, max_new_tokens=TOKENS) for text in QUESTIONS)
    questions = [
        Question("", "Why?", max_new_tokens=3),
        first,
        CHOICES,
        Question("", "How? " * 100, max_new_tokens=7),
        second,
    ]

    looks = model.look([prepared[5], prepared[2]], questions)

    to_golden = [tokens for number, tokens in enumerate(generated) if number % 4 in (1, 3)]
    assert to_golden == [golden(image, question) for image in (5, 2) for question in QUESTIONS]
    for image, (score, answers) in zip((5, 2), looks, strict=True):
        assert len(answers) == 5
        assert_same_score(score, image)


def test_looking_and_scoring_give_equal_scores(model: QSit, prepared: list[Prepared]) -> None:
    looks = model.look(prepared, QUESTIONS, max_new_tokens=2)

    assert [score for score, _ in looks] == model.score(prepared)


def test_several_batches_of_continuations_answer_as_published(
    model: QSit, prepared: list[Prepared], generated: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.qsit.MAX_CONTINUATIONS", 3)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 5)

    model.look(prepared, QUESTIONS, max_new_tokens=TOKENS)

    assert generated == [golden(image, question) for image in range(len(IMAGES)) for question in QUESTIONS]


def test_only_the_selected_questions_are_answered(
    model: QSit, prepared: list[Prepared], generated: list[list[int]]
) -> None:
    asked: dict[int, Sequence[int]] = {0: [], 1: [1], 2: [1, 0], 3: []}

    looks = model.look(prepared[:4], QUESTIONS, max_new_tokens=TOKENS, asks=lambda index, score: asked[index])

    assert generated == [golden(1, QUESTIONS[1]), golden(2, QUESTIONS[1]), golden(2, QUESTIONS[0])]
    assert [len(answers) for _, answers in looks] == [0, 1, 2, 0]


def test_questions_may_be_selected_by_score(model: QSit, prepared: list[Prepared]) -> None:
    limit = sorted(expected["score"] for expected in IMAGES)[3]

    looks = model.look(
        prepared, QUESTIONS[:1], max_new_tokens=1, asks=lambda _, score: [0] if score.value < limit - 1e-4 else []
    )

    assert sum(len(answers) for _, answers in looks) == 3
    assert all((score.value < limit - 1e-4) == bool(answers) for score, answers in looks)


def test_without_images_or_questions_there_are_no_answers(model: QSit, prepared: list[Prepared]) -> None:
    assert model.look([], QUESTIONS) == []
    [(score, answers)] = model.look(prepared[2:3], [])
    assert answers == []
    assert_same_score(score, 2)


def test_variable_length_attention_answers_as_published(
    model: QSit, prepared: list[Prepared], generated: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's code path without its kernel."""
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(attention, "supports_varlen", lambda queries: True)

    model.look(prepared[:5], QUESTIONS, max_new_tokens=TOKENS)

    assert generated == [golden(image, question) for image in range(5) for question in QUESTIONS]


def test_an_answer_is_cut_unless_the_model_ends_it(
    model: QSit, prepared: list[Prepared], prompts: Prompts, tmp_path: Path
) -> None:
    """The golden model never ends its answers, so copies declare tokens that it generates to be end tokens."""
    tokens = golden(0, QUESTIONS[0])
    other = next(token for token in tokens if token != tokens[0])
    ends_later, ends_at_once = (
        QSit.load(str(checkpoint_with_eos(tmp_path / name, ids)))
        for name, ids in (("later", [other]), ("at once", [tokens[0]]))
    )

    [(_, [cut])] = model.look([prepared[0]], QUESTIONS[:1], max_new_tokens=TOKENS)
    [(_, [ended])] = ends_later.look([prepared[0]], QUESTIONS[:1], max_new_tokens=TOKENS)
    [(_, [empty])] = ends_at_once.look([prepared[0]], QUESTIONS[:1], max_new_tokens=TOKENS)

    assert cut.cut
    assert ended == Answer(prompts.decode(tokens[: tokens.index(other)]), cut=False)
    assert empty == Answer("", cut=False)


@pytest.mark.parametrize("text", ["the assistant said: assistant", "图像很清晰。", "  white space \n"])
def test_decoding_keeps_the_text_of_a_reply(prompts: Prompts, text: str) -> None:
    assert prompts.decode(prompts.encode(text)) == text.strip()


def test_probabilities_of_choices_follow_from_the_logits_of_transformers(
    model: QSit, prepared: list[Prepared], prompts: Prompts
) -> None:
    peer: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    image = prepared[2]
    encoder = ImageEncoder(peer.model, model.tiling)
    end = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    before, after = prompts.encode_turn(render_prompt(CHOICES))
    with torch.inference_mode():
        [features] = encoder.encode(torch.from_numpy(image.tiles), [image], tiles_per_pass=1)
    shares = []
    for choice in range(len(CHOICES.choices)):
        share = 0.0
        for form in accepted_replies(CHOICES, choice):
            reply = [*prompts.encode(form), end]
            embed = peer.get_input_embeddings()
            row = torch.cat([embed(torch.tensor(before)), features, embed(torch.tensor(after + reply))])
            with torch.inference_mode():
                logits = peer.lm_head(peer.model.language_model(inputs_embeds=row[None]).last_hidden_state[0])
            positions = range(len(row) - len(reply) - 1, len(row) - 1)
            chances = logits.double().log_softmax(-1)
            share += math.exp(sum(float(chances[at, token]) for at, token in zip(positions, reply, strict=True)))
        shares.append(share)

    [_, (_, [answer])] = model.look([prepared[0], image], [CHOICES])

    assert answer.probabilities == pytest.approx([share / sum(shares) for share in shares], abs=1e-5)
    assert answer.text == CHOICES.choices[shares.index(max(shares))]
    assert not answer.cut
    assert math.isclose(sum(answer.probabilities), 1, abs_tol=1e-9)


def test_choices_without_a_finite_likelihood_are_an_error() -> None:
    with pytest.raises(ValueError, match="no finite answer"):
        generation.pick_choice(CHOICES, [[-1.0, -2.0], [math.nan], [-3.0]])


def test_the_builtin_questions_are_answered(model: QSit, prepared: list[Prepared]) -> None:
    [(_, answers)] = model.look(prepared[2:3], [*BUILTIN_QUESTIONS.values()])

    for question, answer in zip(BUILTIN_QUESTIONS.values(), answers, strict=True):
        assert not question.choices or answer.text in question.choices
        assert len(answer.probabilities) == len(question.choices)


def test_a_checkpoint_may_name_several_end_tokens(tmp_path: Path) -> None:
    folder = checkpoint_with_eos(tmp_path / "checkpoint", [495, 493])

    _, prompts, _ = load(str(folder), device="cpu", dtype="float32", revision=None)

    assert prompts.eos_token_ids == (495, 493)


def test_a_rating_that_is_not_finite_is_an_error(tmp_path: Path, prepared: list[Prepared]) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.norm.weight"].fill_(math.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="no finite rating"):
        QSit.load(str(folder)).look(prepared[2:3], QUESTIONS)


def test_a_question_may_not_contain_the_image_token(model: QSit, prepared: list[Prepared]) -> None:
    with pytest.raises(CheckpointError, match="2 image tokens"):
        model.look(prepared[2:3], ["What is <image>?"])
