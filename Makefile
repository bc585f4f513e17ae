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
CFLAGS    ?= -O2 -g

WARNINGS  := -Wall -Wextra -Wswitch-enum -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
             -Wformat=2 -Wvla -Wundef
VF_CPPFLAGS := -D_GNU_SOURCE -Iinclude -Isrc
VF_CFLAGS := -std=gnu11 $(WARNINGS) -fvisibility=hidden -fPIC -fno-common \
             -fstack-protector-strong -ffile-prefix-map=$(CURDIR)=.
VF_LDFLAGS := -Wl,-z,relro -Wl,-z,now

ifeq ($(VARIANT),release)
VF_CPPFLAGS += -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
VF_LDFLAGS  += -Wl,-z,defs -Wl,--as-needed
else ifeq ($(VARIANT),asan)
VF_CFLAGS   += -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
VF_LDFLAGS  += -fsanitize=address,undefined
else ifeq ($(VARIANT),clang)
CC          := clang
else ifeq ($(VARIANT),cov)
VF_CFLAGS   += -O0 --coverage
VF_LDFLAGS  += --coverage
else
$(error VARIANT is release, asan, clang or cov)
endif

# libev ships no pkg-config file.
JSONC_CFLAGS := $(shell $(PKG_CONFIG) --cflags json-c 2>/dev/null)
JSONC_LIBS   := $(or $(shell $(PKG_CONFIG) --libs json-c 2>/dev/null),-ljson-c)
VF_CPPFLAGS  += $(JSONC_CFLAGS)
VF_LIBS      := $(JSONC_LIBS) -lev

LIB_ROOMS := util wire engine vm store flows lib
LIB_SRC   := $(sort $(foreach room,$(LIB_ROOMS),$(wildcard src/$(room)/*.c)))
CLI_SRC   := $(sort $(wildcard src/cli/*.c))
UTIL_SRC  := $(sort $(wildcard src/util/*.c))
UNIT_SRC  := $(sort $(wildcard tests/unit/test-*.c))
QEMU_SRC  := $(sort $(wildcard tests/qemu/test-*.c))

objects    = $(patsubst %.c,$(B)/%.o,$(1))
LIB_OBJ   := $(call objects,$(LIB_SRC))
CLI_OBJ   := $(call objects,$(CLI_SRC))
UTIL_OBJ  := $(call objects,$(UTIL_SRC))
UNIT_BIN  := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(UNIT_SRC))

COMMAND   := $(B)/vmfrost
ARCHIVE   := $(B)/libvmfrost.a
SHARED    := $(B)/libvmfrost.so.$(SOVERSION)
EXAMPLE   := $(B)/tests/example/embed

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-6s %s\n' $(1) $(2)
endif

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
	$(Q)$(CC) -pie $(VF_LDFLAGS) $(LDFLAGS) -o $@ $^ $(VF_LIBS) $(LDLIBS)

$(B)/libvmfrost.pc: src/lib/libvmfrost.pc.in Makefile
	$(Q)mkdir -p $(@D)
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' \
	    -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' $< > $@

$(B)/tests/unit/test-%: $(B)/tests/unit/test-%.o $(ARCHIVE)
	$(call say,LD,$@)
	$(Q)$(CC) $(VF_LDFLAGS) $(LDFLAGS) -o $@ $^ $(VF_LIBS) -lpthread $(LDLIBS)

-include $(sort $(patsubst %.o,%.d,$(LIB_OBJ) $(CLI_OBJ) $(call objects,$(UNIT_SRC))))

.PHONY: unit
unit: $(UNIT_BIN)
