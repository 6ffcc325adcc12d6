#!/usr/bin/env bash
# qemu-img snapshot -c that is refused leaves a cluster that nobody refers to.
#
# Versions: qemu-img and qemu-io 10.0.2.
# One would guess: a snapshot that cannot be made leaves the image as it was.
# What happens: with refcounts of one bit no cluster can have two users, and "Invalid argument" is the answer. By then the copy of the L1 table was
#   allocated, and stays so: each attempt leaves one leaked cluster, and makes the file longer.
# Seen: "exit codes 1 1 1, snapshots 0, leaks 0 before and 3 after"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
qemu-img create -q -f qcow2 -o refcount_bits=1 disk 1M
qemu-io -c 'write -q 0 64k' disk
leaks() {
    qemu-img check --output=json disk 2> log | python3 -c 'import json, sys; print(json.load(sys.stdin).get("leaks", 0))'
}
before=$(leaks || true)
codes=
for n in 1 2 3; do
    code=0; qemu-img snapshot -c "s$n" disk > out 2>&1 || code=$?
    codes+="$code "
done
snapshots=$(qemu-img info --output=json disk | python3 -c 'import json, sys; print(len(json.load(sys.stdin).get("snapshots", [])))')
after=$(leaks || true)
echo "exit codes ${codes% }, snapshots $snapshots, leaks $before before and $after after"
if [[ $codes != "1 1 1 " || $snapshots != 0 || $before != 0 ]] || ((after < 1)); then
    echo "changed: this is not what was seen with QEMU 10.0.2"
    exit 1
fi
