# Each target is readable by hand and prints a summary line last. See README.md.
SHELL := /bin/bash
.PHONY: help demo test test-unit test-controlplane fmt lint setup bench image

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: ## installs or names what a fresh Debian or Ubuntu machine lacks
	@tests/setup.sh

demo: setup ## the main job, explained step by step; ONCE=1 checks itself and exits
	@tests/demo.sh $(if $(ONCE),--once)

test: setup ## formatting, lints, all tests, the real control plane; prints the minutes of each part
	@tests/run.sh

fmt: ## formats
	@cargo fmt --all

lint: ## formatting and lints only
	@cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings && echo "lint: clean"
