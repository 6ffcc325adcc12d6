#!/usr/bin/env bash
# qemu-img create -o preallocation=metadata on a block device: the new disk reads as what the device held before.
#
# Versions: qemu-img and qemu-io 10.0.2; a loop device stands for any (root).
# One would guess: a new disk reads as zeros, as it does with the same option in a file; or the option is refused, as
#   preallocation=falloc and full are on a device.
# What happens: every cluster is mapped, nothing is zeroed, and the exit code is 0. In a file the new clusters lie in a hole. So a
#   guest that gets such a disk on a used logical volume reads its last user's bytes.
# Seen: "in a file: zeros; on a device: the old bytes"
set -euo pipefail
dir=$(mktemp -d)
trap 'losetup -d "$loop" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
head -c 64M /dev/zero | tr '\0' '\356' > back
loop=$(losetup -f --show back)
reads() { [[ $(qemu-io -r -f qcow2 -c "read -P $2 1M 1M" "$1" 2>&1) != *"verification failed"* ]]; }
tell() { if reads "$1" 0; then echo zeros; elif reads "$1" 0xee; then echo the old bytes; else echo something else; fi; }
qemu-img create -q -f qcow2 -o preallocation=metadata image.qcow2 16M
qemu-img create -q -f qcow2 -o preallocation=metadata "$loop" 16M
said="in a file: $(tell image.qcow2); on a device: $(tell "$loop")"
echo "$said"
if [ "$said" != "in a file: zeros; on a device: the old bytes" ]; then
    echo "changed: this is not what was seen with qemu-img 10.0.2"
    exit 1
fi
