#!/usr/bin/env bash
# file(1) calls every qcow2 disk of up to 512 MiB AES-encrypted, and an image that LUKS encrypts not.
#
# Versions: file 5.44; qemu-img 10.0.2 makes the images.
# One would guess: "AES-encrypted" is said of images that are encrypted.
# What happens: versions 2 and 3 have the number of L1 entries where version 1 has its cipher, and 1 is AES. A disk whose L1 table has one
#   entry (64 KiB clusters: up to 512 MiB) is called encrypted. A disk of 1 GiB that LUKS encrypts is not.
# Seen: "512M: AES-encrypted", "513M: no", "1G, LUKS: no"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
if ! file --version | grep -q '^file-5\.44$'; then
    apt-get -q download file=1:5.44-3 libmagic1=1:5.44-3 libmagic-mgc=1:5.44-3 > apt.log 2>&1
    for deb in *.deb; do dpkg -x "$deb" old; done
    file() { LD_LIBRARY_PATH=$(echo old/usr/lib/*-linux-gnu) command old/usr/bin/file -m old/usr/lib/file/magic.mgc "$@"; }
fi
qemu-img create -q -f qcow2 one 512M
qemu-img create -q -f qcow2 two 513M
qemu-img create -q -f qcow2 --object secret,id=s,data=abcdefgh \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks 1G
said=""
for image in one two luks; do
    if file "$image" | grep -q 'AES-encrypted'; then said+="yes "; else said+="no "; fi
done
echo "encrypted, says file: 512 MiB, 513 MiB, 1 GiB with LUKS: $said"
if [ "$said" != "yes no no " ]; then
    echo "changed: this is not what was seen with file 5.44"
    exit 1
fi
