#!/usr/bin/env bash
# NBD servers side by side, one client: bench/nbd.sh FOLDER [SECONDS] [ROUNDS]
#
# An image of random bytes in FOLDER, served by quod, qemu-nbd, qemu-storage-daemon (qcow2) and nbdkit (the same as a raw file) over a UNIX
# socket; fio's nbd engine is the client. Each run has a copy of its own, which is in the page cache (a clone would not be). Servers take
# turns, ROUNDS times; the table has the median of throughput and p99, and the processor
# time a request of server and client. QUOD: the command (default: the release build of this tree). SIZE: MiB of the image (512).
# Needs qemu-utils, qemu-storage-daemon, nbdkit, libnbd-bin, fio, python3.
set -euo pipefail
folder=${1:?a folder to work in}
seconds=${2:-3}
rounds=${3:-3}
size=${SIZE:-512}
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
quod=${QUOD:-$top/target/release/quod}
[ -x "$quod" ] || cargo build --release --manifest-path "$top/Cargo.toml" -p quod-cli
cd "$folder"
head -c "${size}M" /dev/urandom > nbd-base.raw
qemu-img convert -f raw -O qcow2 nbd-base.raw nbd-base.qcow2
trap 'rm -f nbd-base.* nbd-run.* nbd.sock nbd-results' EXIT
: > nbd-results

serve() {
    case $1 in
    quod) exec "$quod" serve nbd -k nbd.sock nbd-run.qcow2 > /dev/null ;;
    quod-direct) exec "$quod" serve nbd --direct -k nbd.sock nbd-run.qcow2 > /dev/null ;;
    qemu-nbd) exec qemu-nbd -k "$PWD/nbd.sock" -t -f qcow2 -e 64 nbd-run.qcow2 ;;
    qemu-nbd-direct) exec qemu-nbd -k "$PWD/nbd.sock" -t -f qcow2 -e 64 --cache=none --aio=io_uring nbd-run.qcow2 ;;
    storage-daemon*)
        direct=off
        [ "$1" = storage-daemon ] || direct=on
        exec qemu-storage-daemon --blockdev "driver=file,filename=nbd-run.qcow2,node-name=f,aio=io_uring,cache.direct=$direct" \
            --blockdev "driver=qcow2,file=f,node-name=q,cache.direct=$direct" --nbd-server addr.type=unix,addr.path=nbd.sock \
            --export type=nbd,id=e,node-name=q,writable=on,name= ;;
    nbdkit) exec nbdkit -f -U nbd.sock file nbd-run.raw ;;
    esac
}

ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

run() {
    local server=$1 rw=$2 bs=$3 depth=$4 form=qcow2 pid before after
    [ "$server" != nbdkit ] || form=raw
    rm -f nbd.sock nbd-run.*
    cp --reflink=never "nbd-base.$form" "nbd-run.$form"
    # else the copy is written back while it is measured
    sync "nbd-run.$form"
    serve "$server" &
    pid=$!
    while [ ! -S nbd.sock ]; do sleep 0.05; done
    sleep 0.2
    before=$(ticks "$pid")
    fio --name=nbd --ioengine=nbd "--uri=nbd+unix:///?socket=nbd.sock" "--rw=$rw" "--bs=$bs" "--size=${size}M" "--iodepth=$depth" \
        --time_based "--runtime=$seconds" --randrepeat=1 --norandommap --output-format=json > nbd-run.json
    after=$(ticks "$pid")
    kill "$pid"
    wait "$pid" || true
    echo "$rw $bs $depth $server $((after - before)) $(python3 -c '
import json
text = open("nbd-run.json").read()
job = json.loads(text[text.index("{"):])["jobs"][0]
kind = job["read"] if job["read"]["total_ios"] else job["write"]
seconds = kind["runtime"] / 1000
cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds
print(kind["total_ios"], seconds, kind["clat_ns"]["percentile"]["99.000000"] / 1000, cpu)')" >> nbd-results
}

for _ in $(seq "$rounds"); do
    for work in ${WORK:-randread:4k:64 randwrite:4k:64 randread:4k:1 read:256k:16 write:256k:16}; do
        IFS=: read -r rw bs depth <<< "$work"
        for server in ${SERVERS:-quod qemu-nbd storage-daemon nbdkit quod-direct qemu-nbd-direct storage-daemon-direct}; do
            run "$server" "$rw" "$bs" "$depth"
        done
    done
done
python3 - <<'E2'
import os, statistics
rows = {}
for line in open("nbd-results"):
    rw, bs, depth, server, ticks, ios, seconds, p99, cpu = line.split()
    rows.setdefault((f"{rw} {bs}, depth {depth}", server), []).append(
        (float(ios) / float(seconds), float(p99), int(ticks) / os.sysconf("SC_CLK_TCK") * 1e6 / float(ios), float(cpu) * 1e6 / float(ios)))
print("| work | server | requests/s | p99, us | server, us a request | client, us |\n| --- | --- | ---: | ---: | ---: | ---: |")
for (work, server), runs in rows.items():
    median = [statistics.median(run[n] for run in runs) for n in range(4)]
    print(f"| {work} | {server} | {median[0]:,.0f} | {median[1]:,.0f} | {median[2]:.1f} | {median[3]:.1f} |")
E2
