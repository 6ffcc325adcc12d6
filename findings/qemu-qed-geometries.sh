#!/usr/bin/env bash
# QEMU creates QED images that it cannot open, and refuses to create any with clusters of 4 MiB and more.
#
# Versions: qemu-img 10.0.2.
# One would guess: the option list gives table_size=1 to 16 and cluster sizes up to 64 MiB, so all of these can be created, and what was created opens.
# What happens: with table_size=1 create ends with 0, and every opening with "QED table offset is invalid". With clusters of 4 MiB or more and default
#   tables the largest disk size wraps to 0, and create refuses any size as not "less than 0 bytes".
# Seen: "table_size=1: created, not opened", "cluster_size=4M: less than 0 bytes", "2M: opened"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
qemu-img create -q -f qed -o table_size=1 one 64M
one=opened; qemu-img info one > log 2>&1 || one="not opened"
grep -q 'QED table offset is invalid' log && one+=", table offset"
four=created; qemu-img create -q -f qed -o cluster_size=4M four 64M > log 2>&1 || four=refused
grep -q 'less than 0 bytes' log && four+=", less than 0 bytes"
qemu-img create -q -f qed -o cluster_size=2M two 64M
two=opened; qemu-img info two > log 2>&1 || two="not opened"
seen="table_size=1: $one; cluster_size=4M: $four; 2M: $two"
echo "$seen"
if [ "$seen" != "table_size=1: not opened, table offset; cluster_size=4M: refused, less than 0 bytes; 2M: opened" ]; then
    echo "changed: this is not what was seen with QEMU 10.0.2"
    exit 1
fi
