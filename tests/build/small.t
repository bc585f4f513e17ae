#!/bin/sh
# The builds for appliances: as small as promised, and what they need.
set -u
cd "$(dirname "$0")/../.." || exit 1

count=0

ok() { # STATUS NAME: passes if the status is 0
    count=$((count + 1))
    if [ "$1" -eq 0 ]; then
        echo "ok $count - $2"
    else
        echo "not ok $count - $2"
    fi
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

build() {
    env -u MAKEFLAGS -u MAKELEVEL -u VARIANT make --no-print-directory "-j$(nproc)" "$1" >"$log" 2>&1
    ok $? "make $1"
    grep -iE 'error|No rule' "$log" | sed 's/^/# /'
}

build small
size=$(stat -c %s build/small/vmfrost)
[ "$size" -lt $((400 * 1024)) ]
ok $? "the command with the library in it takes less than 400 KiB: $size bytes"

build static
LC_ALL=C readelf --program-headers build/static/vmfrost >"$log"
! grep -q INTERP "$log"
ok $? "nothing else is needed to run it: $(stat -c %s build/static/vmfrost) bytes"

for variant in small static; do
    VMFROST=$PWD/build/$variant/vmfrost tests/qemu/trace.t >"$log" 2>&1
    ok $? "$variant: takes a snapshot (tests/qemu/trace.t)"
done

echo "1..$count"
