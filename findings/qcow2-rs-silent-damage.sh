#!/usr/bin/env bash
# qcow2-rs: what it does beside an internal snapshot, with refcounts of 2 and 4 bits, to a bitmap, and behind the end of a backing file.
#
# Versions: qcow2-rs 0.1.6; qemu-img and qemu-io 10.0.2 make and judge the images.
# One would guess: an image that opens for writing is written as its format says, or what the library does not know is refused.
# What happens, each without an error:
#   * 512 bytes written into a cluster that a snapshot shares change the snapshot too, and the rest of the cluster is zeros in both;
#   * a new image with refcounts of 4 bits has the first at the wrong end of the byte: check has two errors and two leaks;
#   * a persistent bitmap stays valid, records nothing, and check is clean: the next incremental backup misses the write;
#   * a read behind the end of a shorter backing file leaves the caller's buffer as it was.
# Seen: "snapshot: 65024 bytes of 1 are 0, 512 are 238", "4 bits: exit code 2", "bitmap: still valid, check 0",
#   "buffer of 0x77: 512 bytes are still 0x77"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cargo -q new --vcs none trial
cd trial
cat > Cargo.toml <<'T'
[package]
name = "trial"
version = "0.0.0"
edition = "2021"
[dependencies]
qcow2-rs = "=0.1.6"
tokio = { version = "=1.47.1", features = ["full"] }
T
cat > src/main.rs <<'R'
use qcow2_rs::{dev::Qcow2DevParams, helpers::Qcow2IoBuf, utils};

fn filled(byte: u8) -> Qcow2IoBuf<u8> {
    let mut bytes = Qcow2IoBuf::<u8>::new(512);
    bytes.iter_mut().for_each(|b| *b = byte);
    bytes
}

#[tokio::main]
async fn main() {
    for name in ["../snapshot.qcow2", "../bitmap.qcow2"] {
        let params = Qcow2DevParams::new(9, None, None, false, false);
        let disk = utils::qcow2_setup_dev_tokio(name.as_ref(), &params).await.unwrap();
        disk.write_at(&filled(238), 65536).await.unwrap();
        disk.flush_meta().await.unwrap();
    }
    let params = Qcow2DevParams::new(9, None, None, true, false);
    std::env::set_current_dir("..").unwrap();
    let disk = utils::qcow2_setup_dev_tokio("over.qcow2".as_ref(), &params).await.unwrap();
    let mut bytes = filled(0x77);
    disk.read_at(&mut bytes, 2 << 20).await.unwrap();
    let same = bytes.iter().filter(|b| **b == 0x77).count();
    std::fs::write("same", format!("{same}")).unwrap();
    let four = utils::make_temp_qcow2_img(64 << 20, 16, 2);
    std::fs::copy(four.path(), "four.qcow2").unwrap();
}
R
cargo build -q
cd ..
qemu-img create -q -f qcow2 snapshot.qcow2 64M
qemu-io -c 'write -q -P 1 0 1M' snapshot.qcow2
qemu-img snapshot -c one snapshot.qcow2
qemu-img create -q -f qcow2 bitmap.qcow2 64M
qemu-img bitmap --add bitmap.qcow2 b
qemu-img create -q -f qcow2 base.qcow2 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2 4M
(cd trial && cargo run -q)
qemu-img convert -l one -O raw snapshot.qcow2 one.raw
head -c 1M one.raw > one
zeros=$(tr -d '\001\356' < one | wc -c)
new=$(tr -d '\001\000' < one | wc -c)
four=0; qemu-img check -q four.qcow2 > four.log 2>&1 || four=$?
bitmap=0; qemu-img check -q bitmap.qcow2 > bitmap.log 2>&1 || bitmap=$?
kept=$(qemu-img info bitmap.qcow2 | grep -c 'name: b$' || true)
lost=$(qemu-img info bitmap.qcow2 | grep -c 'in-use\|inconsistent' || true)
seen="snapshot: $zeros zeros, $new new; 4 bits: $four; bitmap: check $bitmap, there $kept, inconsistent $lost; buffer: $(cat same)"
echo "$seen"
if [ "$seen" != "snapshot: 65024 zeros, 512 new; 4 bits: 2; bitmap: check 0, there 1, inconsistent 0; buffer: 512" ]; then
    echo "changed: this is not what was seen with qcow2-rs 0.1.6"
    exit 1
fi
