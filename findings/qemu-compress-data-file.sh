#!/usr/bin/env bash
# qemu-img convert -c into an image with a data file: without data it fails and says nothing.
#
# Versions: qemu-img 10.0.2.
# One would guess: what cannot be compressed is refused in words, and nothing is left of the target, or an empty disk needs no compression and is
#   converted.
# What happens: compressed clusters and an external data file exclude each other. With data in the source the first write says so. Of a source that
#   is all zeros the command ends with exit code 1 and not a word, and leaves image and data file, which are sound.
# Seen: "empty: exit code 1, 0 bytes on stderr, image left: yes, check 0; with data: exit code 1, 65 bytes"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
truncate -s 1M empty.raw
head -c 1M /dev/urandom > full.raw
empty=0; qemu-img convert -c -f raw -O qcow2 -o data_file=d empty.raw image > out 2> empty.log || empty=$?
left=no; check=-
if [[ -e image ]]; then
    left=yes
    check=0; qemu-img check -q image || check=$?
fi
full=0; qemu-img convert -c -f raw -O qcow2 -o data_file=e full.raw other > out 2> full.log || full=$?
said=$(stat -c %s empty.log)
echo "empty: exit code $empty, $said bytes on stderr, image left: $left, check $check; with data: exit code $full, $(stat -c %s full.log) bytes"
if [[ $empty != 1 || $said != 0 || $left != yes || $full != 1 || ! -s full.log ]]; then
    echo "changed: this is not what was seen with QEMU 10.0.2"
    exit 1
fi
