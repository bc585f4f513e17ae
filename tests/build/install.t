#!/bin/sh
# What gets installed works from where it is installed: header, libraries, pkg-config file.
set -u
cd "$(dirname "$0")/../.." || exit 1

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
count=0
failed=0

check() { # NAME COMMAND...: passes if the command does
    name=$1
    shift
    count=$((count + 1))
    if "$@" >"$stage/out" 2>&1; then
        echo "ok $count - $name"
    else
        failed=$((failed + 1))
        echo "not ok $count - $name"
        sed 's/^/# /' "$stage/out"
    fi
}

flags() { # pkg-config for the staged installation
    PKG_CONFIG_PATH=$stage/usr/lib/pkgconfig pkg-config \
        --define-variable=prefix="$stage/usr" --define-variable=libdir="$stage/usr/lib" \
        --define-variable=includedir="$stage/usr/include" "$@" libvmfrost
}

run_make() {
    env -u MAKEFLAGS -u MAKELEVEL make --no-print-directory PREFIX=/usr DESTDIR="$stage" "$@"
}

compile_shared() {
    # shellcheck disable=SC2046 # flags are words
    cc -Wall -Werror tests/example/embed.c $(flags --cflags --libs) -lev -o "$stage/embed"
}

compile_static() {
    # shellcheck disable=SC2046
    cc -Wall -Werror tests/example/embed.c $(flags --cflags) "$stage/usr/lib/libvmfrost.a" \
        -ljson-c -lev -o "$stage/embed-static"
}

runs() { # a usage error, from a program that found its library
    LD_LIBRARY_PATH=$stage/usr/lib "$1" 2>/dev/null
    [ $? -eq 2 ]
}

header_alone() { # COMPILER FLAGS...
    echo '#include <vmfrost.h>' >"$stage/header.$1"
    shift
    "$@" -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$stage/usr/include" "$stage"/header.*
    status=$?
    rm -f "$stage"/header.*
    return $status
}

exports_only_api() {
    symbols=$(nm -D --defined-only "$stage/usr/lib/libvmfrost.so" | awk '{print $3}' |
        sed 's/@.*//' | grep -v '^VMFROST_' | sort)
    declared=$(sed -n 's/^VMFROST_API.* \**\(vmfrost_[a-z_]*\)(.*/\1/p;
                       s/^VMFROST_API.*[ *]\(vmfrost_[a-z_]*\)(.*/\1/p' include/vmfrost.h | sort -u)
    [ "$symbols" = "$declared" ] || {
        printf 'exported:\n%s\ndeclared:\n%s\n' "$symbols" "$declared"
        return 1
    }
}

keeps_flags() {
    run_make -n CFLAGS=-DUSERS_OWN -B build/release/src/util/mem.o | grep -q -- '-DUSERS_OWN'
}

nothing_left() {
    run_make uninstall && [ -z "$(find "$stage/usr" -type f -o -type l)" ]
}

check 'make install' run_make install
check 'the command runs' "$stage/usr/bin/vmfrost" version
check 'an example builds against the shared library' compile_shared
check 'and runs' runs "$stage/embed"
check 'an example builds against the static library' compile_static
check 'and runs' runs "$stage/embed-static"
check 'the header is C99 by itself' header_alone c cc -std=c99 -x c
check 'the header is C++ by itself' header_alone cc c++ -std=c++11 -x c++
check 'the shared library exports what the header declares' exports_only_api
check "the user's CFLAGS survive" keeps_flags
check 'make uninstall leaves nothing' nothing_left
echo "1..$count"
[ "$failed" -eq 0 ]
