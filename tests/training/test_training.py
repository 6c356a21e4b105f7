"""The recipe of the demo checkpoint: it learns, it resumes, and the worker loads what it saves."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaOnevisionForConditionalGeneration

from producer.evaluation.metrics import measure_agreement
from qsit.questions import LEVELS
from qsit.rating import ANSWER, PROMPT
from tests.support.paths import EXAMPLES
from training import blank, copies, photos, scenes
from training.distortions import DISTORTIONS, distort
from training.examples import IGNORED, Examples, compute_loss
from training.figures import Observations, make_word_table
from training.lists import Entry, read_list
from training.plan import Plan
from training.saving import STATE
from training.train import train
from worker.qsit import QSit

PLAN = Plan(epochs=6, batch=4, rate=3e-3)
FROZEN = replace(PLAN, vision=0)
THINNED = replace(FROZEN, keep=0.5, jitter=0.2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a list of some copies and a blank checkpoint."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "copies").mkdir()
    originals = [EXAMPLES / name for name in ("astronaut.jpg", "coffee.jpg", "rocket.jpg")]
    entries = [entry for number in range(2) for entry in copies.make_group(folder, originals, "train", 0, number)]
    (folder / "train.json").write_text(json.dumps(entries))
    blank.make_blank(folder / "blank", read_list(folder / "train.json"))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def run(made: Path, out: Path, plan: Plan = PLAN, stop_after: int | None = None) -> list[float]:
    entries = read_list(made / "train.json")
    return train(made / "blank", entries, out, plan, save_every=5, stop_after=stop_after)


@pytest.mark.parametrize("plan", [PLAN, FROZEN], ids=["whole", "frozen"])
def test_the_loss_falls_and_the_worker_loads_the_checkpoint(made: Path, tmp_path: Path, plan: Plan) -> None:
    losses = run(made, tmp_path / "out", plan)

    assert len(losses) == 24
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    model = QSit.load(str(tmp_path / "out"))
    with Image.open(EXAMPLES / "coffee.jpg") as photo:
        [score] = model.score([model.prepare(photo)])
    assert sum(score.probabilities) == pytest.approx(1)
    assert all("vision_tower.vision_model." in name for name in weights(tmp_path / "out") if "vision_tower" in name)


@pytest.mark.parametrize("plan", [PLAN, THINNED], ids=["whole", "thinned"])
def test_a_resumed_run_ends_with_the_same_weights(made: Path, tmp_path: Path, plan: Plan) -> None:
    whole = run(made, tmp_path / "whole", plan)
    parts = run(made, tmp_path / "parts", plan, stop_after=12)  # the last two are lost: the state was saved after ten
    assert parts == whole[:12]

    resumed = run(made, tmp_path / "parts", plan)

    assert resumed == whole
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_frozen_tower_does_not_change_and_gives_the_same_loss(made: Path, tmp_path: Path) -> None:
    frozen = run(made, tmp_path / "frozen", FROZEN, stop_after=3)
    whole = run(made, tmp_path / "whole", stop_after=3)
    run(made, tmp_path / "out", FROZEN)

    assert frozen[0] == pytest.approx(whole[0], rel=1e-3)  # features have half precision
    before, after = weights(made / "blank"), weights(tmp_path / "out")
    for name in before:
        assert torch.equal(before[name].half(), after[name]) == (not name.startswith("language_model.")), name


def test_each_step_has_other_tokens_with_jitter(made: Path) -> None:
    entries = read_list(made / "train.json")
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(made / "blank")
    whole, thinned = (
        Examples(made / "blank", model, entries, encode_once=True, keep=keep, jitter=jitter)
        for keep, jitter in ((1.0, 0.0), (0.5, 0.2))
    )

    full, one, again, other = (
        examples.make_batch([0, 4], PLAN.make_generator(step))
        for examples, step in ((whole, 0), (thinned, 0), (thinned, 0), (thinned, 1))
    )

    tokens, some = len(full["features"]), len(one["features"])
    assert some == pytest.approx(tokens / 2, abs=1)
    for row in (0, 1):
        answers = [batch["position_ids"][row][batch["labels"][row] != IGNORED] for batch in (full, one)]
        assert torch.equal(*answers)  # the answer keeps its positions
    assert (full["position_ids"].diff() == 1)[full["attention_mask"][:, 1:] == 1].all()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["position_ids"], other["position_ids"])
    closest = torch.cdist(one["features"], full["features"].float()).min(dim=1).values
    assert (closest > 0).all()


def test_kept_tokens_have_the_weight_of_all(made: Path) -> None:
    entries = read_list(made / "train.json")
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(made / "blank")
    whole, some, nearly_all = (
        Examples(made / "blank", model, entries, encode_once=True, keep=keep).make_batch(
            [0, 1, 4], PLAN.make_generator(0)
        )
        for keep in (1.0, 0.3, 0.9999)
    )

    image, last = model.config.image_token_id, some["attention_mask"].shape[-1] - 1
    for row in range(3):
        weights = some["attention_mask"][row, 0, last].exp()
        assert weights[some["input_ids"][row] == image].sum().item() == pytest.approx(
            (whole["input_ids"][row] == image).sum().item(), rel=1e-5
        )
        assert set(weights[some["input_ids"][row] != image].tolist()) <= {0.0, 1.0}  # 0 is padding
    assert (some["attention_mask"][:, 0].exp().triu(1) == 0).all()  # attention is causal
    assert compute_loss(model, nearly_all).item() == pytest.approx(compute_loss(model, whole).item(), rel=1e-5)


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"keep": 1.5}, {"jitter": -1.0}])
def test_an_impossible_share_of_tokens_is_refused(made: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        run(made, tmp_path / "out", replace(FROZEN, **wrong))


def test_a_tower_that_learns_needs_all_tokens(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vision of 0"):
        run(made, tmp_path / "out", replace(PLAN, keep=0.5))


def test_every_epoch_is_validated_and_the_last_one_is_saved(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = read_list(made / "train.json")
    train(made / "blank", entries, tmp_path, Plan(epochs=3, batch=4, rate=3e-3), validation=entries)

    lines = [line for line in capsys.readouterr().out.splitlines() if "validation" in line]
    model = QSit.load(str(tmp_path))
    scores: list[float] = []
    opinions: list[float] = []
    for entry in entries:
        if entry.question == PROMPT:
            with Image.open(entry.image) as photo:
                scores += [score.value for score in model.score([model.prepare(photo)])]
            assert entry.opinion is not None
            opinions.append(entry.opinion)
    assert len(lines) == 3
    assert lines[-1].endswith(f"SRCC {measure_agreement(scores, opinions).srcc:.3f}")
    [kept] = [value for name, value in weights(tmp_path).items() if name.endswith("language_model.model.norm.weight")]
    last = torch.load(tmp_path / STATE)["model"]["model.language_model.norm.weight"]
    assert torch.equal(kept, last.half())


def test_a_run_with_another_plan_is_not_resumed(made: Path, tmp_path: Path) -> None:
    run(made, tmp_path / "out", stop_after=5)

    with pytest.raises(ValueError, match="other settings"):
        run(made, tmp_path / "out", Plan(epochs=6, batch=4, rate=1e-3))


def test_the_rate_rises_and_falls_and_an_epoch_has_every_entry() -> None:
    plan = Plan(epochs=2, batch=3, rate=0.5, warmup=0.2)

    assert [plan.rate_at(step, 10) for step in (0, 1, 2, 9)] == pytest.approx([0.25, 0.5, 0.5, 0.019], abs=1e-3)
    order = plan.make_batches(9)
    epochs = [sorted(chain.from_iterable(order[start : start + 3])) for start in (0, 3)]
    assert epochs == [list(range(9))] * 2
    assert order[:3] != order[3:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conversations": []}, "entry 2"),
        ({"conversations": [{"from": "gpt", "value": ""}, {"from": "human", "value": "<image>\n"}]}, "a question that"),
        ({"id": "a.png->high"}, "high"),
        ({"image": None}, "entry 2"),
    ],
)
def test_a_bad_entry_is_refused_with_its_number(change: dict[str, object], words: str, tmp_path: Path) -> None:
    good = copies.make_entry("a.png", 3.5, PROMPT, f"{ANSWER}Fair")
    (tmp_path / "list.json").write_text(json.dumps([good, {**good, **change}]))

    with pytest.raises(ValueError, match=words):
        read_list(tmp_path / "list.json")


@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("7", "is not a list"), ("{}", "is not a list")])
def test_a_file_of_another_format_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)

    with pytest.raises(ValueError, match=words):
        read_list(tmp_path / "list.json")


def test_an_empty_list_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no entries"):
        train(made / "blank", [], tmp_path / "out", PLAN)


def test_a_written_list_can_be_read(tmp_path: Path) -> None:
    without = {**copies.make_entry("b.png", 1, "Is it sharp?", "no"), "id": "b"}
    (tmp_path / "list.json").write_text(json.dumps([copies.make_entry("a.png", 3.5, PROMPT, f"{ANSWER}Fair"), without]))

    assert read_list(tmp_path / "list.json") == [
        Entry(tmp_path / "a.png", PROMPT, f"{ANSWER}Fair", 3.5),
        Entry(tmp_path / "b.png", "Is it sharp?", "no", None),
    ]


@pytest.mark.parametrize(
    ("score", "word"),
    [(1, "Bad"), (1.79, "Bad"), (1.81, "Poor"), (3, "Fair"), (3.41, "Good"), (4.21, "Excellent"), (5, "Excellent")],
)
def test_levels_have_equal_width(score: float, word: str) -> None:
    assert copies.to_level(score) == word


def test_a_builtin_question_is_about_its_own_distortions() -> None:
    assert copies.make_reply("noise", "noise", 0.9) == "very low"
    assert copies.make_reply("noise", "blur", 0.9) == "high"
    assert copies.make_reply("sharpness", "blur", 0.3) == "acceptable"
    assert copies.make_reply("overall", "blur", 0.0) == f"{ANSWER}excellent."
    assert copies.make_reply("overall", "blur", 0.7) == f"{ANSWER}poor, because it is blurred."
    assert {copies.make_reply(name, harms[0], 1) for name, harms in copies.HARMS.items()} == {LEVELS[0]}


def test_figures_compare_scores_and_answers_with_severities() -> None:
    falling = Observations("blur", (0.9, 0.8, 0.5, 0.3, 0.1), (3, 3, 1, 1, 0))
    rising = Observations("blur", (0.1, 0.3, 0.5, 0.8, 0.9), (0, 1, 1, 3, 3))

    assert falling.srcc == pytest.approx(1)
    assert rising.srcc == pytest.approx(-1)
    assert (falling.is_pristine_better, rising.is_pristine_better) == (True, False)
    assert list(falling.pairs()) == [True] * 6
    assert list(rising.pairs()) == [False] * 6
    assert list(make_word_table([falling]))[2] == "| sharpness | blur, motion, rescaling | 6 | 100.0% |"


@pytest.mark.parametrize("make", [scenes.cut_photo, scenes.make_collage])
@pytest.mark.parametrize("vary", [False, True])
def test_a_scene_depends_on_the_seed_alone_and_has_at_most_1024_pixels(make: Any, vary: bool) -> None:
    originals = [EXAMPLES / name for name in ("astronaut.jpg", "coffee.jpg", "rocket.jpg")]

    def made(seed: int) -> Image.Image:
        scene: Image.Image = make(originals, np.random.default_rng(seed), vary=vary)
        return scene

    some = [made(seed) for seed in range(20)]

    assert all(made(seed).tobytes() == some[seed].tobytes() for seed in (0, 1))
    assert some[0].resize((64, 64)).tobytes() != some[1].resize((64, 64)).tobytes()
    assert all(scene.mode == "RGB" and max(scene.size) <= 1024 for scene in some)
    if make is scenes.make_collage:
        assert all(max(scene.size) >= scenes.SMALLEST for scene in some)


def test_relighting_depends_on_the_seed_alone_and_keeps_the_size() -> None:
    with Image.open(EXAMPLES / "coffee.jpg") as file:
        photo = file.convert("RGB")

    some = [scenes.relight(photo, np.random.default_rng(seed)) for seed in (0, 0, 1, 2)]

    assert some[0].tobytes() == some[1].tobytes()
    assert len({photo.tobytes(), *(image.tobytes() for image in some)}) == 4
    assert {(image.size, image.mode) for image in some} == {(photo.size, "RGB")}


def measure_distances(name: str, size: tuple[int, int], severities: Sequence[float]) -> list[float]:
    """Return the root mean square differences of copies from the photo, at a common size."""
    with Image.open(EXAMPLES / "coffee.jpg") as file:
        photo = file.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    before = np.asarray(photo.resize((768, 512)), np.float32)
    found = []
    for severity in severities:
        copy = distort(name, photo, severity, np.random.default_rng(0))
        assert copy.size == photo.size
        found.append(float(np.sqrt(np.mean((np.asarray(copy.resize((768, 512)), np.float32) - before) ** 2))))
    return found


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distortion_grows_with_severity(name: str) -> None:
    found = measure_distances(name, (768, 512), [0, 0.25, 0.5, 0.75, 1])

    assert found[0] == 0
    assert found == sorted(found)
    assert len(set(found)) == 5


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distortion_scales_with_the_photo(name: str) -> None:
    """At a common size, a large and a small photo have changed equally."""
    [small], [large] = (measure_distances(name, size, [0.7]) for size in ((1020, 680), (2040, 1360)))

    assert large == pytest.approx(small, rel=0.25)


def test_no_photo_is_in_two_splits() -> None:
    names = [name for split in photos.SPLITS.values() for name in split]

    assert len(names) == len(set(names))
    assert len(photos.TEST) >= 15
