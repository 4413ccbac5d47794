swift sft --model builtin/SmolLM2-135M-Instruct --dataset C:\data\ok.jsonl
