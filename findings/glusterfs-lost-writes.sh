#!/usr/bin/env bash
# GlusterFS answers writes that no brick has, says so once by fsync, and the next fsync is 0 although they are lost.
#
# Versions: glusterfs-server 10.3 (root; installed if it is missing), a volume of three replicas with its default options, Linux 6.18,
#   python3. No glusterd may run before.
# One would guess: without a quorum a write fails; or, as it was answered and the descriptor stayed open, it goes out when the bricks are
#   back; or fsync goes on failing until the file is opened again.
# What happens: with two of three bricks gone writes are answered by the client's memory (performance.write-behind), fsync says
#   ENOTCONN, and forgets them. When the bricks are back, the next fsync of the same descriptor is 0, reads through the mount still give
#   the data, out of the page cache, and no brick has them. A program that retries fsync after an error believes what is not so.
# Seen: "two bricks gone: write 0, fsync ENOTCONN; back: fsync 0, the mount reads new, bricks have old old old"
set -euo pipefail
dir=$(mktemp -d)
name=finding$$
down() {
    umount -l "$dir/mount" 2> /dev/null || true
    gluster --mode=script volume stop $name force > /dev/null 2>&1 || true
    gluster --mode=script volume delete $name > /dev/null 2>&1 || true
    [ -s "$dir/pid" ] && kill "$(cat "$dir/pid")" 2> /dev/null || true
    rm -rf "$dir"
}
command -v glusterd > /dev/null || apt-get -qq -y --no-install-recommends install glusterfs-server=10.3-5 > "$dir/apt.log" 2>&1
if pgrep -r R,S,D -x glusterd > /dev/null; then
    rmdir "$dir"
    echo "a glusterd is running: this would be its volume too"
    exit 2
fi
trap down EXIT
cd "$dir"
mkdir brick1 brick2 brick3 mount
glusterd --pid-file="$dir/pid" --log-file="$dir/log"
for _ in $(seq 30); do gluster volume list > /dev/null 2>&1 && break; sleep 1; done
host=$(hostname -I | awk '{ print $1 }')
host=${host:-127.0.0.1}
gl() { gluster --mode=script volume "$@" > out 2>&1 || { cat out; exit 2; }; }
gl create $name replica 3 "$host:$dir/brick1/b" "$host:$dir/brick2/b" "$host:$dir/brick3/b" force
gl set $name network.ping-timeout 5
gl start $name
mount -t glusterfs "$host:/$name" "$dir/mount"
cat > lose.py <<'P'
import errno, os, subprocess, sys, time
host, name, folder = sys.argv[1:]
def attempt(call, *arguments):
    try:
        call(*arguments)
        return "0"
    except OSError as error:
        return errno.errorcode[error.errno]
def pid(brick):
    status = ["gluster", "volume", "status", name, "%s:%s/brick%d/b" % (host, folder, brick), "detail"]
    lines = subprocess.run(status, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(int(line.split()[2]) for line in lines if line.split()[:1] == ["Pid"])
def age(path):
    with open(path, "rb") as file:
        return {b"1": "old", b"2": "new"}[file.read(1)]
file = os.open("mount/file", os.O_RDWR | os.O_CREAT)
os.pwrite(file, b"1" * 4096, 0)
os.fsync(file)
for brick in 1, 2:
    os.kill(pid(brick), 9)
time.sleep(2)
gone = attempt(os.pwrite, file, b"2" * 4096, 0), attempt(os.fsync, file)
subprocess.run(["gluster", "--mode=script", "volume", "start", name, "force"], stdout=subprocess.DEVNULL, check=True)
for second in range(60): # until there is a quorum again
    time.sleep(1)
    if attempt(os.mkdir, "mount/%d" % second) == "0":
        break
back = attempt(os.fsync, file), age("mount/file")
bricks = " ".join(age("brick%d/b/file" % brick) for brick in (1, 2, 3))
print("two bricks gone: write %s, fsync %s; " % gone + "back: fsync %s, the mount reads %s, " % back + "bricks have " + bricks)
P
python3 lose.py "$host" $name "$dir" | tee seen
if [ "$(cat seen)" != "two bricks gone: write 0, fsync ENOTCONN; back: fsync 0, the mount reads new, bricks have old old old" ]; then
    echo "changed: this is not what was seen with glusterfs 10.3"
    exit 1
fi
