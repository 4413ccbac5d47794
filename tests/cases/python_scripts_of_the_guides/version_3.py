import os

os.environ["CUDA_VISIBLE_DEVICES"] = "0"

from swift.llm import TrainArguments, sft_main

output_dir = "out"
lora_rank = 4

if __name__ == "__main__":
    sft_main(
        TrainArguments(
            model="builtin/SmolLM2-135M-Instruct",
            train_type="lora",
            dataset=["ok.jsonl"],
            lora_rank=lora_rank,
            max_length=get_length(),
            output_dir=output_dir,
        )
    )
