#!/usr/bin/env bash
# libqcow calls a qcow2 image that LUKS encrypts unlocked, and reads bytes that are neither plain nor in the file.
#
# Versions: libqcow-python 20260703; qemu-img and qemu-io 10.0.2 make the image.
# One would guess: an encrypted image is locked until a key is given, or is refused by its method (crypt_method 2).
# What happens: open() succeeds without a key, is_locked() is False, and read_buffer() succeeds. What it returns is not the
#   ciphertext as it stands in the file either.
# Seen: "locked: False", "plain: False, ciphertext of the file: False"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check libqcow-python==20260703
secret="secret,id=s,data=abcdefgh"
qemu-img create -q -f qcow2 --object "$secret" \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 x.qcow2 4M
qemu-io --object "$secret" -c 'write -q -P 0x11 0 64k' --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=x.qcow2
cat > try.py <<'P'
import struct, sys
import pyqcow
f = open("x.qcow2", "rb").read()
l1 = struct.unpack_from(">Q", f, 40)[0]
l2 = struct.unpack_from(">Q", f, l1)[0] & 0x00FFFFFFFFFFFE00
host = struct.unpack_from(">Q", f, l2)[0] & 0x00FFFFFFFFFFFE00
disk = pyqcow.file()
disk.open("x.qcow2")
got = disk.read_buffer(65536)
seen = (disk.is_locked(), got == b"\x11" * 65536, got == f[host:host + 65536])
print("locked: %s\nplain: %s, ciphertext of the file: %s" % seen)
if len(got) != 65536 or seen != (False, False, False):
    sys.exit("changed: this is not what was seen with libqcow 20260703")
P
venv/bin/python try.py
