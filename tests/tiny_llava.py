"""A LLaVA of random weights, small enough to train on a CPU in seconds, and pictures to train it on.

    python tests/tiny_llava.py FOLDER     writes FOLDER/model, FOLDER/images and FOLDER/train.jsonl

It needs no torchvision: CLIP's image processor works on PIL images. ms-swift knows it as model_type ``llava1_5_hf``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle")
SIDE = 56  # pixels


def build(folder: Path) -> None:
    """Write the model, eight pictures and a question about each."""
    rows = draw(folder)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [message["content"] for row in rows for message in row["messages"]]
    save_model(folder / "model", [*words, "USER: ASSISTANT: system"] * 4)


def draw(folder: Path) -> list[dict[str, object]]:
    from PIL import Image, ImageDraw

    (folder / "images").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            image = Image.new("RGB", (SIDE, SIDE), "white")
            pen = ImageDraw.Draw(image)
            (pen.rectangle if shape == "square" else pen.ellipse)([10, 10, 46, 46], fill=rgb)
            path = folder / "images" / f"{colour}_{shape}.png"
            image.save(path)
            question = {"role": "user", "content": "<image>What is in the picture?"}
            answer = {"role": "assistant", "content": f"A {colour} {shape}."}
            rows.append({"messages": [question, answer], "images": [str(path)]})
    return rows


def save_model(path: Path, texts: list[str]) -> None:
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=14, projection_dim=64),
        text_config=LlamaConfig(
            **sizes, **special, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=2048
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).to(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    half = [0.5] * 3
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "resample": 3,
        **dict.fromkeys(
            ("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True
        ),
        "crop_size": {"height": SIDE, "width": SIDE},
        "size": {"shortest_edge": SIDE},
        "image_mean": half,
        "image_std": half,
    }
    processor = {"processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": 14}
    processor |= {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    (path / "preprocessor_config.json").write_text(json.dumps(images))
    (path / "processor_config.json").write_text(json.dumps(processor))


def train_tokenizer(texts: list[str]):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=2048,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute())
