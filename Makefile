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

# Where an upgrade begins: the last commit whose members know nothing of feature level 1.
OLD ?= e626054

.DEFAULT_GOAL := help
# The name and tag of the image.
IMAGE ?= lifeboat:$(shell sed -n 's/^appVersion: "\(.*\)"/\1/p' charts/lifeboat/Chart.yaml)
# A program that needs nothing of the system it runs on: linked statically with the C library of this machine.
STATIC_TARGET := x86_64-unknown-linux-gnu
# The chart's tests bring their tools themselves; see tests/chart/tools.py.
CHART_PYTHON := target/chart-tools/venv/bin/python

.PHONY: help run test dr-proof upgrade-test verify fmt-check clippy doc fix build release bench bench-dr netns-test clean-data \
	static image image-test chart-test chart-lint chart-readme chart-golden chart-keep

help: ## List what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run a cluster on this machine: three voters and a mirror, clients at 127.0.0.1:7400
	$(CARGO) run $(LOCKED) --profile $(PROFILE) -- dev $(DEV)

test: ## Run all tests
	env -u LIFEBOAT_WRITE_DOCS $(CARGO) test $(LOCKED)

dr-proof: ## The long proofs of disaster recovery: every harm at every place of a switchover; three minutes
	$(CARGO) test $(LOCKED) --test dr -- --ignored --nocapture

upgrade-test: ## Upgrade a cluster under load from the program of an earlier commit; builds that program first
	rm -rf target/old && git worktree prune && git worktree add --detach target/old $(OLD)
	CARGO_TARGET_DIR=target/old-build $(CARGO) build $(LOCKED) --manifest-path target/old/Cargo.toml
	LIFEBOAT_OLD_PROGRAM=$(CURDIR)/target/old-build/debug/lifeboat $(CARGO) test $(LOCKED) --test cluster rolling -- --include-ignored
	git worktree remove --force target/old

verify: fmt-check clippy doc test ## Format, clippy, documentation, all tests; CI runs it, and then chart-test

fmt-check:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy $(LOCKED) --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(LOCKED) --no-deps --document-private-items

fix: ## Format, let clippy mend what it can, and write the table of metrics in docs/operations.md
	$(CARGO) clippy --fix --allow-dirty --allow-staged --all-targets
	$(CARGO) fmt
	LIFEBOAT_WRITE_DOCS=1 $(CARGO) test $(LOCKED) --test tools metrics_docs::the_table

build: ## Build the program for development: target/debug/lifeboat
	$(CARGO) build $(LOCKED)

release: ## Build the program for use: target/release/lifeboat
	$(CARGO) build $(LOCKED) --release

bench: ## Measure a cluster of three members: rate, latency, CPU, memory
	$(CARGO) bench $(LOCKED) --bench cluster -- $(BENCH)

bench-dr: ## Measure mirrors: lag, what they cost, resync, compression; BENCH="--only lag --seconds 5" narrows it
	$(CARGO) bench $(LOCKED) --bench dr -- $(BENCH)

netns-test: ## Voters and a mirror in two network namespaces with delay, loss and one-way links; needs root
	$(CARGO) build $(LOCKED)
	tests/netns/run.sh target/debug/lifeboat

chart-test: ## Test the chart: helm 3 and 4, schemas, alert rules, and its pods in network namespaces; needs root
	python3 tests/chart/tools.py
	$(CARGO) build $(LOCKED)
	tests/chart/run.sh target/debug/lifeboat

chart-lint: ## The same without running members: about a minute, and no build
	python3 tests/chart/tools.py
	tests/chart/run.sh

chart-readme: ## Make the chart's README from the comments of its values
	$(CHART_PYTHON) tests/chart/readme.py --write

chart-golden: ## Render the chart's cases anew; read the diff
	$(CHART_PYTHON) tests/chart/render.py --write

chart-keep: ## Keep the present version of the chart to upgrade from in tests; then change it, and its version
	target/chart-tools/helm4 package charts/lifeboat --destination tests/chart/earlier

static: ## Build the program for an image: target/image/lifeboat
	RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols \
		$(CARGO) build $(LOCKED) --release --target $(STATIC_TARGET)
	mkdir -p target/image && cp target/$(STATIC_TARGET)/release/lifeboat target/image/lifeboat

image: static ## Put the image together: an archive, and with docker or podman in that too
	python3 tools/oci_image.py Dockerfile target/image/lifeboat $(IMAGE) target/image/lifeboat.tar
	@for engine in docker podman; do \
		if command -v $$engine > /dev/null && $$engine info > /dev/null 2>&1; then \
			$$engine build --tag $(IMAGE) . && exit; \
		fi; \
	done; echo "no container engine here: load the archive where there is one (docker load < target/image/lifeboat.tar)"

image-test: image ## Run the chart's pods from the image's own files, read-only; needs root
	python3 tests/chart/tools.py
	$(CHART_PYTHON) tests/chart/image.py target/image/lifeboat.tar
	$(CHART_PYTHON) tests/chart/upgrade.py --image target/image/lifeboat.tar
	$(CHART_PYTHON) tests/chart/lifecycle.py --image target/image/lifeboat.tar

clean-data: ## Remove the data of `make run`
	rm -rf lifeboat-data
