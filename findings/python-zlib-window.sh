#!/usr/bin/env bash
# The same zlib window takes a stream in C, and refuses it in Python's zlib: so dissect.hypervisor fails on sound qcow2 clusters.
#
# Versions: Python's zlib module (3.11), dissect.hypervisor 3.21; qemu-img 10.0.2 as the judge.
# One would guess: inflate with windowBits -12 (4 KiB, what the qcow2 format's reference uses) refuses distances beyond 4 KiB, or
#   takes them, wherever it is called from.
# What happens: zlib looks at the distance only when the bytes are no longer in the output buffer. qemu-img gives one buffer of a whole
#   cluster, so distances of 20,000 bytes are read. zlib.decompressobj(-12).decompress(data, limit) begins with a smaller buffer and makes
#   it larger in steps, and raises "invalid distance too far back"; so does dissect. With zlib.decompress(data, -12, size), one buffer, it is read.
# Seen: "qemu-img: right", "decompressobj: error -3", "one buffer: right", "dissect: error -3"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check dissect.hypervisor==3.21
cat > try.py <<'P'
import pathlib, random, struct, subprocess, sys, zlib
from dissect.hypervisor.disk.qcow2 import QCow2
C = 65536
block = random.Random(5).randbytes(20000)
data = (block * 4)[:C]
z = zlib.compressobj(9, zlib.DEFLATED, -15)
blob = z.compress(data) + z.flush()
f = bytearray(6 * C)
struct.pack_into(">IIQIIQIIQQIIQ", f, 0, 0x514649FB, 3, 0, 0, 16, C, 0, 1, 3 * C, C, 1, 0, 0)
struct.pack_into(">QQQII", f, 72, 0, 0, 0, 4, 104)
struct.pack_into(">Q", f, C, 2 * C)
for n in range(6):
    struct.pack_into(">H", f, 2 * C + 2 * n, 1)
struct.pack_into(">Q", f, 3 * C, 1 << 63 | 4 * C)
struct.pack_into(">Q", f, 4 * C, 1 << 62 | (len(blob) - 1) // 512 << 54 | 5 * C)
f[5 * C:5 * C + len(blob)] = blob
open("x.qcow2", "wb").write(f)
open("x.raw", "wb").write(data)

def tried(call):
    try:
        return "right" if call() == data else "wrong"
    except zlib.error as error:
        return "error -3" if "invalid distance too far back" in str(error) else str(error)

judge = subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", "x.qcow2", "x.raw"])
seen = [
    "wrong" if judge.returncode else "right",
    tried(lambda: zlib.decompressobj(-12).decompress(blob, C)),
    tried(lambda: zlib.decompress(blob, -12, C)),
    tried(lambda: QCow2(pathlib.Path("x.qcow2")).open().read(C)),
]
print("qemu-img: %s\ndecompressobj: %s\none buffer: %s\ndissect: %s" % tuple(seen))
if seen != ["right", "error -3", "right", "error -3"]:
    sys.exit("changed: this is not what was seen with Python 3.11 and dissect.hypervisor 3.21")
P
venv/bin/python try.py
