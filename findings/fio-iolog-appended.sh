#!/usr/bin/env bash
# fio: a second run with the same write_iolog= appends a second log to the file, header and all, and read_iolog= plays both.
#
# Versions: fio 3.33 (Debian 3.33-3; the installed one, if it is that).
# One would guess: the log of a run is the log of that run; or a second header line in the middle of a file is an error.
# What happens: the file has two header lines and times that begin at 0 again; playing it, fio says "bad iolog3" and does the writes of both runs. In the log a
#   `sync` has the offset of the write before it.
# Seen: "2 headers, 6 writes played of 3 a run, sync at the offset of the write before"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
if [ "$(fio --version 2> /dev/null || true)" != fio-3.33 ]; then
    mkdir -p debs/partial root
    apt-get -qq -y --no-install-recommends -d -o Dir::Cache::archives="$dir/debs" install fio=3.33-3 > apt.log 2>&1
    for deb in debs/*.deb; do dpkg -x "$deb" root; done
    LD_LIBRARY_PATH=$(find "$dir/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    export LD_LIBRARY_PATH PATH="$dir/root/usr/bin:$PATH"
fi
for run in 1 2; do
    fio --name=x --filename=disk --size=64k --bs=4k --rw=write --number_ios=3 --fsync=2 --write_iolog=log --output="run$run"
done
headers=$(grep -c '^fio version 3 iolog$' log)
sync=$(awk '$3 == "sync" {print $4; exit}' log)
fio --name=x --read_iolog=log --ioengine=psync --filename=disk --size=64k --output-format=json --output=played
writes=$(python3 -c 'import json; print(json.load(open("played"))["jobs"][0]["write"]["total_ios"])')
echo "$headers headers, $writes writes played of 3 a run, the first sync is at $sync"
if [ "$headers $writes $sync" != "2 6 4096" ]; then
    echo "changed: this is not what was seen with fio 3.33"
    exit 1
fi
