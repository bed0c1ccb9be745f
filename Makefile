# Two commands: `make demo` and `make test`. Both need a C compiler, make and a POSIX shell, nothing else.
#
#   make demo        builds examples/llm.c and lets it write text with a small model
#   make test        everything that can be tested here; the last line is `N passed, N failed, N skipped`
#   make matrix      make test, then other compilers, levels, sanitizers, processors and every device: what CI runs
#   make test-all    make test, then the long ones: random tests ten times as long, all kernels, mutants
#   make size        the budgets: lines, columns, functions, compile time, bytes of code
#   make bench-cpu   installs other CPU attentions in build/peers (python3, 6 GB), measures attn.h beside them and the
#                    machine, writes bench/results.csv and RESULTS.md; bench-cpu-quick: less, and writes nothing
#   make bench-ab    OLD=commit or header ONLY="decode kv4096": what a change of attn.h does to these cases of bench-cpu
#   make bench-cost  cost over lengths, pages, batches and head dims: bench/cost.csv, bench/cost.svg
#   make bench-skip  what skip-softmax saves
#   make curve       accuracy, loss and time over the settings of skip-softmax: bench/curve.csv, bench/curve.svg
#   make test-O0     the test programs without optimisation
#   make test-asan   the test programs under the address and undefined-behaviour sanitizers
#   make sim         the CUDA driver without a GPU, build/sim/libcuda.so.1: LD_LIBRARY_PATH=build/sim ./program
#   make conformance-record   on a machine with an NVIDIA GPU: what it gives for each instruction form, kept in
#                    tests/conformance, and where the simulator differs
#   make kernels     writes kernels/*.inc again, the text of the kernels as attn_cuda.h includes it
#   make test-gpu    the CUDA tests on a GPU, and once more under compute-sanitizer where there is one
#   make dist        build/dist/: attn.h, and attn_cuda.h in one file with the kernels inside
#   make mutants     N=30 SEED=1: breaks attn.h in N places, one at a time, and counts what the tests notice (python3)
#
# CC, OPT (optimisation and sanitizer flags), WERROR=-Werror and JOBS may be set. ATTN_REQUIRE lists the names of the
# tests that may be skipped, separated by commas, * is a wildcard; any other skip is then a failure. `all` allows none.

CC       ?= cc
OPT      ?= -O2
WERROR   ?=
B        ?= build
JOBS     ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
N        ?= 30
SEED     ?= 1

WARN     := -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef $(WERROR)
CFLAGS   ?= -std=c99
LINUX    := $(filter Linux,$(shell uname -s))
LIBS     := -lm -lpthread $(if $(LINUX),-ldl)
export CC

# The implementation is compiled once; these tests have their own, to see what is private, or take that of attn_cuda.o.
OWN      := maths plan llm llm_main cuda_tools
WITH_REF := attention engine properties sliding_window
WITH_llm := $(B)/obj/attn_cuda.o $(B)/obj/llm_ref.o $(B)/obj/ref.o
WITH_llm_main := $(B)/obj/attn_cuda.o
CUDA     := $(patsubst tests/%.c,%,$(sort $(wildcard tests/cuda_*.c)))
NAMES    := $(filter-out ref cases llm_ref $(CUDA),$(patsubst tests/%.c,%,$(sort $(wildcard tests/*.c))))
SCRIPTS  := compile-cuda compile-use compile-gcc compile-clang compile-targets size fast-math models embed \
            drop-in instructions
HEADERS  := attn.h $(wildcard tests/*.h)

# The simulated CUDA driver, an ELF library. Its loops over lanes want vector instructions; its registers have no one
# type; and its arithmetic is that of the instructions, so nothing may be contracted.
SIM_TEST := $(if $(LINUX),$(patsubst tests/sim/test_%.c,%,$(sort $(wildcard tests/sim/test_*.c))))
SIM_PART := $(if $(LINUX),$(SIM_TEST:%=sim_%),sim)
SIM_CODE := $(filter-out tests/sim/test_%,$(sort $(wildcard tests/sim/*.c)))
SIM_OBJ  := $(SIM_CODE:tests/sim/%.c=$(B)/sim/%.o)
SIM_LIB  := $(B)/sim/libcuda.so.1
CONF     := $(filter-out tests/conformance/record.c,$(sort $(wildcard tests/conformance/*.c)))
CONF_H   := $(wildcard tests/conformance/*.h tests/sim/form_*.h) tests/sim/cuda_api.h tests/test.h
NATIVE   := $(shell $(CC) -march=native -E -x c /dev/null >/dev/null 2>&1 && echo -march=native)
SIM_OPT  := $(OPT:-O2=-O3) $(NATIVE) -fPIC -ffp-contract=off -fno-strict-aliasing -fno-math-errno -fno-trapping-math

CUDA_PART := $(if $(LINUX),$(CUDA),cuda)

# What `make test` runs, one log each. The long ones come first, so that they do not trail.
PARTS    ?= examples $(filter $(WITH_REF),$(NAMES)) $(CUDA_PART) $(SCRIPTS) $(filter-out $(WITH_REF) ofast,$(NAMES)) \
            $(SIM_PART)
LOGS     := $(patsubst %,$(B)/log/%.log,$(PARTS))

.PHONY: all demo test logs matrix test-all steps test-programs test-O0 test-asan test-gpu size sim \
    conformance-record kernels dist bench-peers bench-cpu bench-cpu-quick bench-run bench-ab bench-cost bench-skip \
    curve mutants clean

all: demo

demo:
	@mkdir -p build
	$(CC) -O2 -I. -o build/llm_demo examples/llm.c $(LIBS)
	./build/llm_demo

test:
	@rm -rf $(B)/log $(B)/ptx
	@mkdir -p $(B)/log $(B)/ptx
	@$(MAKE) -s -k $(SHARED) logs || true
	@sh tests/sum.sh $(B)/log $(PARTS)

logs: $(LOGS)

# A make that runs others hands out the jobs for all of them.
SHARED    = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j $(JOBS))

matrix:
	@$(MAKE) -s steps STEPS="$$(sh tests/matrix.sh matrix | tr '\n' ' ')"

test-all:
	@$(MAKE) -s steps STEPS="$$(sh tests/matrix.sh long | tr '\n' ' ')"

# `make test` first and alone, then the steps side by side. ATTN_REQUIRE is about `make test`.
STEP_RUN  = MAKE="$(MAKE)" B=$(B) sh tests/matrix.sh
steps:
	@rm -rf $(B)/matrix
	@mkdir -p $(B)/matrix
	+@$(STEP_RUN) test $(B)/matrix/test.log
	@ATTN_REQUIRE= $(MAKE) -s -k $(SHARED) $(STEPS:%=$(B)/matrix/%.log) || true
	@$(STEP_RUN) leftovers $(B)/matrix/leftovers.log
	@ATTN_REQUIRE= sh tests/sum.sh $(B)/matrix test $(STEPS) leftovers

$(B)/matrix/%.log:
	+@$(STEP_RUN) $* $@

test-programs:
	@$(MAKE) -s test PARTS="$(filter-out ofast,$(NAMES)) $(SIM_PART) $(CUDA_PART)"

test-O0:
	@$(MAKE) -s test-programs OPT=-O0 B=$(B)/O0

test-asan:
	@$(MAKE) -s test-programs OPT="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" B=$(B)/asan

size:
	@mkdir -p $(B)
	@sh tests/size.sh $(B)

# The headers decide when a program is built again; tests/run.sh turns a crash or a hang into a counted failure.
PROGRAMS := $(patsubst %,$(B)/%,$(NAMES))
.SECONDARY: $(PROGRAMS) $(OBJECTS) $(SIM_OBJ) $(SIM_TEST:%=$(B)/sim/%) $(CUDA:%=$(B)/%)

OBJECTS  := $(patsubst %,$(B)/obj/%.o,attn ref cases llm_ref)
COMPILE   = @mkdir -p $(B)/obj; $(CC) $(CFLAGS) $(OPT) $(WARN)

$(B)/obj/attn.o: tests/compile/impl.c attn.h
	$(COMPILE) -c -o $@ $<

$(B)/obj/%.o: tests/%.c $(HEADERS)
	$(COMPILE) -c -o $@ $<

$(B)/llm $(B)/llm_main $(B)/cuda_llm: $(wildcard examples/llm*) attn_cuda.h
$(B)/llm $(B)/llm_main: $(B)/obj/attn_cuda.o
$(B)/%: tests/%.c $(HEADERS) $(OBJECTS)
	$(COMPILE) -I. -o $@ $< $(if $(filter $*,$(OWN)),,$(B)/obj/attn.o) \
	    $(if $(filter $*,$(WITH_REF)),$(B)/obj/ref.o $(B)/obj/cases.o) $(WITH_$*) $(LIBS)

$(patsubst %,$(B)/log/%.log,$(filter-out ofast,$(NAMES))): $(B)/log/%.log: $(B)/%
	@sh tests/run.sh $* $@ $(B)/$*

sim: $(SIM_LIB)

$(B)/sim/%.o: tests/sim/%.c $(wildcard tests/sim/*.h)
	@mkdir -p $(B)/sim
	$(CC) $(CFLAGS) $(SIM_OPT) $(WARN) -c -o $@ $<

$(SIM_LIB): $(SIM_OBJ) tests/sim/exports.map
	$(CC) $(OPT) -shared -Wl,-soname,libcuda.so.1 -Wl,--version-script=tests/sim/exports.map -o $@ $(SIM_OBJ) $(LIBS)

# The library lies beside the programs and counts before those of LD_LIBRARY_PATH: containers for GPUs have the driver
# there. The programs may also look for NVRTC, which looks for a driver.
$(B)/sim/conformance: $(CONF) $(CONF_H)
$(B)/sim/shipped: $(CONF) $(CONF_H)
$(B)/sim/%: tests/sim/test_%.c $(SIM_LIB) $(wildcard tests/sim/*.h) tests/test.h
	$(CC) $(CFLAGS) $(OPT) $(WARN) -o $@ $(filter %.c,$^) $(SIM_LIB) $(LIBS) -ldl \
	    -Wl,--disable-new-dtags,-rpath,'$$ORIGIN'

# The recorder is not linked with the simulator: it takes the driver of the machine.
$(B)/conformance: tests/conformance/record.c $(CONF) $(CONF_H)
	@mkdir -p $(B)
	$(CC) $(CFLAGS) $(OPT) $(WARN) -o $@ $(filter %.c,$^) $(LIBS)

conformance-record: $(B)/conformance $(B)/sim/conformance
	./$(B)/conformance $(SIM_LIB)
	./$(B)/sim/conformance --compare

$(B)/log/sim.log:
	@sh tests/run.sh sim $@ sh -c "echo 'skip sim: needs Linux'; echo 'sim: 0 passed, 0 failed, 1 skipped'"

# What cuda_compile has compiled is what sim_shipped looks at.
export ATTN_CUDA_KEEP := $(B)/ptx
$(B)/log/sim_shipped.log: $(if $(filter cuda_compile,$(PARTS)),$(B)/log/cuda_compile.log)
$(SIM_TEST:%=$(B)/log/sim_%.log): $(B)/log/sim_%.log: $(B)/sim/%
	@sh tests/run.sh sim_$* $@ $(B)/sim/$*

# attn_cuda.h and its tests. They find a driver as every program does, so the path decides which one it is.
FRAGMENTS := kernels/attn_params.h $(sort $(wildcard kernels/*.cu))

$(B)/embed: tools/embed.c
	$(COMPILE) -o $@ $<

kernels: $(B)/embed
	@for file in $(FRAGMENTS); do $(B)/embed $$file >$$file.inc || exit 1; done

$(B)/log/embed.log: $(B)/embed
	@sh tests/run.sh embed $@ sh tests/embed.sh $(B)/embed $(FRAGMENTS)

$(B)/obj/attn_cuda.o: tests/compile/cuda_impl.c attn_cuda.h attn.h $(wildcard kernels/*.h kernels/*.inc)
	$(COMPILE) -c -o $@ $<

WITH_cuda_attention := $(B)/obj/ref.o $(B)/obj/cases.o
WITH_cuda_llm := $(B)/obj/llm_ref.o $(B)/obj/ref.o

$(CUDA:%=$(B)/%): $(B)/%: tests/%.c $(B)/obj/attn_cuda.o attn_cuda.h $(HEADERS) $(OBJECTS)
	$(COMPILE) -I. -o $@ $< $(if $(filter $*,$(OWN)),,$(B)/obj/attn_cuda.o) $(WITH_$*) $(LIBS)

$(B)/log/cuda.log:
	@sh tests/run.sh cuda $@ sh -c "echo 'skip cuda: needs Linux'; echo 'cuda: 0 passed, 0 failed, 1 skipped'"

# A folder for compiled kernels: the programs share it, and NVRTC takes half a second for each.
CACHE    ?= $(B)/cache
$(CUDA:%=$(B)/log/%.log): $(B)/log/%.log: $(B)/% $(SIM_LIB)
	@mkdir -p $(CACHE)
	@ATTN_TEST_CACHE=$(CACHE) LD_LIBRARY_PATH=$(B)/sim:$$LD_LIBRARY_PATH sh tests/run.sh $* $@ $(B)/$*

test-gpu: $(CUDA:%=$(B)/%)
	@sh tests/gpu.sh $(B) $(CUDA)

dist:
	@sh tools/dist.sh $(B)/dist

$(B)/log/compile-cuda.log: $(B)/obj/attn_cuda.o $(if $(LINUX),$(SIM_LIB))
	@SIM=$(abspath $(B)/sim) OBJ=$(B)/obj sh tests/run.sh compile $@ sh tests/compile.sh cuda

$(B)/log/compile-use.log: $(B)/obj/attn.o
	@OBJ=$(B)/obj sh tests/run.sh compile $@ sh tests/compile.sh use

$(B)/log/compile-%.log:
	@sh tests/run.sh compile $@ sh tests/compile.sh $*

$(B)/log/size.log:
	@sh tests/run.sh size $@ sh tests/size.sh

$(B)/log/fast-math.log:
	@sh tests/run.sh fast-math $@ sh tests/fast_math.sh

$(B)/log/instructions.log: $(B)/obj/attn.o $(B)/obj/ref.o
	@OPT="$(OPT)" sh tests/run.sh instructions $@ sh tests/instructions.sh $(B)

$(B)/log/examples.log: $(B)/obj/attn_cuda.o $(if $(LINUX),$(SIM_LIB))
	@SIM=$(abspath $(B)/sim) OBJECT=$(B)/obj/attn_cuda.o sh tests/run.sh examples $@ sh tests/examples.sh

$(B)/log/drop-in.log: $(if $(LINUX),$(SIM_LIB))
	@SIM=$(if $(LINUX),$(abspath $(B)/sim)) sh tests/run.sh drop-in $@ sh tests/drop_in.sh

$(B)/log/models.log:
	@sh tests/run.sh models $@ sh tests/models.sh

# Competitors of attn.h are installed once; PEERS may name where they are already.
PEERS    ?= build/peers
BENCH    := build/bench
BENCH_H  := attn.h bench/bench.h tests/ref.h tests/ref.c
export PEERS

$(BENCH)/tiles.o: bench/tiles.c $(BENCH_H)
	@mkdir -p $(BENCH)
	$(CC) -O3 -march=native -ffast-math -fPIC $(WARN) -c -o $@ $<

$(BENCH)/libcpu.so: bench/cpu.c $(BENCH)/tiles.o $(BENCH_H)
	$(CC) -O2 -fPIC -shared $(WARN) -o $@ $< $(BENCH)/tiles.o tests/ref.c $(LIBS)

$(BENCH)/%: bench/%.c $(BENCH_H)
	@mkdir -p $(BENCH)
	$(CC) -O2 $(WARN) -o $@ $< tests/ref.c $(LIBS)

PYTHON    = $(if $(wildcard $(PEERS)/venv/bin/python),$(PEERS)/venv/bin/python,python3)

bench-peers:
	@sh bench/peers.sh $(PEERS)

bench-cpu: $(BENCH)/libcpu.so bench-peers
	@$(MAKE) -s bench-run OPTIONS=--write

bench-cpu-quick: $(BENCH)/libcpu.so
	@$(MAKE) -s bench-run OPTIONS=--quick

bench-run:
	@$(PYTHON) bench/cpu.py $(OPTIONS)

bench-ab: $(BENCH)/libcpu.so
	@$(PYTHON) bench/ab.py "$(OLD)" "$(ONLY)"

bench-cost: $(BENCH)/cost
	$<

bench-skip: $(BENCH)/skip
	$<

curve:
	@mkdir -p build
	$(CC) -O3 -I. -o build/curve bench/curve.c $(LIBS)
	./build/curve

mutants:
	@python3 tools/mutate.py --count $(N) --seed $(SEED)

clean:
	rm -rf build
