# Each target is readable by hand and prints a summary line last. See README.md.
SHELL := /bin/bash
.PHONY: help demo test verify test-controlplane conformance bench bench-full costs oha fmt lint setup

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: ## installs or names what a fresh Debian or Ubuntu machine lacks
	@tests/setup.sh

demo: setup ## the main job, explained step by step; ONCE=1 checks itself and exits
	@tests/demo.sh $(if $(ONCE),--once)

test: setup ## formatting, lints, all tests, the real control plane, costs; prints the minutes of each part
	@tests/run.sh

verify: setup ## what is too long for every change: policies and tokens beside a real Envoy, fuzz targets, constants of telemetry, what tokens, policies and metrics cost, conformance
	@tests/verify.sh

test-controlplane: setup ## only the test beside a real istiod; STEP=word chooses steps
	@tests/controlplane/build.sh
	@cargo test --locked -p tests --test controlplane -- $(STEP)

conformance: setup ## the Gateway API suite and two of ours, on a real API server and istiod; SUITE="gateway-api MeshBasic" chooses; target/conformance/report.json
	@tests/conformance.sh $(SUITE)

bench: setup ## beside a real Envoy in one run: ratios, their limits, target/bench/summary.json; BENCH="request scale" chooses parts
	@tests/bench.sh $(BENCH)

bench-full: setup ## the same with more and longer rounds, and with HTTP/2, gRPC, short tunnels, a thousand changes under load, and few connections on two workers
	@tests/bench.sh --full $(BENCH)

oha: setup ## oha against the demo mesh, every answer checked; OHA="-z 30s -c 100" and the like choose the load
	@tests/oha.sh

costs: setup ## counts what a request costs in instructions, beside tests/costs.toml; ROWS="request log_line" chooses, UPDATE_COSTS=1 writes
	@tests/costs.sh $(ROWS)

fmt: ## formats
	@cargo fmt --all

lint: ## formatting and lints only
	@cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings && echo "lint: clean"
