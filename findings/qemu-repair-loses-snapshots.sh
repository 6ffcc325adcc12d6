#!/usr/bin/env bash
# A repair of a sound qcow2 image takes its internal snapshots away, as leaks, if an autoclear bit is set that QEMU does not know.
#
# Versions: QEMU 10.0.2.
# One would guess: an unknown autoclear bit is cleared by whoever writes the image, which is what these bits are for, and costs nothing else.
#   A check of the image finds no error.
# What happens: the header that clears the bit is written while the list of snapshots is not read yet, with a list of none. What the snapshots
#   alone refer to is counted down as leaked, the exit code is 0, and the check afterwards is content: so `-r leaks`, which is taken to be the
#   harmless one, and `-r all`. Opening the same image to write to it keeps the snapshots.
# Seen: "before: 1 snapshot, check 0; repaired: 0 snapshots, 4 leaked clusters, code 0; written instead: 1 snapshot"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
qemu-img create -q -f qcow2 disk.qcow2 1M
qemu-io -f qcow2 -c 'write -q -P 1 0 64k' disk.qcow2
qemu-img snapshot -c one disk.qcow2
qemu-io -f qcow2 -c 'write -q -P 2 0 64k' disk.qcow2
# the highest autoclear bit, of a program that is yet to be written
printf '\x80' | dd of=disk.qcow2 bs=1 seek=88 conv=notrunc status=none
cp disk.qcow2 written.qcow2
snapshots() { qemu-img snapshot -U -l "$1" | grep -c ' one ' || true; }
before=$(snapshots disk.qcow2)
qemu-img check -q disk.qcow2 && check=0 || check=$?
said=$(qemu-img check -r leaks disk.qcow2 2> /dev/null) && code=0 || code=$?
leaks=$(sed -n 's/^ *\([0-9]*\) leaked clusters$/\1/p' <<< "$said")
qemu-io -f qcow2 -c 'write -q -P 3 128k 64k' written.qcow2
seen="before: $before snapshot, check $check; repaired: $(snapshots disk.qcow2) snapshots, ${leaks:-0} leaked clusters, code $code;"
seen="$seen written instead: $(snapshots written.qcow2) snapshot"
echo "$seen"
[ "$seen" = "before: 1 snapshot, check 0; repaired: 0 snapshots, 4 leaked clusters, code 0; written instead: 1 snapshot" ] ||
    { echo "changed: not what was seen with QEMU 10.0.2"; exit 1; }
