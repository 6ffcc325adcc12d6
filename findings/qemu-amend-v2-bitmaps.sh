#!/usr/bin/env bash
# An image with persistent bitmaps is amended to version 2: the bitmaps are gone, their clusters are leaked, and nothing is said.
#
# Versions: QEMU 10.0.2.
# One would guess: it is refused, as it is for other things that version 2 has not (wide refcounts, a dirty image, extended entries); or the
#   bitmaps are removed, with their clusters.
# What happens: exit code 0 and no word. The header of version 2 has no autoclear bits, so every later opening warns that the bitmaps "must all
#   be considered inconsistent"; `info` shows none, `bitmap --remove` finds none, and the first write leaves their clusters leaked.
# Seen: "amended: code 0, 0 bytes said; bitmaps before 1, after 0; leaked after a write: 2 clusters"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
bitmaps() { qemu-img info "$1" 2> /dev/null | grep -c 'granularity:' || true; }
qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-img bitmap --add disk.qcow2 monday
before=$(bitmaps disk.qcow2)
said=$(qemu-img amend -f qcow2 -o compat=0.10 disk.qcow2 2>&1) && code=0 || code=$?
seen="amended: code $code, ${#said} bytes said; bitmaps before $before, after $(bitmaps disk.qcow2);"
qemu-io -f qcow2 -c 'write -q 0 64k' disk.qcow2 2> /dev/null
leaked=$(qemu-img check disk.qcow2 2> /dev/null | sed -n 's/^\([0-9]*\) leaked clusters.*/\1/p') || true
seen="$seen leaked after a write: ${leaked:-0} clusters"
echo "$seen"
[ "$seen" = "amended: code 0, 0 bytes said; bitmaps before 1, after 0; leaked after a write: 2 clusters" ] ||
    { echo "changed: not what was seen with QEMU 10.0.2"; exit 1; }
