# What a checkout can do.  Each target sets up what it needs in .venv, which takes a fraction of a
# second when it is there.  The work is done by the scripts of python/make.

# The first of these that is 3.11 or newer makes the environment.
PYTHON ?= python3 python3.11 python3.12 python3.13
DEVICE ?= cpu
PORT   ?= 30000
# 2.10 to 2.13, or a requirement for pip, and an extra index for it (see python/make/setup_env.py).
TORCH       ?=
TORCH_INDEX ?=
# The release of SGLang: 0.5.20 to 0.5.23, the last by default.
ENGINE      ?=
export TORCH TORCH_INDEX ENGINE

with_python = @for python in $(PYTHON); do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	exec "$$python" $(1); \
done; \
echo "make $@: needs Python 3.11 or newer, tried: $(PYTHON); name one with PYTHON=..." >&2; exit 1

in_env = @exec .venv/bin/python $(1)

# Empty where the SGLang environment that is active is used: on a real NPU.
own_env = $(if $(filter npu,$(DEVICE)),$(filter-out 0,$(SIM)),yes)

.PHONY: help setup check demo serve eval test peers arm arm-serve fuzz fingerprints bench wheel

help:
	@echo "make setup    a Python environment for the CPU in .venv           [ENGINE=0.5.22 TORCH=2.10]"
	@echo "make check    lint, types and the library's tests                 [ARGS='-k name ...']"
	@echo "make demo     serve a small GGUF model, ask one question, stop   [MODEL=smollm2|gemma3-270m|file.gguf]"
	@echo "make serve    MODEL=file.gguf [DEVICE=cpu|npu] [SIM=1] [PORT=30000] [VERBOSE=1] [ARGS='--tp-size 2 ...']"
	@echo "              DEVICE=npu uses the SGLang environment that is active; SIM=1 simulates the NPU"
	@echo "make eval     MODEL=file.gguf [DEVICE, SIM, ARGS as above] or URL=http://...: accuracy on GSM8K"
	@echo "              [QUESTIONS=200] [SHOTS=5] [DATA=problems.jsonl] [RECORD=eval.json]"
	@echo "make test     all tests                                           [ARGS='-k name ...']"
	@echo "make peers    compare files of llama.cpp's converter with transformers [ARGS='-k name ...']"
	@echo "make arm      the kernels on emulated ARM processors              [PROCESSOR=tsv110]"
	@echo "make arm-serve  small models served on a whole emulated aarch64 environment"
	@echo "make fuzz     corrupted files: each must load or be refused in one line"
	@echo "              [SECONDS=60] [SEED=1] [FILES=1000] [JOBS=2] [FOLDER=build/fuzz], or AGAIN=file.gguf"
	@echo "make fingerprints  what a release of SGLang changes of what is patched"
	@echo "              [VERSION=0.5.24] [FOLDER=path/to/sglang/srt] [WRITE=1]"
	@echo "make bench    the benchmarks of benchmark/                        [ARGS=...]"
	@echo "make wheel    wheel and source distribution in dist/, and a model served with the wheel"

setup:
	$(call with_python,python/make/setup_env.py)

check: setup
	$(call in_env,python/make/check.py $(ARGS))

demo: setup
	$(call in_env,python/make/demo.py $(if $(MODEL),--model '$(MODEL)'))

serve:
	$(call with_python,python/make/serve.py --model '$(MODEL)' --device '$(DEVICE)' \
		--port '$(PORT)' $(if $(filter-out 0,$(SIM)),--sim) -- $(ARGS))

eval: $(if $(own_env),setup)
	$(call $(if $(own_env),in_env,with_python),python/make/eval.py --model '$(MODEL)' \
		--device '$(DEVICE)' $(if $(filter-out 0,$(SIM)),--sim) $(if $(URL),--url '$(URL)') \
		$(if $(DATA),--data '$(DATA)') $(if $(QUESTIONS),--questions '$(QUESTIONS)') \
		$(if $(SHOTS),--shots '$(SHOTS)') $(if $(RECORD),--record '$(RECORD)') -- $(ARGS))

test: setup
	$(call in_env,-m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS))

fuzz: setup
	@PYTHONPATH=test exec .venv/bin/python -m fuzz $(if $(SECONDS),--seconds '$(SECONDS)') \
		$(if $(SEED),--seed '$(SEED)') $(if $(FILES),--files '$(FILES)') $(if $(JOBS),--jobs '$(JOBS)') \
		$(if $(FOLDER),--folder '$(FOLDER)') $(if $(AGAIN),--again '$(AGAIN)')

arm: setup
	@for processor in $(or $(PROCESSOR),cortex-a72 tsv110 a64fx); do \
		ARM_PROCESSOR=$$processor PYTHONPATH=test .venv/bin/python -m pytest -p emulation.arm -q \
			test/codegen/test_interpreter.py test/decoders/test_dequantize.py $(ARGS) || exit 1; \
	done

arm-serve: setup
	@PYTHONPATH=test:python/make exec .venv/bin/python -m emulation.serve

peers: export ALL_PEERS := 1
peers: setup
	$(call in_env,-m pytest test/peers -q $(ARGS))

fingerprints: setup
	@SGLANG_USE_CPU_ENGINE=1 exec .venv/bin/python -W ignore python/make/fingerprints.py \
		$(VERSION) $(if $(FOLDER),--folder '$(FOLDER)') $(if $(filter-out 0,$(WRITE)),--write)

bench: setup
	@test -f benchmark/run.py || { echo "make bench: benchmark/run.py is not there yet" >&2; exit 1; }
	$(call in_env,benchmark/run.py $(ARGS))

wheel: setup
	$(call in_env,python/make/wheel.py)
