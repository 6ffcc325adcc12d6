#!/usr/bin/env bash
# A Linux guest on quod: bench/guest.sh [vhost-user|kill|nbd ...]   (default: all three, under two minutes)
#
# QEMU boots Debian's cloud kernel under TCG with an initramfs of busybox, e2fsprogs and fio, and a qcow2 image as its disk: served by
# `quod serve vhost-user`; by the same, killed by -9 in the middle of fio and started again, three times; by `quod serve nbd`. The guest makes
# a file system, writes files with fsync, trims, lets fio write and verify checksums, unmounts and checks it, and sees the disk grow while it
# runs (vhost-user); then `qemu-img check` does. The servers are confined.
# QUOD: the command (default: the release build of this tree). GUEST: a folder to work in, in which the kernel and the initramfs stay
# (default: target/guest). Needs qemu-system-x86_64 of the same release as qemu-img, busybox (static), e2fsprogs, fio, and on Debian
# the kernel's package, which is downloaded, not installed (or KERNEL and MODULES: a kernel and its /lib/modules/RELEASE).
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
quod=$(realpath "${QUOD:-$top/target/release/quod}")
work=${GUEST:-$top/target/guest}
mkdir -p "$work"
cd "$work"
PATH=$PATH:/usr/sbin:/sbin

die() {
    echo "guest: $*" >&2
    exit 1
}

for tool in qemu-system-x86_64 qemu-img busybox mkfs.ext4 e2fsck fio; do
    command -v "$tool" > /dev/null || die "$tool is not installed"
done
[ -x "$quod" ] || die "no $quod: cargo build --release -p quod-cli"

# The kernel of Debian's package for clouds, unpacked here.
fetch_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null | awk '/Depends: linux-image/ { print $2; exit }')
    [ -n "$package" ] || die "no package linux-image-cloud-amd64 (apt-get update?): name a kernel by KERNEL and MODULES"
    rm -rf kernel.new && mkdir kernel.new
    (cd kernel.new && apt-get -qq download "$package" 2> /dev/null && dpkg-deb -x ./*.deb . && rm ./*.deb) ||
        die "the package $package could not be downloaded"
    mv kernel.new kernel
}

# A program with all that it is linked to.
put() {
    local program=$1 library
    cp -L "$(command -v "$program")" "root/bin/"
    ldd "$(command -v "$program")" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "root$(dirname "$library")"
        cp -Ln "$library" "root$library"
    done
}

make_initramfs() {
    local name
    rm -rf root && mkdir -p root/{bin,dev,proc,sys,mnt,tmp,modules}
    cp -L "$(command -v busybox)" root/bin/busybox
    put mkfs.ext4
    put e2fsck
    put fio
    for name in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
        find "$modules" -name "$name.ko*" -exec cp {} root/modules/ \;
    done
    cat > root/init << 'INIT'
#!/bin/busybox sh
# What the guest does: the disk is /dev/vda.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for pass in 1 2 3 4 5 6; do
    for module in /modules/*.ko; do insmod $module 2> /dev/null; done
done
say() { echo "GUEST $(cut -d' ' -f1 /proc/uptime): $*"; }
must() { "$@" > /tmp/told 2>&1 || { say "FAILED: $*"; cat /tmp/told; dmesg | tail -n 20; poweroff -f; }; }
until [ -b /dev/vda ]; do sleep 0.1; done
say "disk of $(cat /sys/block/vda/size) sectors, $(ls /sys/block/vda/mq | wc -l) queues, id $(cat /sys/block/vda/serial)"
must mkfs.ext4 -q /dev/vda
must mount -t ext4 -o discard /dev/vda /mnt
say "file system made"
for n in 1 2 3 4 5 6 7 8; do
    must dd if=/dev/urandom of=/mnt/file$n bs=64k count=$((n * 4)) conv=fsync
    md5sum /mnt/file$n >> /mnt/sums
done
must rm /mnt/file3 /mnt/file7
sed -i '/file[37]/d' /mnt/sums
sync
must fstrim -v /mnt
say "trimmed: $(cat /tmp/told)"
say "fio begins"
# again and again until it has taken so many seconds: once on a slow machine
uptime() { cut -d. -f1 /proc/uptime; }
until=$(($(uptime) + seconds)) times=0
while [ $times = 0 ] || [ $(uptime) -lt $until ]; do
    must fio --name=verify --directory=/mnt --size=${size}M --rw=randrw --rwmixread=30 --bsrange=4k-64k --ioengine=libaio --iodepth=16 --direct=1 \
        --verify=crc32c --verify_backlog=64 --fsync=50 --verify_fatal=1 --norandommap=0
    times=$((times + 1))
done
say "fio ends, $times times"
echo 3 > /proc/sys/vm/drop_caches
must md5sum -c /mnt/sums
must umount /mnt
must e2fsck -fn /dev/vda
say "checked: $(tail -n 1 /tmp/told)"
# the disk grows while the machine runs, if it was said so
sectors=$(cat /sys/block/vda/size)
if [ "$grows" = 1 ]; then
    say "waits for a larger disk"
    until [ $(cat /sys/block/vda/size) -gt $sectors ]; do sleep 0.1; done
    say "disk of $(cat /sys/block/vda/size) sectors"
    must dd if=/dev/urandom of=/dev/vda bs=64k seek=$((sectors / 128)) count=1 conv=fsync
fi
say "ALL GOOD"
poweroff -f
INIT
    chmod +x root/init
    (cd root && find . | busybox cpio -o -H newc 2> /dev/null) > initramfs.new
    mv initramfs.new initramfs
    rm -rf root
}

[ -n "${KERNEL:-}" ] || [ -e kernel ] || fetch_kernel
kernel=${KERNEL:-$(echo kernel/boot/vmlinuz-*)}
modules=${MODULES:-$(echo kernel/lib/modules/*)}
make_initramfs

server='' guest=''
trap '[ -z "$server" ] || kill -9 "$server" 2> /dev/null; [ -z "$guest" ] || kill -9 "$guest" 2> /dev/null; rm -f disk.qcow2 disk.sock disk.control served machine' EXIT

serve() {
    rm -f disk.control
    "$quod" serve "$1" -k disk.sock --control disk.control disk.qcow2 > served &
    server=$!
    until grep -q Serving served; do
        kill -0 "$server" 2> /dev/null || die "the server does not begin"
        sleep 0.05
    done
}

# QEMU with one disk, on which fio works with so many MiB for so many seconds at least; 1: and which grows then. What it says of a server that was killed is no finding, and shown if the guest fails.
boot() {
    local size=$1 seconds=$2 grows=$3
    shift 3
    # with threads QEMU 10.0 ends in an assertion of its own now and then (iotlb_to_section)
    qemu-system-x86_64 -accel tcg,thread=single -smp 2 -nodefaults -display none -serial file:console -no-reboot \
        -machine q35,memory-backend=memory -object memory-backend-memfd,id=memory,size=640M,share=on \
        -kernel "$kernel" -initrd initramfs -append "console=ttyS0 quiet panic=-1 size=$size seconds=$seconds grows=$grows" "$@" 2> machine &
    guest=$!
}

# Waits for a line of the guest's.
saw() {
    local until=$((SECONDS + 240))
    until grep -aq "$1" console 2> /dev/null; do
        kill -0 "$guest" 2> /dev/null && [ "$SECONDS" -lt "$until" ] || break
        sleep 0.1
    done
    grep -aq "$1" console || { cat console machine; die "the guest did not say '$1'"; }
}

vhost=(-chardev "socket,id=disk,path=disk.sock,reconnect-ms=100" -device "vhost-user-blk-pci,chardev=disk")

run() {
    local job=$1 from=$SECONDS times
    rm -f console disk.sock
    qemu-img create -q -f qcow2 disk.qcow2 2G
    case $job in
    vhost-user)
        serve vhost-user
        boot 24 0 1 "${vhost[@]}"
        saw 'waits for a larger disk'
        "$quod" control disk.control resize 2049M > /dev/null || die "the disk does not grow"
        saw 'disk of 4196352 sectors'
        ;;
    kill)
        serve vhost-user
        boot 16 9 0 "${vhost[@]}"
        saw 'fio begins'
        for times in 1 2 3; do
            sleep 1.5
            ! grep -aq 'fio ends' console || die "fio was too fast to be disturbed"
            kill -9 "$server"
            wait "$server" 2> /dev/null || true
            serve vhost-user
        done
        ;;
    nbd)
        serve nbd
        boot 24 0 0 -drive "file=nbd+unix:///?socket=$PWD/disk.sock,format=raw,if=virtio,discard=unmap"
        ;;
    *) die "no such job: $job" ;;
    esac
    saw 'ALL GOOD'
    wait "$guest" || die "QEMU failed"
    guest=''
    kill "$server"
    wait "$server" || die "the server did not end in order"
    server=''
    grep -a GUEST console
    # a kill may leave clusters that nobody uses, and nothing worse
    [ "$job" != kill ] || qemu-img check -q -r leaks disk.qcow2 || die "the kills have damaged the image"
    qemu-img check disk.qcow2 | head -n 1
    qemu-img check -q disk.qcow2 || die "the image is damaged"
    echo "$job: all good, $((SECONDS - from)) s"
}

[ $# -gt 0 ] || set -- vhost-user kill nbd
for job in "$@"; do
    run "$job"
done
