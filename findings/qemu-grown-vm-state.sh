#!/usr/bin/env bash
# A qcow2 image with a VM state is made larger: the guest finds the state of the machine on its disk.
#
# Versions: QEMU 10.0.2.
# One would guess: what a disk grows by reads as zeros, as qemu-img's manual and every guest take it to.
# What happens: the state lies behind the disk, in entries of the same L1 table, from the next L2 table on. A resize sets the size and leaves
#   the entries: from 512 MiB on (clusters of 64 KiB) the disk shows what was saved of memory. So after `write -b` of qemu-io, or after
#   applying a snapshot that has a VM state, whose tables come to be the disk's.
# Seen: "512 MiB behind a disk of 64 MiB: zeros before, 07 after"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-io -f qcow2 -c 'write -q -b -P 7 0 64k' disk.qcow2
qemu-img create -q -f qcow2 empty.qcow2 64M
qemu-img resize -q empty.qcow2 1G
qemu-img resize -q disk.qcow2 1G
# an image without a state beside it
before=other
if qemu-io -f qcow2 -c 'read -q -P 0 512M 64k' empty.qcow2 > /dev/null; then before=zeros; fi
after=other
if qemu-io -f qcow2 -c 'read -q -P 7 512M 64k' disk.qcow2 > /dev/null; then after=07; fi
said="512 MiB behind a disk of 64 MiB: $before before, $after after"
echo "$said"
[ "$said" = "512 MiB behind a disk of 64 MiB: zeros before, 07 after" ] || { echo "changed: not what was seen with QEMU 10.0.2"; exit 1; }
