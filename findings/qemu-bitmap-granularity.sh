#!/usr/bin/env bash
# The granularity of a dirty bitmap is cut to 32 bits before it is looked at.
#
# Versions: QEMU 10.0.2.
# One would guess: `-g` with 4 GiB and 64 KiB is refused like 4 GiB is, as no power of 2, or beyond the largest granularity of 2 GiB.
# What happens: 64 KiB are left of it, the bitmap is made with that, and the exit code is 0. Of 4 GiB nothing is left, which is refused as
#   no power of 2, though it is one. A backup that plans with what it asked for has another bitmap.
# Seen: "4294967296: code 1; 4295032832: code 0, granularity 65536"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
qemu-img create -q -f qcow2 disk.qcow2 64M
ask() { qemu-img bitmap --add -g "$1" disk.qcow2 "$2" > /dev/null 2>&1 && echo 0 || echo $?; }
seen="4294967296: code $(ask 4294967296 one); 4295032832: code $(ask 4295032832 two),"
seen="$seen granularity $(qemu-img info disk.qcow2 | sed -n 's/^ *granularity: //p')"
echo "$seen"
[ "$seen" = "4294967296: code 1; 4295032832: code 0, granularity 65536" ] || { echo "changed: not what was seen with QEMU 10.0.2"; exit 1; }
