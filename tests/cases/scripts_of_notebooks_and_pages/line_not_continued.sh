swift sft \
  --model builtin/SmolLM2-135M-Instruct --train_type lora --dataset ok.jsonl --output_dir out
  --lora_rank 4
