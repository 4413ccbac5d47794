import os

os.environ["CUDA_VISIBLE_DEVICES"] = "0"
import torch
from swift.llm import (
    DatasetName,
    InferArguments,
    ModelType,
    SftArguments,
    infer_main,
    sft_main,
    app_ui_main,
    merge_lora,
)

model_type = ModelType.qwen_7b_chat
sft_args = SftArguments(
    model_type=model_type,
    train_dataset_sample=2000,
    dataset=[DatasetName.blossom_math_zh],
    output_dir="output",
)
result = sft_main(sft_args)
best_model_checkpoint = result["best_model_checkpoint"]
infer_args = InferArguments(
    ckpt_dir=best_model_checkpoint, load_args_from_ckpt_dir=True, show_dataset_sample=10
)
result = infer_main(infer_args)
