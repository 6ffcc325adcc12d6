#!/usr/bin/env bash
# qemu-img rebase without a backing format copies all that differs into the overlay, and refuses then.
#
# Versions: qemu-img and qemu-io 10.0.2.
# One would guess: that the option -F is missing is known from the command line, so nothing is done.
# What happens: the data are compared and copied first, for as long as that takes, and the image gets larger by it. Only the change of the header is
#   refused ("backing format must be specified"). The disk reads as before, over its old backing file.
# Seen: "exit code 1; clusters of the overlay: 0 before, 16 after; backing file a.raw"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
truncate -s 4M a.raw b.raw
qemu-io -f raw -c 'write -q -P 7 0 1M' a.raw
qemu-img create -q -f qcow2 -b a.raw -F raw overlay
clusters() {
    qemu-img map --output=json overlay | python3 -c '
import json, sys
print(sum(part["length"] for part in json.load(sys.stdin) if part["depth"] == 0) // 65536)'
}
before=$(clusters)
code=0; qemu-img rebase -b b.raw overlay > log 2>&1 || code=$?
after=$(clusters)
backing=$(qemu-img info --output=json overlay | python3 -c 'import json, sys; print(json.load(sys.stdin)["backing-filename"])')
echo "exit code $code; clusters of the overlay: $before before, $after after; backing file $backing"
if [[ $code != 1 || $before != 0 || $after != 16 || $backing != a.raw ]]; then
    echo "changed: this is not what was seen with QEMU 10.0.2"
    cat log
    exit 1
fi
