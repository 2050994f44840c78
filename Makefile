# Everything a developer calls; CI calls the same targets.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/ready
MODEL   := models/pinned
OUT     := out

.PHONY: run paper test lint bench nightly docs clean setup
.DELETE_ON_ERROR:

run: $(READY) $(MODEL)          ## generate a day, replay it through the whole pipeline, write out/report.html
	$(BIN)/contrafusion generate --seed 2 --messages 300000 --symbols 16 $(OUT)/day.pcap
	$(BIN)/contrafusion replay $(OUT)/day.pcap --config configs/replay.toml --out $(OUT)

paper: $(READY)                 ## the paper exchange and the daemon on a real wire, with a live report
	$(BIN)/python -m daemon.wire.paper --out $(OUT)/paper

test: $(READY)                  ## unit, property, differential and scenario tests; then the stress tests alone
	@cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && export XDG_CACHE_HOME="$$cache" && \
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not alone" && \
	$(BIN)/python -m pytest -m "alone and not slow"

lint: $(READY)                  ## style, types, layers
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(READY)                 ## every benchmark: checks its answer, prints its ratio, appends to bench/results.csv
	$(BIN)/python -m pytest bench -m "not slow" -s

nightly: $(READY)               ## the long forms: fuzzing, soaks, sweeps, all benchmarks
	$(BIN)/python -m pytest -m slow --timeout 3600
	$(BIN)/python -m pytest bench -s --timeout 3600

docs: $(READY)                 ## the generated pages
	$(BIN)/python docs/render.py

setup: $(READY)                 ## the virtual environment

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(MODEL): | $(READY)
	$(BIN)/contrafusion generate --seed 1 --messages 300000 --symbols 16 $(OUT)/training.pcap
	$(BIN)/contrafusion train --dataset capture --data $(OUT)/training.pcap --seed 1 --out $(@D)

# The DPDK bridge is optional: neither the other targets nor the tests need it.
.PHONY: dpdk dpdk-deps
PKG_CONFIG ?= pkg-config
BRIDGE  := nimbus/feed/dpdk_bridge

dpdk:                           ## out/contrafusion-dpdk-bridge, against the system's DPDK 22.11
	@$(PKG_CONFIG) --exists 'libdpdk >= 22.11' || \
		{ echo "make dpdk: DPDK 22.11 is not installed: make dpdk-deps, or apt-get install libdpdk-dev" >&2; exit 1; }
	@mkdir -p $(OUT)
	$(CC) -std=c11 -D_GNU_SOURCE -O3 -Wall -Wextra -Werror $$($(PKG_CONFIG) --cflags libdpdk) \
		$(BRIDGE)/*.c -o $(OUT)/contrafusion-dpdk-bridge $$($(PKG_CONFIG) --libs libdpdk)

dpdk-deps:                      ## what it needs, from Debian 12 (as root; 33 MB, 166 MB installed)
	apt-get update --quiet
	apt-get install --yes --quiet --no-install-recommends gcc make pkg-config libdpdk-dev

clean:                          ## remove what the targets made, and compiled kernels of old sources
	rm -rf $(OUT) models .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $${XDG_CACHE_HOME:-$$HOME/.cache}/contrafusion
