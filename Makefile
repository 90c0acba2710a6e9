# Each target is readable by hand and prints a summary line last. See README.md.
SHELL := /bin/bash
.PHONY: help demo test test-controlplane bench costs fmt lint setup

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: ## installs or names what a fresh Debian or Ubuntu machine lacks
	@tests/setup.sh

demo: setup ## the main job, explained step by step; ONCE=1 checks itself and exits
	@tests/demo.sh $(if $(ONCE),--once)

test: setup ## formatting, lints, all tests, the real control plane, costs; prints the minutes of each part
	@tests/run.sh

test-controlplane: setup ## only the test beside a real istiod; STEP=word chooses steps
	@tests/controlplane/build.sh
	@cargo test --locked -p tests --test controlplane -- $(STEP)

bench: setup ## compares with a real Envoy in one run; BENCH="full --rate 5000" and the like choose what and how
	@tests/bench.sh $(BENCH)

costs: setup ## counts what a request costs in instructions, beside tests/costs.toml; ROWS="request log_line" chooses, UPDATE_COSTS=1 writes
	@tests/costs.sh $(ROWS)

fmt: ## formats
	@cargo fmt --all

lint: ## formatting and lints only
	@cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings && echo "lint: clean"
