#!/usr/bin/env bash
# QEMU: a relative external data file is looked for in the working directory, a relative backing file beside the image.
#
# Versions: qemu-img and qemu-io 10.0.2.
# One would guess: both names stand in the image's header, and both are relative to the image.
# What happens: `create -o data_file=NAME` makes NAME in the working directory, and every opening looks for it in the working directory. The
#   same image has other contents from another directory, if there is a file of that name, without a word. A backing name is
#   relative to the image, in the same version and the same commands.
# Seen: "from above: 5s; from the image's folder: zeros; backing file: found from both"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir sub
qemu-img create -q -f qcow2 -o data_file=data.raw sub/disk.qcow2 1M
qemu-io -c 'write -q -P 5 0 1M' sub/disk.qcow2
[ -s data.raw ] && [ ! -e sub/data.raw ] && echo "created in the working directory"
truncate -s 1M sub/data.raw
above=wrong; qemu-io -r -c 'read -P 5 0 1M' sub/disk.qcow2 | grep -q failed || above=5s
inside=wrong; (cd sub; qemu-io -r -c 'read -P 0 0 1M' disk.qcow2) | grep -q failed || inside=zeros
qemu-img create -q -f raw sub/base.raw 1M
qemu-img create -q -f qcow2 -b base.raw -F raw sub/over.qcow2
backing=found; qemu-img info sub/over.qcow2 > log || backing=missing
(cd sub; qemu-img info over.qcow2 > ../log) || backing=missing
seen="from above: $above; from the image's folder: $inside; backing file: $backing from both"
echo "$seen"
if [ "$seen" != "from above: 5s; from the image's folder: zeros; backing file: found from both" ]; then
    echo "changed: this is not what was seen with QEMU 10.0.2"
    exit 1
fi
