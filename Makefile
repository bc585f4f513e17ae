# SPDX-License-Identifier: MIT
#
# make            the library and the command, in build/release
# make demo       the main job, on a real guest
# make check      all tests
# make help       everything else
#
# CC, CFLAGS, CPPFLAGS, LDFLAGS, LDLIBS, PREFIX, DESTDIR and the folders below them are the user's;
# what the project itself needs stands in VF_*. One folder for each variant, so that changing flags
# never mixes objects.

VERSION   := $(shell sed -n 's/^\#define VMFROST_VERSION "\(.*\)"/\1/p' include/vmfrost.h)
SOVERSION := 0

VARIANT   ?= release
B         := build/$(VARIANT)

PREFIX    ?= /usr/local
BINDIR    ?= $(PREFIX)/bin
LIBDIR    ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR    ?= $(PREFIX)/share/man
PCDIR     ?= $(LIBDIR)/pkgconfig

PKG_CONFIG ?= pkg-config
AR        ?= ar
PROVE     ?= prove

WARNINGS  := -Wall -Wextra -Wswitch-enum -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
             -Wformat=2 -Wvla -Wundef
VF_CPPFLAGS := -D_GNU_SOURCE -Iinclude -Isrc
VF_CFLAGS := -std=gnu11 $(WARNINGS) -fvisibility=hidden -fPIC -fno-common \
             -fstack-protector-strong -ffile-prefix-map=$(CURDIR)=.
VF_LDFLAGS := -Wl,-z,relro -Wl,-z,now
VF_CFLAGS += $(VF_CFLAGS_EXTRA)
# For appliances: small, or in one file that needs nothing else. Link-time optimisation finds what
# nobody calls. What an appliance does without is left out: the points at which tests kill an operation,
# what shells ask to complete words, and the words of assertions.
SMALL_CFLAGS  := -flto=auto -flto-partition=one -fipa-pta -fno-plt -fno-gcse -fno-caller-saves \
                 -fno-tree-ch -fno-tree-loop-im -fno-tree-dominator-opts -fno-tree-fre \
                 -fno-move-loop-invariants -fno-forward-propagate -fno-shrink-wrap \
                 -fno-inline-functions-called-once -fno-asynchronous-unwind-tables \
                 -fstack-protector -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
SMALL_LDFLAGS := $(SMALL_CFLAGS) -Wl,-s -Wl,-z,noseparate-code -Wl,--as-needed \
                 -Wl,--build-id=none

ifneq ($(filter $(VARIANT),small static),)
CFLAGS    ?= -Oz
VF_CPPFLAGS += -DVMFROST_SMALL -Isrc/util/small
else ifeq ($(VARIANT),cov)
CFLAGS    ?= -O0 -g
else
CFLAGS    ?= -O2 -g
endif

ifeq ($(VARIANT),release)
VF_CPPFLAGS += -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
VF_LDFLAGS  += -Wl,-z,defs -Wl,--as-needed
else ifeq ($(VARIANT),asan)
VF_CFLAGS   += -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
VF_LDFLAGS  += -fsanitize=address,undefined
else ifeq ($(VARIANT),tsan)
VF_CFLAGS   += -O1 -fno-omit-frame-pointer -fsanitize=thread
VF_LDFLAGS  += -fsanitize=thread
else ifeq ($(VARIANT),clang)
CC          := clang
else ifeq ($(VARIANT),fuzz)
CC          := clang
VF_CPPFLAGS += -DVMFROST_FUZZER
VF_CFLAGS   += -O1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined \
               -fno-sanitize-recover=all
VF_LDFLAGS  += -fsanitize=fuzzer,address,undefined
else ifeq ($(VARIANT),cov)
VF_CFLAGS   += --coverage
VF_LDFLAGS  += --coverage -Wl,--wrap=_exit -Wl,--wrap=raise
else ifeq ($(VARIANT),small)
VF_CFLAGS   += $(SMALL_CFLAGS) -fPIE
VF_LDFLAGS  += $(SMALL_LDFLAGS) -Wl,-z,pack-relative-relocs
else ifeq ($(VARIANT),static)
VF_CFLAGS   += $(SMALL_CFLAGS)
VF_LDFLAGS  += $(SMALL_LDFLAGS)
else
$(error VARIANT is release, small, static, asan, tsan, clang, fuzz or cov)
endif

# libev ships no pkg-config file.
JSONC_CFLAGS := $(shell $(PKG_CONFIG) --cflags json-c 2>/dev/null)
JSONC_LIBS   := $(or $(shell $(PKG_CONFIG) --libs json-c 2>/dev/null),-ljson-c)
VF_CPPFLAGS  += $(JSONC_CFLAGS)
VF_LIBS      := $(JSONC_LIBS) -lev
VF_PIE       := -pie
ifeq ($(VARIANT),static)
# Names of hosts and of users' folders need the system's own C library, which ld warns of; paths,
# numbers and $HOME do not.
VF_PIE       := -static
VF_LIBS      += -lm
endif

LIB_ROOMS := util wire engine vm store flows lib
LIB_SRC   := $(sort $(foreach room,$(LIB_ROOMS),$(wildcard src/$(room)/*.c)))
ifeq ($(VARIANT),cov)
LIB_SRC   += tests/coverage/flush.c
endif
CLI_SRC   := $(sort $(wildcard src/cli/*.c))
UTIL_SRC  := $(sort $(wildcard src/util/*.c))
UNIT_SRC  := $(sort $(wildcard tests/unit/test-*.c))
FUZZ_SRC  := $(sort $(wildcard tests/fuzz/fuzz-*.c))
QEMU_SRC  := $(sort $(wildcard tests/qemu/test-*.c))

objects    = $(patsubst %.c,$(B)/%.o,$(1))
LIB_OBJ   := $(call objects,$(LIB_SRC))
CLI_OBJ   := $(call objects,$(CLI_SRC))
UTIL_OBJ  := $(call objects,$(UTIL_SRC))
UNIT_BIN  := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(UNIT_SRC))
FUZZ_BIN  := $(patsubst tests/fuzz/%.c,$(B)/tests/fuzz/%,$(FUZZ_SRC))

COMMAND   := $(B)/vmfrost
ARCHIVE   := $(B)/libvmfrost.a
SHARED    := $(B)/libvmfrost.so.$(SOVERSION)
EXAMPLE   := $(B)/tests/example/embed
FAIL      := $(B)/tests/torture/fail.so

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-6s %s\n' $(1) $(2)
endif

.SECONDARY:

.PHONY: all
all: $(COMMAND) $(ARCHIVE) $(SHARED) $(B)/libvmfrost.pc

$(B)/%.o: %.c Makefile
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(VF_CPPFLAGS) $(CPPFLAGS) $(VF_CFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(ARCHIVE): $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@
	$(Q)$(AR) qcsD $@ $^

$(SHARED): $(LIB_OBJ) src/lib/libvmfrost.map
	$(call say,LD,$@)
	$(Q)$(CC) -shared -Wl,-soname,$(@F) -Wl,--version-script=src/lib/libvmfrost.map \
	    $(VF_LDFLAGS) $(LDFLAGS) -o $@ $(LIB_OBJ) $(VF_LIBS) $(LDLIBS)
	$(Q)ln -sf $(@F) $(B)/libvmfrost.so

# The command carries the library in itself, so that one file is all that a rescue needs.
$(COMMAND): $(CLI_OBJ) $(ARCHIVE)
	$(call say,LD,$@)
	$(Q)$(CC) $(VF_PIE) $(VF_LDFLAGS) $(LDFLAGS) -o $@ $^ $(VF_LIBS) $(LDLIBS)

.PHONY: small static
small static:
	$(Q)$(MAKE) --no-print-directory VARIANT=$@ build/$@/vmfrost

$(B)/libvmfrost.pc: src/lib/libvmfrost.pc.in Makefile
	$(Q)mkdir -p $(@D)
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' \
	    -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' $< > $@

$(B)/tests/unit/test-%: $(B)/tests/unit/test-%.o $(ARCHIVE)
	$(call say,LD,$@)
	$(Q)$(CC) $(VF_LDFLAGS) $(LDFLAGS) -o $@ $^ $(VF_LIBS) -lpthread $(LDLIBS)

# libFuzzer brings a main() of its own; elsewhere each target replays its corpus.
ifneq ($(VARIANT),fuzz)
FUZZ_MAIN := $(B)/tests/fuzz/replay.o
endif

$(B)/tests/fuzz/fuzz-%: $(B)/tests/fuzz/fuzz-%.o $(FUZZ_MAIN) $(ARCHIVE)
	$(call say,LD,$@)
	$(Q)$(CC) $(VF_LDFLAGS) $(LDFLAGS) -o $@ $^ $(VF_LIBS) -lpthread $(LDLIBS)

$(EXAMPLE): $(B)/tests/example/embed.o $(ARCHIVE)
	$(call say,LD,$@)
	$(Q)$(CC) $(VF_LDFLAGS) $(LDFLAGS) -o $@ $^ $(VF_LIBS) $(LDLIBS)

# For LD_PRELOAD: makes calls of the C library's fail.
$(FAIL): tests/torture/fail.c Makefile
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -D_GNU_SOURCE -std=gnu11 $(WARNINGS) -O2 -fPIC -shared -o $@ $< -ldl

-include $(sort $(patsubst %.o,%.d,$(LIB_OBJ) $(CLI_OBJ) $(call objects,$(UNIT_SRC)) \
                                   $(call objects,$(FUZZ_SRC)) $(B)/tests/fuzz/replay.o \
                                   $(B)/tests/example/embed.o))

# Tests. Each set can be run alone; VARIANT=asan runs any of them with sanitizers.

export VMFROST := $(CURDIR)/$(COMMAND)
TESTS_BUILD := $(sort $(wildcard tests/build/*.t))
TESTS_CLI   := $(sort $(wildcard tests/cli/*.t))
TESTS_QEMU  := $(sort $(wildcard tests/qemu/*.t))
TESTS_GUEST := tests/lab/selftest.t $(sort $(wildcard tests/guest/*.t))
PROVE_FLAGS ?= --timer
JOBS        ?= $(shell nproc)

.PHONY: bootstrap unit check check-unit check-fuzz check-build check-cli check-qemu check-guest check-other
bootstrap:
	$(Q)tools/bootstrap build test lint

unit: $(UNIT_BIN) $(FUZZ_BIN) $(EXAMPLE) $(FAIL)

# Setting up comes before everything is built, whatever -j says. Tests with QEMU wait for most of their
# time: those with a guest run beside those without.
check: bootstrap
	$(Q)$(MAKE) --no-print-directory check-unit check-fuzz check-build check-cli
	$(Q)$(MAKE) --no-print-directory VARIANT=asan check-unit check-fuzz check-cli
	$(Q)$(MAKE) --no-print-directory check-tsan lint
	$(Q)$(MAKE) --no-print-directory -j 2 check-qemu check-guest
	$(Q)$(MAKE) --no-print-directory check-other

check-unit: all unit
	$(Q)$(PROVE) $(PROVE_FLAGS) -j $(JOBS) --exec '' $(UNIT_BIN)

# What fuzzers are fed with, in seconds and without a fuzzer.
check-fuzz: all unit
	$(Q)$(PROVE) $(PROVE_FLAGS) -j $(JOBS) --exec '' $(FUZZ_BIN)

check-build: all unit
	$(Q)$(PROVE) $(PROVE_FLAGS) $(TESTS_BUILD)

check-cli: all
	$(Q)$(PROVE) $(PROVE_FLAGS) -j $(JOBS) $(TESTS_CLI)

check-qemu: all
	$(Q)$(PROVE) $(PROVE_FLAGS) $(TESTS_QEMU)

check-guest: all unit
	$(Q)tests/lab/build >/dev/null
	$(Q)EXAMPLE=$(CURDIR)/$(EXAMPLE) $(PROVE) $(PROVE_FLAGS) $(TESTS_GUEST)

# The QEMUs of other Debian releases, which tools/other-qemu downloads: the oldest that is promised to
# work, and the one of bookworm-backports and trixie; of "a/b" the first that can be had. A mirror that
# cannot be reached says nothing about vmfrost: that is told, and fails where CI is set if the suite is
# one of OTHER_NEEDED. OTHER_TESTS=all: everything.
OTHER_QEMUS  ?= bullseye bookworm-backports/trixie
OTHER_NEEDED ?=
OTHER_TESTS  ?= tests/qemu/early.t tests/qemu/delete-kill.t tests/guest/snapshot.t
ifeq ($(OTHER_TESTS),all)
override OTHER_TESTS := $(TESTS_QEMU) $(TESTS_GUEST)
endif

check-other: all unit
	$(Q)tests/lab/build >/dev/null
	$(Q)for suites in $(OTHER_QEMUS); do \
	    programs=; \
	    for suite in $$(echo "$$suites" | tr / ' '); do \
	        programs=$$(tools/other-qemu $$suite) && break; \
	        [ $$? = 3 ] || exit 1; \
	    done; \
	    if [ -n "$$programs" ]; then \
	        "$$programs/qemu-system-x86_64" --version | head -n 1; \
	        VMFROST_TEST_QEMU=$$programs EXAMPLE=$(CURDIR)/$(EXAMPLE) \
	            $(PROVE) $(PROVE_FLAGS) $(OTHER_TESTS) || exit 1; \
	        continue; \
	    fi; \
	    echo "**** NOT TESTED with the QEMU of $$suites: it cannot be had here, see above ****"; \
	    case "$${CI:+ $(OTHER_NEEDED) }" in *" $$suites "*) exit 1;; esac; \
	done

# What they find stays in build/fuzz, and so does the corpus as it grows. FUZZ=NAME: only that one.
FUZZ_SECONDS ?= 60
FUZZ         ?= $(patsubst tests/fuzz/fuzz-%.c,%,$(FUZZ_SRC))

.PHONY: fuzz
ifeq ($(VARIANT),fuzz)
fuzz: $(foreach name,$(FUZZ),$(B)/tests/fuzz/fuzz-$(name))
	$(Q)for name in $(FUZZ); do \
	    echo "  FUZZ   $$name ($(FUZZ_SECONDS) s)"; \
	    mkdir -p $(B)/corpus/$$name; \
	    $(B)/tests/fuzz/fuzz-$$name -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=10 \
	        -verbosity=0 -print_final_stats=1 -dict=tests/fuzz/dictionary \
	        -artifact_prefix=$(B)/found-$$name- \
	        $(B)/corpus/$$name tests/fuzz/corpus/$$name || exit 1; \
	done
else
fuzz:
	$(Q)tools/bootstrap build test lint
	$(Q)$(MAKE) --no-print-directory VARIANT=fuzz fuzz
endif

# Random faults in the middle of operations on a real guest, and what must be true nevertheless. RUN=n:
# that run alone.
RUNS ?= 100

.PHONY: torture
torture:
	$(Q)tools/bootstrap build test
	$(Q)$(MAKE) --no-print-directory all $(FAIL)
	$(Q)tests/lab/build >/dev/null
	$(Q)tests/torture/campaign.py $(if $(SEED),--seed $(SEED)) $(if $(RUN),--run $(RUN),--runs $(RUNS))

VALGRIND := valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
            --child-silent-after-fork=yes

.PHONY: check-asan check-tsan check-valgrind
check-asan:
	$(Q)tools/bootstrap build test lint
	$(Q)$(MAKE) --no-print-directory VARIANT=asan check-unit check-fuzz check-cli check-qemu check-guest

# Half an hour and more. What a kill test stops is counted as well; who is killed from outside loses
# what it counted.
.PHONY: coverage
ifeq ($(VARIANT),cov)
coverage:
	$(Q)mkdir -p $(B)
	$(Q)find $(B) -name '*.gcda' -delete
	-$(Q)$(MAKE) --no-print-directory -k check-unit check-fuzz check-cli check-qemu check-guest
	$(Q)tools/coverage --least src/engine=95 --least src/flows=93 --least src/wire=95
else
coverage:
	$(Q)tools/bootstrap build test lint
	$(Q)$(MAKE) --no-print-directory VARIANT=cov coverage
endif

# The library makes no threads; its users may. The sanitizer wants addresses that are not random.
FLEET ?= 30
ifeq ($(VARIANT),tsan)
check-tsan: $(B)/tests/unit/test-fleet
	$(Q)ONLY=threads VMFROST_FLEET=$(FLEET) \
	    TSAN_OPTIONS=halt_on_error=1:suppressions=$(CURDIR)/tests/tsan.supp \
	    $(PROVE) $(PROVE_FLAGS) --exec 'setarch -R' $<
else
check-tsan:
	$(Q)tools/bootstrap build test lint
	$(Q)$(MAKE) --no-print-directory -j $(JOBS) VARIANT=tsan check-tsan
endif

# The unit tests, and the command with and without a QEMU: faults, leaks, descriptors.
check-valgrind: bootstrap
	$(Q)$(MAKE) --no-print-directory all unit
	$(Q)VALGRIND=1 VMFROST_FLEET=10 $(PROVE) $(PROVE_FLAGS) -j $(JOBS) --exec '$(VALGRIND)' $(UNIT_BIN)
	$(Q)VMFROST_UNDER_VALGRIND=$(VMFROST) VMFROST=$(CURDIR)/tests/valgrind/vmfrost \
	    $(PROVE) $(PROVE_FLAGS) -j $(JOBS) tests/valgrind/life.t $(TESTS_CLI)

# The main job, on a real guest: boots one, freezes, cuts, thaws, and looks at the result.
.PHONY: demo bench
demo:
	$(Q)tools/bootstrap build test
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tools/demo

bench:
	$(Q)tools/bootstrap build test
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tools/bench $(if $(PEERS),--peers $(PEERS)) $(BENCH)

# Layout and static checks.

C_FILES := $(sort $(wildcard include/*.h src/*/*.[ch] tests/*.h tests/*/*.[ch] tests/lab/guest/*.c))
SH_FILES := tools/bootstrap .ci/run tests/valgrind/vmfrost $(wildcard tests/lab/guest/init)

TIDY := $(patsubst %.c,$(B)/%.tidy,$(filter src/%,$(LIB_SRC) $(CLI_SRC)))

.PHONY: lint tidy fmt
lint:
	$(Q)clang-format --dry-run -Werror $(C_FILES)
	$(Q)shellcheck $(SH_FILES)
	$(Q)tools/check-rooms
	$(Q)$(MAKE) --no-print-directory -j $(JOBS) VARIANT=clang VF_CFLAGS_EXTRA=-Werror all unit tidy
	$(Q)cppcheck -q -j $(JOBS) --error-exitcode=1 --inline-suppr --std=c11 \
	    --enable=warning,style,performance,portability --suppressions-list=.cppcheck \
	    -Iinclude -Isrc -D_GNU_SOURCE src tests/unit tests/fuzz tests/example

# .clang-tidy says what is looked for; only what has changed is looked at again.
tidy: $(TIDY)
$(B)/%.tidy: %.c .clang-tidy $(wildcard include/*.h src/*/*.h)
	$(call say,TIDY,$<)
	$(Q)mkdir -p $(@D)
	$(Q)clang-tidy --quiet $< -- $(VF_CPPFLAGS) $(CPPFLAGS) -std=gnu11 2>$@.err || \
	    { cat $@.err >&2; exit 1; }
	$(Q)rm -f $@.err && touch $@

fmt:
	$(Q)clang-format -i $(C_FILES)

# Installing.

INSTALL ?= install

.PHONY: install uninstall clean help
install: all
	$(INSTALL) -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(LIBDIR) $(DESTDIR)$(INCLUDEDIR) \
	    $(DESTDIR)$(PCDIR) $(DESTDIR)$(MANDIR)/man1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$(INSTALL) -m 755 $(COMMAND) $(DESTDIR)$(BINDIR)/vmfrost
	$(INSTALL) -m 644 include/vmfrost.h $(DESTDIR)$(INCLUDEDIR)/vmfrost.h
	$(INSTALL) -m 644 $(ARCHIVE) $(DESTDIR)$(LIBDIR)/libvmfrost.a
	$(INSTALL) -m 755 $(SHARED) $(DESTDIR)$(LIBDIR)/libvmfrost.so.$(VERSION)
	ln -sf libvmfrost.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libvmfrost.so.$(SOVERSION)
	ln -sf libvmfrost.so.$(SOVERSION) $(DESTDIR)$(LIBDIR)/libvmfrost.so
	$(INSTALL) -m 644 $(B)/libvmfrost.pc $(DESTDIR)$(PCDIR)/libvmfrost.pc
	$(INSTALL) -m 644 tools/completion/vmfrost.bash \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmfrost
	@# Without scdoc everything but the manual is installed.
	if command -v scdoc >/dev/null; then \
	    scdoc < docs/man/vmfrost.1.scd > $(DESTDIR)$(MANDIR)/man1/vmfrost.1; fi

uninstall:
	rm -f $(DESTDIR)$(BINDIR)/vmfrost $(DESTDIR)$(INCLUDEDIR)/vmfrost.h \
	    $(DESTDIR)$(LIBDIR)/libvmfrost.a $(DESTDIR)$(LIBDIR)/libvmfrost.so \
	    $(DESTDIR)$(LIBDIR)/libvmfrost.so.$(SOVERSION) \
	    $(DESTDIR)$(LIBDIR)/libvmfrost.so.$(VERSION) $(DESTDIR)$(PCDIR)/libvmfrost.pc \
	    $(DESTDIR)$(MANDIR)/man1/vmfrost.1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmfrost

clean:
	rm -rf build

help:
	@echo 'make                build the command and the library (build/release)'
	@echo 'make small | static the command for appliances, stripped: build/small/vmfrost, build/static/vmfrost'
	@echo 'make demo           boot a guest, take a snapshot, look at it'
	@echo 'make check          all tests (installs what they need; forty minutes)'
	@echo 'make check-unit     ... only these; also: check-fuzz check-build check-cli check-qemu check-guest check-other'
	@echo 'make check-asan     the tests with address and undefined-behaviour sanitizers'
	@echo 'make check-tsan     contexts in several threads, with the thread sanitizer'
	@echo 'make coverage       all tests, and which lines they reach; tools/coverage --missed shows the others'
	@echo 'make check-valgrind the unit tests, the command, and a few snapshots under valgrind'
	@echo 'make fuzz           fuzz what reads foreign input; FUZZ=target FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make torture        random faults on a real guest; RUNS=$(RUNS) SEED=n, RUN=k for one of them'
	@echo 'make bench          measure; PEERS=libvirt beside libvirt; BENCH=--help for more'
	@echo 'make lint | fmt     check or put right the layout; static checks'
	@echo 'make install        PREFIX=$(PREFIX) DESTDIR=; make uninstall takes it back'
	@echo 'make clean          remove build/'
	@echo 'Variables: CC CFLAGS CPPFLAGS LDFLAGS LDLIBS PREFIX LIBDIR VARIANT=release|small|static|asan|tsan|clang|fuzz|cov V=1'
