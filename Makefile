# Driftwood. `make` alone prints the commands.
#
# The first command that needs it makes .venv (Python 3.11 or newer, and about a gigabyte for torch); later ones reuse
# it until pyproject.toml or deploy/constraints.txt changes. Variables given on the command line reach the programs as
# environment: make stack HTTP_PORT=8080 STACK_DIR=.run/stack
#
#   PYTHON       the interpreter to make .venv with; python3, or the first newer one on PATH where that is too old
#   TORCH_INDEX  an extra package index for torch, such as https://download.pytorch.org/whl/cpu
#   PROCESSES    how many train together: make train DATA=log.csv PROCESSES=2 (torchrun)
#   TEST_PROCESSES  how many files of tests run at once; most of their time is waiting for servers
#   ARGS         further flags for the program behind a command: make replay DATA=log.csv ARGS="--rate 500"

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
TEST_PROCESSES ?= 2

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
export PATH := $(PATH):$(CURDIR)/.run/bin

READY := .venv/.ready
PY := .venv/bin/python
PIP := $(PY) -m pip install --constraint deploy/constraints.txt
# A foreground program that stops (SIGTERM) also when make itself is killed.
WITH_MAKE := exec $(PY) -I -S services/stack/child.py SIGTERM 0 $(PY)

.DEFAULT_GOAL := help
.PHONY: help demo test lint audit stack replay train evaluate ablation carry adapt keyboard bench setup redis up down image-size

help:
	@echo 'Driftwood: next-item recommendations that follow the last action'
	@echo
	@echo '  make demo [DATA=log]        the whole system on simulated shoppers, or on a log; ends by itself'
	@echo '  make test                   all tests that can run here'
	@echo '  make lint                   ruff and mypy'
	@echo '  make audit                  the installed packages against the known vulnerabilities (needs the internet)'
	@echo '  make stack                  the whole system without Docker, until Ctrl-C'
	@echo '  make replay DATA=log KAFKA_BOOTSTRAP_SERVERS=host:port'
	@echo '                              publish a log (CSV, Parquet) in time order'
	@echo '  make train DATA=log MODEL_URI=folder'
	@echo '                              train from a log and publish the model'
	@echo '  make evaluate TRAIN=log TEST=log'
	@echo '                              Recall@20 and MRR@20 over the whole catalogue'
	@echo '  make ablation TRAIN=log [TEST=log]'
	@echo '                              the same with one part of training changed at a time'
	@echo '  make carry DATA=log         whether a state carried across sessions beats starting each afresh'
	@echo '  make adapt DATA=log         learning policies compared: never, every day, on drift, every hour; drawn'
	@echo '  make keyboard TEXT=file     the text streamed as typing, the next word suggested; drawn'
	@echo '  make bench                  benchmarks, each against its ceiling in the same run'
	@echo
	@echo '  make up                     docker compose up: waits until all is healthy, prints the addresses;'
	@echo '                              COMPOSE_PROFILES=demo,observability adds shoppers and Grafana'
	@echo '  make down                   stops it; what it stored stays'
	@echo '  make image-size             of the image that `make up` built'
	@echo
	@echo 'ARGS="--help" shows the flags of replay, train, evaluate, ablation, carry, adapt, keyboard. The first command sets up .venv.'

setup: $(READY)

demo: $(READY) redis
	@$(WITH_MAKE) -m services.simulator.demo $(if $(DATA),--data '$(DATA)') $(ARGS)

test: $(READY)
	@$(MAKE) redis || echo 'make test: going on without redis-server' >&2
	@$(PY) -m tests.kubectl >/dev/null || echo 'make test: going on without kubectl' >&2
	@exec $(PY) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

audit: $(READY)
	@$(PY) -m pip install --quiet --upgrade pip && $(PIP) --quiet --editable '.[audit]' && mkdir -p .run
	@# Local versions, as of torch 2.13.0+cpu, are told as what they were built from: advisories know no other.
	@$(PY) -m pip list --format freeze --exclude-editable | sed 's/+[A-Za-z0-9.]*$$//' >.run/audit.txt
	@exec $(PY) -m pip_audit --strict --disable-pip --no-deps --requirement .run/audit.txt $(ARGS)

stack: $(READY) redis
	@$(WITH_MAKE) -m services.stack

replay: need-DATA $(READY)
	@exec $(PY) -m services.simulator.replay $(if $(DATA),--data '$(DATA)') $(ARGS)

train: need-DATA $(READY)
	@exec $(PY) $(if $(PROCESSES),-m torch.distributed.run --standalone --nproc_per_node=$(PROCESSES)) -m services.retrainer.train_cli $(if $(DATA),--data '$(DATA)') $(if $(MODEL_URI),--model-uri '$(MODEL_URI)') $(ARGS)

evaluate: need-TRAIN need-TEST $(READY)
	@exec $(PY) -m services.retrainer.evaluate_cli $(if $(TRAIN),--train '$(TRAIN)') $(if $(TEST),--test '$(TEST)') $(ARGS)

ablation: need-TRAIN $(READY)
	@exec $(PY) -m services.retrainer.ablation_cli $(if $(TRAIN),--train '$(TRAIN)') $(if $(TEST),--test '$(TEST)') $(ARGS)

carry: need-DATA $(READY)
	@exec $(PY) -m services.retrainer.carry_cli $(if $(DATA),--data '$(DATA)') $(ARGS)

adapt: need-DATA $(READY)
	@exec $(PY) -m services.retrainer.adapt_cli $(if $(DATA),--data '$(DATA)') $(ARGS)

keyboard: need-TEXT $(READY) redis
	@$(WITH_MAKE) -m services.simulator.keyboard $(if $(TEXT),--text '$(TEXT)') $(ARGS)

bench: $(READY) redis
	@$(PY) -c 'import faiss' 2>/dev/null || $(PIP) --quiet --editable '.[bench]' >&2
	@exec $(PY) -m tests.bench $(ARGS)

# These need Docker and neither .venv nor Python.
up:
	@exec deploy/compose.sh up

down:
	@exec deploy/compose.sh down

image-size:
	@exec deploy/compose.sh size

# One clear line, before any set-up, where a variable is missing; ARGS="--help" needs none.
need-%:
	@[ -n '$($*)' ] || case ' $(ARGS) ' in *' --help '*) ;; *) \
	  echo 'make $(MAKECMDGOALS): say which with $*=file (`make` shows how)' >&2; exit 2;; esac

# Output goes to stderr: stdout belongs to the program, whose last line may be for a machine to read.
$(READY): pyproject.toml deploy/constraints.txt
	@exec >&2; set -eu; \
	new_enough() { "$$@" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if ! new_enough $(PY) || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in '$(PYTHON)' python3.13 python3.12 python3.11 python3.14 none; do \
	    if new_enough "$$python"; then break; fi; \
	  done; \
	  if [ "$$python" = none ]; then \
	    echo 'Driftwood needs Python 3.11 or newer; $(PYTHON) is' \
	      "$$('$(PYTHON)' --version 2>/dev/null || echo missing). Install one, or say: make PYTHON=/path/to/python3.12"; exit 1; \
	  fi; \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$python has no venv module. Debian, Ubuntu: apt-get install python3-venv"; exit 1; \
	  fi; \
	  echo "setting up .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv; \
	fi; \
	echo 'installing torch (the longest part: 200 MB to 2 GB)'; \
	$(PIP) torch $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)'); \
	echo 'installing the rest'; \
	$(PIP) --editable '.[local,test,lint]'; \
	touch $@

redis: $(READY)
	@[ -n '$(REDIS_URL)' ] || command -v redis-server >/dev/null || $(PY) -m services.stack.redis_server >&2
