$env:CUDA_VISIBLE_DEVICES=0
swift sft `
  --model builtin/SmolLM2-135M-Instruct `
  --dataset ok.jsonl
