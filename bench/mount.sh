#!/usr/bin/env bash
# `quod mount` beside qemu-storage-daemon's FUSE export: one full qcow2 image of 1 GiB, the same fio jobs on the file that each
# shows, in turns; the median of the rounds: requests a second, the 99th percentile, and the server's processor time a request.
# Needs /dev/fuse, fio, python3, qemu-img, qemu-io and qemu-storage-daemon, and a built quod (target/release/quod, or QUOD).
# usage: bench/mount.sh [--rounds N] [FOLDER]   the image's folder (/dev/shm)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROUNDS=5
[ "${1:-}" != --rounds ] || { ROUNDS=$2; shift 2; }
QUOD=$(realpath "${QUOD:-target/release/quod}")
SECONDS_EACH=3

die() { echo "mount: $*" >&2; exit 1; }
for tool in "$QUOD" fio python3 qemu-img qemu-io qemu-storage-daemon; do
    command -v "$tool" > /dev/null || die "$tool is needed"
done
[ -c /dev/fuse ] || die "there is no /dev/fuse"

WORK=$(mktemp -d "${1:-/dev/shm}/quod-mount-XXXXXX")
SERVER=
leave() {
    [ -z "$SERVER" ] || { kill "$SERVER" 2> /dev/null && wait "$SERVER" 2> /dev/null; } || true
    SERVER=
    umount "$WORK/disk" 2> /dev/null || fusermount3 -u "$WORK/disk" 2> /dev/null || true
}
trap 'leave; rm -rf "$WORK"' EXIT
cd "$WORK"
qemu-img create -q -f qcow2 image 1G
qemu-io -c 'write -P 5 0 1G' image > /dev/null
touch disk

begin() {
    case $1 in
        quod) "$QUOD" mount image disk > log 2>&1 & ;;
        qemu-storage-daemon)
            qemu-storage-daemon --blockdev driver=file,filename=image,node-name=file,aio=io_uring \
                --blockdev driver=qcow2,file=file,node-name=disk \
                --export type=fuse,id=disk,node-name=disk,mountpoint="$WORK/disk",writable=on > log 2>&1 & ;;
    esac
    SERVER=$!
    for _ in $(seq 100); do
        [ "$(stat -c %s disk)" = 0 ] || return 0
        sleep 0.05
    done
    die "$1 does not mount: $(cat log)"
}

# Clock ticks that the server has used.
ticks() { awk '{ print $14 + $15 }' "/proc/$SERVER/stat"; }

# server, name of the job, fio's options: a line of results
job() {
    local server=$1 name=$2 before after
    shift 2
    before=$(ticks)
    fio --name=job --filename=disk --size=1G --time_based --runtime=$SECONDS_EACH --direct=1 --ioengine=libaio \
        --output-format=json --output=report "$@" 2> /dev/null
    after=$(ticks)
    python3 - "$server" "$name" $((after - before)) "$(getconf CLK_TCK)" >> results << 'PYTHON'
import json, sys
server, name, ticks, hertz = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
job = json.load(open("report"))["jobs"][0]
if job["error"]:
    sys.exit(f"{server}, {name}: fio failed")
kind = job["read"] if job["read"]["total_ios"] else job["write"]
tail = kind["clat_ns"]["percentile"]["99.000000"] / 1e3
print(server, name, kind["iops"], tail, ticks / hertz * 1e6 / kind["total_ios"], sep="\t")
PYTHON
}

for round in $(seq "$ROUNDS"); do
    for server in quod qemu-storage-daemon; do
        begin $server
        job $server 'read 4 KiB, one at a time' --rw=randread --bs=4k --iodepth=1
        job $server 'read 4 KiB, 64 at once' --rw=randread --bs=4k --iodepth=64
        job $server 'write 4 KiB, 64 at once' --rw=randwrite --bs=4k --iodepth=64
        job $server 'read 1 MiB in order, 8 at once' --rw=read --bs=1M --iodepth=8
        leave
    done
    echo "round $round of $ROUNDS" >&2
done

python3 - << 'PYTHON'
from statistics import median
rows = {}
for line in open("results"):
    server, name, *numbers = line.rstrip("\n").split("\t")
    rows.setdefault(name, {}).setdefault(server, []).append([float(number) for number in numbers])
print("| job | server | requests a second | p99, us | processor time a request, us |")
print("| --- | --- | --- | --- | --- |")
for name, servers in rows.items():
    for server, results in servers.items():
        rate, tail, cpu = (median(column) for column in zip(*results))
        print(f"| {name} | {server} | {rate:,.0f} | {tail:,.0f} | {cpu:.1f} |")
PYTHON
