llamafactory-cli train examples/lora.yaml
