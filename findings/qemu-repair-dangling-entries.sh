#!/usr/bin/env bash
# qemu-img check -r all on a truncated image leaves entries behind its end, and later writes come to life under them.
#
# Versions: qemu-img and qemu-io 10.0.2.
# One would guess: after a repair either nothing refers to what is not there, or the image is not written any more; at least what is
#   written afterwards stays what it is.
# What happens: of an image that was cut off, with its refcount table damaged, `check -r all` ends with an error for what it cannot repair and leaves
#   the L2 entries that lead behind the end. New clusters are allocated there, so an old guest address and a new one share a host cluster, and a
#   write to the old one changes the new one, without an error.
# Seen: "repair: exit code 2; 0 new writes failed; 69 of 100 overwritten through old entries"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
qemu-img create -q -f qcow2 disk 64M
for n in $(seq 0 159); do echo "write -q -P $((n + 1)) $((n * 65536)) 65536"; done | qemu-io disk > log
truncate -s 6000000 disk
python3 -c '
import struct
f = open("disk", "r+b")
f.seek(48)
table, = struct.unpack(">Q", f.read(8))
f.seek(table)
f.write(bytes(8))'
repair=0; qemu-img check -r all disk > check.log 2>&1 || repair=$?
for n in $(seq 0 99); do echo "write -P $((n + 3)) $((31457280 + n * 65536)) 65536"; done > new
for n in $(seq 90 159); do echo "write -P 200 $((n * 65536)) 65536"; done > old
for n in $(seq 0 99); do echo "read -q -P $((n + 3)) $((31457280 + n * 65536)) 65536"; done > look
qemu-io disk < new > log 2>&1
failed=$(grep -c 'write failed' log || true)
qemu-io disk < old > log 2>&1 || true
wrong=$(qemu-io -r disk < look 2>&1 | grep -c 'verification failed' || true)
echo "repair: exit code $repair; $failed new writes failed; $wrong of 100 overwritten through old entries"
if ((failed != 0 || wrong < 10)); then
    echo "changed: this is not what was seen with QEMU 10.0.2"
    exit 1
fi
