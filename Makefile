# Everything a newcomer types. Each target sets itself up: .venv is made from requirements.lock when it is needed.
.DEFAULT_GOAL := help
.PHONY: help install demo up down test check audit bench clean

BIN := .venv/bin

help: ## what there is to type
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

install: ## set up .venv (every other target does it by itself)
	@./bootstrap.sh

demo: install ## grow, train, kill, resume and deliver a model, in minutes (FRESH=1 trains anew)
	@$(BIN)/fusion-local demo $(if $(FRESH),--fresh)

up: install ## run everything until Ctrl-C; data stays in .fusion
	@$(BIN)/fusion-local up

down: install ## end a running stack, or what a crashed one left behind
	@$(BIN)/fusion-local down

test: check ## lint, types, import contracts and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: install ## lint, format, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: install ## known vulnerabilities of what requirements.lock pins
	@$(BIN)/python bench/audit.py

bench: install ## the measurements, each printing a ratio
	$(BIN)/python bench/pickup.py
	$(BIN)/python bench/dataset_memory.py
	$(BIN)/python bench/api.py
	$(BIN)/python bench/control_plane.py
	$(BIN)/python bench/quality.py

clean: ## forget .venv and caches; .fusion and its data stay
	rm -rf .venv .bootstrap.lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
