#!/usr/bin/env bash
# The crate qcow reads an overlay, and an image with an external data file, as if what it does not follow were zeros.
#
# Versions: qcow 1.2.0 (with cmake 4.4.5 for what it builds); qemu-img and qemu-io 10.0.2 make the images.
# One would guess: it has a backing reader, so overlays are read; the data file is an incompatible feature bit, which a reader refuses or knows.
# What happens: clusters that the overlay has not are zeros, though the backing file lies beside it; offsets into the data file
#   are read from the image instead. No error in either case.
# Seen: "overlay: own data right, backing data zeros", "data file: not its bytes, no error"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check cmake==4.4.5
PATH="$dir/venv/bin:$PATH"
cargo -q new --vcs none trial
cd trial
cat > Cargo.toml <<'T'
[package]
name = "trial"
version = "0.0.0"
edition = "2021"
[dependencies]
qcow = "=1.2.0"
T
cat > src/main.rs <<'R'
use std::io::Read;

fn main() {
    for name in ["over", "data"] {
        let qcow2 = qcow::open(format!("{name}.qcow2")).unwrap().unwrap_qcow2();
        let mut file = std::fs::File::open(format!("{name}.qcow2")).unwrap();
        let mut bytes = vec![0xee; 1 << 20];
        qcow2.reader(&mut file).read_exact(&mut bytes).unwrap();
        std::fs::write(format!("{name}.out"), bytes).unwrap();
    }
}
R
cargo build -q
cd ..
qemu-img create -q -f raw base.raw 1M
qemu-io -f raw -c 'write -q -P 1 0 1M' base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2
qemu-io -c 'write -q -P 2 0 64k' over.qcow2
qemu-img create -q -f qcow2 -o data_file=data.raw data.qcow2 1M
qemu-io -c 'write -q -P 3 0 1M' data.qcow2
cargo run -q --manifest-path trial/Cargo.toml
own=$(tr -d '\000\001' < over.out | wc -c)
below=$(tr -d '\000\002' < over.out | wc -c)
data=$(tr -dc '\003' < data.out | wc -c)
echo "overlay: $own bytes of its own, $below of the backing file's 983040; data file: $data of 1048576"
if [ "$own $below" != "65536 0" ] || [ "$data" -ge 1048576 ]; then
    echo "changed: this is not what was seen with qcow 1.2.0"
    exit 1
fi
