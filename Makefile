# Needs git, make and Python 3.11+ only; everything else is installed into .venv from the locked requirements.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
PYTEST_ARGS ?=
JOBS   ?= auto

.DEFAULT_GOAL := help
.PHONY: help run test check lint types imports format lock clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

run: $(VENV)/.run ## Start the gateway with an embedded Postgres and a demo tenant on 127.0.0.1:8080
	@$(BIN)/llm-proxy dev

# Files side by side, in order: the longest come early. Each process has a Postgres of its own.
test: $(VENV)/.dev ## Run the whole test suite (JOBS=auto processes, four at most)
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: test-rotations
test-rotations: $(VENV)/.dev ## Rotate a key 200 times in a row under load, and kill rotations at every step (eight minutes)
	$(BIN)/python -m pytest tests/e2e/test_rotation_under_load.py tests/tenants/test_rotation_killed.py tests/tenants/test_rotation_drivers.py -m slow $(PYTEST_ARGS)

.PHONY: test-leases
test-leases: $(VENV)/.dev ## Share 6,000 requests a minute between processes on two hosts through kills and outages (root on Linux, eight minutes)
	$(BIN)/python -m pytest tests/leases/test_fleet.py -m slow -s $(PYTEST_ARGS)

.PHONY: test-kms
test-kms: $(VENV)/.dev .venv-kms/.ready ## Try the KEK providers against OpenBao and moto's AWS KMS (real servers, 120 MB to download)
	$(BIN)/python -m pytest tests/kms -m slow $(PYTEST_ARGS)

.PHONY: test-custody-docs
test-custody-docs: $(VENV)/.dev ## Run the commands of docs/custody.md as printed over a real installation (two minutes)
	$(BIN)/python -m pytest tests/e2e/test_custody_docs.py -m slow $(PYTEST_ARGS)

.venv-kms/.ready: requirements/kms.lock
	@$(PYTHON) -m venv .venv-kms
	@.venv-kms/bin/python -m pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements/kms.lock
	@touch $@

check: lint types imports ## Lint, types and import rules

lint: $(VENV)/.dev ## Ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## The package rules of docs/architecture.md
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.dev ## Resolve the dependencies anew (hashes, no addresses)
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra build --extra geoip -o requirements/run.lock -q
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra build --extra geoip --extra dev -c requirements/run.lock -o requirements/dev.lock -q

clean: ## Remove the virtual environment and caches (data in .llm-proxy stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.lock pyproject.toml | $(BIN)/python
	@echo "installing the locked dependencies"
	@$(PIP) install --require-hashes -r requirements/run.lock
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.run
	@echo "installing the locked development dependencies"
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

# The chart, the image and the cluster: their tools live in an environment of their own.
CHART       := .venv-chart
IMAGE       ?= localhost/llm-proxy:dev
BASE_IMAGE  ?= python:3.13-slim-bookworm
.PHONY: chart-docs test-chart image test-image test-cluster

chart-docs: $(VENV)/.dev ## Make the chart's README from its values
	$(BIN)/python helm/readme.py

test-chart: $(CHART)/.ready ## Lint, render and validate the chart on Helm 3.17 and 4 (wants promtool: Debian's prometheus)
	$(CHART)/bin/python -m pytest helm/tests $(PYTEST_ARGS)

image: ## Build the container image with buildah (BASE_IMAGE=…, IMAGE=…)
	buildah bud --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg REVISION=$$(git rev-parse HEAD) -t $(IMAGE) .

test-image: ## Build the image on a base made by debootstrap and run it read-only (root on Debian; needs buildah, podman)
	tests/cluster/image.sh

test-cluster: $(CHART)/.ready ## Install, upgrade and roll back the chart under load on a real one-node Kubernetes (root on Debian)
	tests/cluster/run.sh

$(CHART)/.ready: requirements/chart.lock requirements/helm.lock helm/tools.py
	@$(PYTHON) -m venv $(CHART)
	@echo "installing the chart's test tools"
	@$(CHART)/bin/python -m pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements/chart.lock
	@$(CHART)/bin/python helm/tools.py $(CHART)/tools
	@touch $@

.PHONY: test-policy
test-policy: $(CHART)/.ready .venv-policy/.ready ## Scan the rendered chart with Checkov (helm/policy.yaml argues each exception)
	$(CHART)/tools/helm-4 template rel helm/llm-proxy -n llm -f helm/llm-proxy/ci/production.yaml >.venv-policy/production.yaml
	.venv-policy/bin/checkov -f .venv-policy/production.yaml --config-file helm/policy.yaml

.venv-policy/.ready: requirements/policy.lock
	@$(PYTHON) -m venv .venv-policy
	@.venv-policy/bin/python -m pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements/policy.lock
	@touch $@

.PHONY: test-interop
test-interop: $(VENV)/.dev tests/interop/node_modules/.ready ## Run oauth4webapi, openid-client and oidc-provider (npm) against a running gateway (Node 20+, Debian's chromium)
	$(BIN)/python -m tests.interop.run

tests/interop/node_modules/.ready: tests/interop/package-lock.json
	cd tests/interop && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

.PHONY: test-fuzz
test-fuzz: $(VENV)/.dev .venv-fuzz/.ready ## Fuzz the management API by its OpenAPI document (FUZZ_EXAMPLES=30 an operation): no 5xx
	$(BIN)/python -m tests.fuzz.run .venv-fuzz/bin/schemathesis

.venv-fuzz/.ready: requirements/fuzz.lock
	@$(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/python -m pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements/fuzz.lock
	@touch $@

# A soak runs an hour: start it from a checkout of its own when you go on working in this one.
MINUTES ?= 60
RATE    ?= 80
SHARE   ?= 0.5
OUT     ?= bench/results/soak
.PHONY: soak
soak: $(VENV)/.dev ## An hour at half load: are memory, descriptors, tasks flat? (MINUTES=60 RATE=80 SHARE=0.5 OUT=dir; wants gcc, wrk)
	$(BIN)/python -m bench.soak --minutes $(MINUTES) --rate $(RATE) --share $(SHARE) --out $(OUT)

.PHONY: test-load-90 test-load-130
test-load-90: $(VENV)/.dev ## Offer 90 % of a pool's true capacity, hidden and drifting, for ten minutes: no caller sees a 429
	$(BIN)/python -m pytest tests/e2e/test_load.py -k 90 -m slow -s $(PYTEST_ARGS)

test-load-130: $(VENV)/.dev ## Offer 130 % with priorities for ten minutes: no critical request sees a 429
	$(BIN)/python -m pytest tests/e2e/test_load.py -k 130 -m slow -s $(PYTEST_ARGS)

SEED ?=
.PHONY: chaos
chaos: MINUTES := $(if $(filter-out file,$(origin MINUTES)),$(MINUTES),3)
chaos: OUT := $(if $(filter-out file,$(origin OUT)),$(OUT),bench/results/chaos)
chaos: $(VENV)/.dev ## Random faults under load, for minutes: what must hold in all of them (MINUTES=3 WORKERS=1 SEED=… OUT=bench/results/chaos)
	$(BIN)/python -m tests.chaos.run --minutes $(MINUTES) $(if $(WORKERS),--workers $(WORKERS)) $(if $(SEED),--seed $(SEED)) --out $(OUT)

SECONDS ?= 60
TARGET  ?=
.PHONY: fuzz-http
fuzz-http: $(VENV)/.dev .venv-atheris/.ready ## Fuzz what reads HTTP from callers, providers, bodies (SECONDS=60 each, TARGET=caller steers by coverage)
	PYTHONPATH=.venv-atheris $(BIN)/python -m tests.fuzz.http --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(TARGET),--atheris --target $(TARGET))

.venv-atheris/.ready: requirements/atheris.lock $(VENV)/.dev
	@$(PIP) install --require-hashes --target .venv-atheris --upgrade -r requirements/atheris.lock

.PHONY: bench
bench: $(VENV)/.dev ## Measure CPU, latency and memory beside nginx, Envoy and LiteLLM (wants gcc, wrk, nginx; six minutes)
	@$(MAKE) --no-print-directory .venv-bench/.ready || echo "The peers could not be installed: the tables are made without them."
	$(BIN)/python bench/table.py

.venv-bench/.ready: requirements/bench.lock
	@$(PYTHON) -m venv .venv-bench
	@echo "installing the peers"
	@.venv-bench/bin/python -m pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements/bench.lock
	@touch $@

.PHONY: test-outage
test-outage: $(VENV)/.dev ## Take Postgres away under load for OUTAGE_S=600 seconds: no request fails, no usage row is lost
	$(BIN)/python -m pytest tests/e2e/test_outage.py -m slow -s $(PYTEST_ARGS)

.PHONY: test-crowd
test-crowd: $(VENV)/.dev ## Hold 20,000 connections to two workers, each answered by its own bytes (CROWD=20000; two minutes)
	$(BIN)/python -m pytest tests/e2e/test_crowd.py -m slow -s $(PYTEST_ARGS)
