#!/usr/bin/env bash
# fio: `wait` in an iolog of version 2 is a moment in milliseconds since the start, not a time in microseconds since the last wait.
#
# Versions: fio 3.33 (Debian 3.33-3; the installed one, if it is that).
# One would guess, and the manual says: "Wait for `offset` microseconds. [...] The time is relative to the previous `wait` statement."
# What happens: four lines `wait 500` end half a second after the start, together; 500, 1000, 1500, 2000 end after two seconds. By the
#   manual both would be done in some milliseconds.
# Seen: "4 x 500: 0.5 s, 500 to 2000: 2.0 s" (to about 0.3 s)
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
truncate -s 1M disk
log() {
    printf 'fio version 2 iolog\ndisk add\ndisk open\n'
    for moment in "$@"; do printf 'disk write 0 4096\ndisk wait %s 0\n' "$moment"; done
    printf 'disk write 4096 4096\ndisk close\n'
}
took() {
    local begin=$(date +%s%N)
    fio --name=x --read_iolog="$1" --ioengine=psync --filename=disk --output=fio.log
    echo $((($(date +%s%N) - begin) / 1000000))
}
log > none; log 500 500 500 500 > same; log 500 1000 1500 2000 > rising
none=$(took none)
same=$(($(took same) - none)); rising=$(($(took rising) - none))
echo "without waits $none ms; 4 x 500: $same ms more; 500 to 2000: $rising ms more"
if ((same < 150 || same > 1200 || rising < 1400 || rising > 3000)); then
    echo "changed: this is not what was seen with fio 3.33"
    exit 1
fi
