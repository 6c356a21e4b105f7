"""Questions about photos: answered as the model README's own procedure answers them, from one look at each photo."""

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

from qsit.questions import BUILTIN_QUESTIONS, Answer, Question, accepted_replies, render_prompt
from qsit.rating import Score
from tests.support.paths import GOLDEN
from worker.inference import generation, shared_prefix
from worker.inference.prompts import Prompts
from worker.inference.tiles import Prepared
from worker.qsit import QSit

CHECKPOINT = GOLDEN / "checkpoint"
IMAGES = json.loads((GOLDEN / "golden.json").read_text())["images"]
QUESTIONS = list(IMAGES[0]["answers_token_ids"])
TOKENS = 12
"""So many tokens of each golden answer are known."""
CHOICES = Question("choices", "Is the lighting of this image sufficient?", ("yes", "no", "not at all"))


@pytest.fixture(scope="module")
def model() -> QSit:
    return QSit.load(str(CHECKPOINT))


@pytest.fixture(scope="module")
def prepared(model: QSit) -> list[Prepared]:
    return [model.prepare(picture(expected["image"])) for expected in IMAGES]


@pytest.fixture
def said(model: QSit, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of all that the model says, answer by answer, as they are turned into text."""
    ids: list[list[int]] = []
    text_of = Prompts.text_of

    def listened(prompts: Prompts, tokens: Sequence[int]) -> str:
        ids.append(list(tokens))
        return text_of(prompts, tokens)

    monkeypatch.setattr(Prompts, "text_of", listened)
    return ids


def picture(name: str) -> Image.Image:
    with Image.open(GOLDEN / "images" / name) as file:
        return file.convert("RGB")


def golden(image: int, question: str) -> list[int]:
    """The known tokens of an answer, up to its end."""
    tokens: list[int] = IMAGES[image]["answers_token_ids"][question]
    end = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    return tokens[: tokens.index(end)] if end in tokens else tokens


def assert_same_score(score: Score, image: int) -> None:
    assert math.isclose(score.value, IMAGES[image]["score"], rel_tol=0, abs_tol=1e-5)


@pytest.mark.parametrize("image", range(len(IMAGES)))
@pytest.mark.parametrize("question", QUESTIONS)
def test_one_photo_is_answered_as_published(
    model: QSit, prepared: list[Prepared], said: list[list[int]], image: int, question: str
) -> None:
    [(score, [answer])] = model.look([prepared[image]], [question], max_new_tokens=TOKENS)

    assert said == [golden(image, question)]
    assert answer.cut == (len(said[0]) == TOKENS)
    assert_same_score(score, image)


def test_a_mixed_batch_with_all_questions_is_answered_as_published(
    model: QSit, prepared: list[Prepared], said: list[list[int]]
) -> None:
    looks = model.look(prepared, QUESTIONS, max_new_tokens=TOKENS)

    assert said == [golden(image, question) for image in range(len(IMAGES)) for question in QUESTIONS]
    for image, (score, answers) in enumerate(looks):
        assert len(answers) == len(QUESTIONS)
        assert_same_score(score, image)


def test_other_questions_beside_them_change_no_answer(
    model: QSit, prepared: list[Prepared], said: list[list[int]]
) -> None:
    first, second = (Question("", text, max_new_tokens=TOKENS) for text in QUESTIONS)
    beside = [
        Question("", "Why?", max_new_tokens=3),
        first,
        CHOICES,
        Question("", "How? " * 100, max_new_tokens=7),
        second,
    ]

    looks = model.look([prepared[5], prepared[2]], beside)

    of_golden = [tokens for number, tokens in enumerate(said) if number % 4 in (1, 3)]
    assert of_golden == [golden(image, question) for image in (5, 2) for question in QUESTIONS]
    for image, (score, answers) in zip((5, 2), looks, strict=True):
        assert len(answers) == 5
        assert_same_score(score, image)


def test_the_score_is_that_of_scoring_to_the_last_bit(model: QSit, prepared: list[Prepared]) -> None:
    looks = model.look(prepared, QUESTIONS, max_new_tokens=2)

    assert [score for score, _ in looks] == model.score(prepared)


def test_more_branches_than_go_beside_each_other_are_answered_alike(
    model: QSit, prepared: list[Prepared], said: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.qsit.BRANCHES", 3)
    monkeypatch.setattr(shared_prefix, "QUERIES", 5)

    model.look(prepared, QUESTIONS, max_new_tokens=TOKENS)

    assert said == [golden(image, question) for image in range(len(IMAGES)) for question in QUESTIONS]


def test_only_what_is_asked_is_answered(model: QSit, prepared: list[Prepared], said: list[list[int]]) -> None:
    asked: dict[int, Sequence[int]] = {0: [], 1: [1], 2: [1, 0], 3: []}

    looks = model.look(prepared[:4], QUESTIONS, max_new_tokens=TOKENS, asks=lambda place, score: asked[place])

    assert said == [golden(1, QUESTIONS[1]), golden(2, QUESTIONS[1]), golden(2, QUESTIONS[0])]
    assert [len(answers) for _, answers in looks] == [0, 1, 2, 0]


def test_who_asks_knows_the_score(model: QSit, prepared: list[Prepared]) -> None:
    limit = sorted(expected["score"] for expected in IMAGES)[3]

    looks = model.look(
        prepared, QUESTIONS[:1], max_new_tokens=1, asks=lambda _, score: [0] if score.value < limit - 1e-4 else []
    )

    assert sum(len(answers) for _, answers in looks) == 3
    assert all((score.value < limit - 1e-4) == bool(answers) for score, answers in looks)


def test_no_images_and_no_questions_have_no_answers(model: QSit, prepared: list[Prepared]) -> None:
    assert model.look([], QUESTIONS) == []
    [(score, answers)] = model.look(prepared[2:3], [])
    assert answers == []
    assert_same_score(score, 2)


def test_rows_told_by_their_ends_are_answered_as_published(
    model: QSit, prepared: list[Prepared], said: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, but for its kernel: in its place, what torch's documentation says of varlen_attn."""

    def varlen_attn(
        queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, ends_q: torch.Tensor, ends_k: torch.Tensor,
        max_q: int, max_k: int, *, scale: float, enable_gqa: bool, return_aux: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        assert ends_q.dtype == ends_k.dtype == torch.int32
        assert (ends_q[0], ends_q[-1], ends_k[0], ends_k[-1]) == (0, len(queries), 0, len(keys))
        assert (int(ends_q.diff().max()), int(ends_k.diff().max())) == (max_q, max_k)
        assert enable_gqa
        assert return_aux.lse
        groups = queries.shape[1] // keys.shape[1]
        attended, sums = torch.empty_like(queries), torch.empty(queries.shape[1], len(queries))
        for row in range(len(ends_q) - 1):
            q = queries[ends_q[row] : ends_q[row + 1]]
            k, v = (part[ends_k[row] : ends_k[row + 1]].repeat_interleave(groups, 1) for part in (keys, values))
            weights = torch.einsum("qhd,khd->hqk", q, k) * scale
            sums[:, ends_q[row] : ends_q[row + 1]] = weights.logsumexp(-1)
            attended[ends_q[row] : ends_q[row + 1]] = torch.einsum("hqk,khd->qhd", weights.softmax(-1), v)
        return attended, sums

    monkeypatch.setattr(shared_prefix, "varlen_attn", varlen_attn)
    monkeypatch.setattr(shared_prefix, "is_flash", lambda queries: True)

    model.look(prepared[:5], QUESTIONS, max_new_tokens=TOKENS)

    assert said == [golden(image, question) for image in range(5) for question in QUESTIONS]


def test_an_answer_that_ends_is_not_cut_and_one_that_does_not_is(model: QSit, prepared: list[Prepared]) -> None:
    """The golden model never ends by itself, so a token that it says is made the end."""
    [(_, [whole])] = model.look([prepared[0]], QUESTIONS[:1], max_new_tokens=TOKENS)
    tokens = golden(0, QUESTIONS[0])
    prompts = model._prompts
    other = next(token for token in tokens if token != tokens[0])
    model._prompts = Prompts(CHECKPOINT, prompts._tokenizer, prompts._image_token_id, (other,))
    try:
        [(_, [ended])] = model.look([prepared[0]], QUESTIONS[:1], max_new_tokens=TOKENS)
        model._prompts.ends = (tokens[0],)
        [(_, [empty])] = model.look([prepared[0]], QUESTIONS[:1], max_new_tokens=TOKENS)
    finally:
        model._prompts = prompts

    assert whole.cut
    assert ended == Answer(prompts.text_of(tokens[: tokens.index(other)]), cut=False)
    assert empty == Answer("", cut=False)


@pytest.mark.parametrize("text", ["the assistant said: assistant", "图像很清晰。", "  white space \n"])
def test_whatever_the_model_says_is_kept_as_it_is(model: QSit, text: str) -> None:
    tokens = model._prompts.of(text)

    assert model._prompts.text_of(tokens) == text.strip()


def test_choices_have_the_likelihoods_that_transformers_gives_them(model: QSit, prepared: list[Prepared]) -> None:
    peer: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    prompts, image = model._prompts, prepared[2]
    end = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    before, after = prompts.ids(render_prompt(CHOICES))
    with torch.inference_mode():
        features = torch.cat([part for row in model._rows(model.upload([image])) for part in row[1:3]])
    shares = []
    for choice in range(len(CHOICES.choices)):
        share = 0.0
        for form in accepted_replies(CHOICES, choice):
            reply = [*prompts.of(form), end]
            embed = peer.get_input_embeddings()
            row = torch.cat([embed(torch.tensor(before)), features, embed(torch.tensor(after + reply))])
            with torch.inference_mode():
                logits = peer.lm_head(peer.model.language_model(inputs_embeds=row[None]).last_hidden_state[0])
            places = range(len(row) - len(reply) - 1, len(row) - 1)
            chances = logits.double().log_softmax(-1)
            share += math.exp(sum(float(chances[place, token]) for place, token in zip(places, reply, strict=True)))
        shares.append(share)

    [_, (_, [answer])] = model.look([prepared[0], image], [CHOICES])

    assert answer.probabilities == pytest.approx([share / sum(shares) for share in shares], abs=1e-5)
    assert answer.text == CHOICES.choices[shares.index(max(shares))]
    assert not answer.cut
    assert math.isclose(sum(answer.probabilities), 1, abs_tol=1e-9)


def test_choices_without_a_finite_likelihood_are_an_error() -> None:
    with pytest.raises(ValueError, match="no finite answer"):
        generation._best(CHOICES, [[-1.0, -2.0], [math.nan], [-3.0]])


def test_the_ready_questions_are_answered(model: QSit, prepared: list[Prepared]) -> None:
    [(_, answers)] = model.look(prepared[2:3], [*BUILTIN_QUESTIONS.values()])

    for question, answer in zip(BUILTIN_QUESTIONS.values(), answers, strict=True):
        assert not question.choices or answer.text in question.choices
        assert len(answer.probabilities) == len(question.choices)


def test_an_end_may_be_several_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [495, 493]}))

    assert QSit.load(str(folder))._prompts.ends == (495, 493)


def test_a_model_that_says_nothing_finite_fails_with_the_rating(tmp_path: Path, prepared: list[Prepared]) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.norm.weight"].fill_(math.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="no finite rating"):
        QSit.load(str(folder)).look(prepared[2:3], QUESTIONS)


def test_a_question_may_not_hold_an_image(model: QSit, prepared: list[Prepared]) -> None:
    with pytest.raises(Exception, match="2 image tokens"):
        model.look(prepared[2:3], ["What is <image>?"])
