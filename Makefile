# What a person does here.  `make help` lists the targets.
#   P=corsd               only this package (a folder of packages/)
#   GPU=1                 make test: the GPU tests must run instead of being skipped
#   QUICK=1               make bench: small sizes, for a smoke test; make test: without the tests marked slow
#   PYTHON=/path/python   the interpreter to build the environment with
SHELL := /bin/sh
.DEFAULT_GOAL := help
export PYTHON
# The project's own files decide; an inherited setting would make every import of torch slow.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

py := .venv/bin/python
members := shared-core corsd fsd calib
ifdef P
ifeq ($(filter $(P),$(members)),)
$(error P=$(P) is not a package; choose one of: $(members))
endif
endif
folders := $(if $(P),packages/$(P)/tests,packages tests)
shapes := --jaxtyping-packages=shared_core,corsd,fsd,calib,beartype.beartype

.PHONY: help demo test check bench wheels docs release clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

# uv.lock pins every version, so the environment is stale exactly when one of these files is newer.
.venv/.ready: uv.lock pyproject.toml $(wildcard packages/*/pyproject.toml)
	@tools/setup.sh

demo: .venv/.ready  ## train each method on its embedded data and write runs/demo/index.html (P=corsd: one)
	@$(py) tools/demo.py $(P)

# torch.compile cannot trace through the shape checks, so its tests run apart, and first.
# pytest's exit codes: 5 is "no test found", 4 that what was demanded is not there.
test: .venv/.ready  ## run the tests (P=corsd: one package, GPU=1: demand a GPU)
	@export OMP_NUM_THREADS=1 $(if $(GPU),REQUIRE_GPU=1); status=0; \
	$(py) -m pytest -q -m "compile$(if $(QUICK), and not slow)" -n auto --maxprocesses=4 $(folders) || case $$? in 5) ;; 4) exit 4;; *) status=1;; esac; \
	$(py) -m pytest -q -m "not compile$(if $(QUICK), and not slow)" -n auto --maxprocesses=4 $(shapes) $(folders) || status=1; \
	exit $$status

check: .venv/.ready  ## lint, types, import contracts, dependencies, lock file, workflows
	@$(py) tools/check.py

bench: .venv/.ready  ## run the benchmarks (QUICK=1: only whether they work)
	@$(py) tools/bench.py $(if $(QUICK),--quick)

wheels: .venv/.ready  ## build the packages, inspect them, install each alone and try it
	@$(py) tools/wheels.py $(P)

docs: .venv/.ready  ## build the documentation into site/
	@$(py) tools/docs.py

release: .venv/.ready  ## rehearse a release on this machine; nothing is published
	@$(py) tools/rehearse.py $(P)

clean:  ## remove the environments and what was built (runs/ stays)
	rm -rf .venv .uv dist site
