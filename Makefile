# Everything that a person or a machine does with this tree. `make` alone lists it.
#
# verify never writes to the tree; fix does.

CARGO ?= cargo
# --locked: what was tested is what is built.
LOCKED := --locked

# What `make run` runs is a debug build, because the first impression is the wait for the first build: 190 seconds of CPU,
# dependencies included, so under two minutes on two idle cores, and no optimising across all crates at the end. What
# hashes or searches every byte is optimised in it too (see Cargo.toml). It is there to try things; for figures use
# `make run PROFILE=release` or `make bench`.
PROFILE ?= dev
# Flags of `lifeboat dev`, for example DEV="--members 1 --base-port 8400".
DEV ?=
# Flags of the benchmark, for example BENCH="--seconds 5".
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help run test verify fmt-check clippy doc fix build release bench clean-data

help: ## List what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run a cluster on this machine: three voters and a mirror, clients at 127.0.0.1:7400
	$(CARGO) run $(LOCKED) --profile $(PROFILE) -- dev $(DEV)

test: ## Run all tests
	$(CARGO) test $(LOCKED)

verify: fmt-check clippy doc test ## Check everything; what CI runs

fmt-check:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy $(LOCKED) --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(LOCKED) --no-deps --document-private-items

fix: ## Format, and let clippy mend what it can
	$(CARGO) clippy --fix --allow-dirty --allow-staged --all-targets
	$(CARGO) fmt

build: ## Build the program for development: target/debug/lifeboat
	$(CARGO) build $(LOCKED)

release: ## Build the program for use: target/release/lifeboat
	$(CARGO) build $(LOCKED) --release

bench: ## Measure a cluster of three members: rate, latency, CPU, memory
	$(CARGO) bench $(LOCKED) --bench cluster -- $(BENCH)

clean-data: ## Remove the data of `make run`
	rm -rf lifeboat-data
