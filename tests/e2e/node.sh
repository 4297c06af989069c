#!/bin/bash
# One VM, in the foreground: node.sh NAME IP RAM. Killing this process ends all of it.
# Its root is RAM/nodes/NAME/disk over the image over this machine's own system; it has network,
# process, mount, host name and IPC namespaces of its own, and a real sshd as its first process.
# Runs in the network of the bridge.
set -euo pipefail
NAME=$1 IP=$2 RAM=$3
export NODE=$RAM/nodes/$NAME IMAGE=$RAM/image NAME IP

mkdir -p "$NODE"/{disk,work,root}
ip netns add "$NAME"
ip link add "to-${NAME##*-}" type veth peer name eth0 netns "$NAME"
ip link set "to-${NAME##*-}" master bridge up
ip -n "$NAME" link set lo up
ip -n "$NAME" address add "$IP/16" dev eth0
ip -n "$NAME" link set eth0 up

# shellcheck disable=SC2016
exec nsenter --net="/run/netns/$NAME" \
  unshare --mount --pid --uts --ipc --fork --kill-child bash -euo pipefail -c '
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$IMAGE/layer:/,upperdir=$NODE/disk,workdir=$NODE/work" "$NODE/root"
cd "$NODE/root"
mount --bind "$IMAGE/wheels" srv/wheels
mount -o remount,bind,ro srv/wheels
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir -p dev/pts dev/shm run/sshd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null:1:3 zero:1:5 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
  IFS=: read -r name major minor <<<"$device"
  mknod --mode 666 "dev/$name" c "$major" "$minor"
done
hostname "$NAME"
echo "$IP $NAME" >> etc/hosts
chroot . chown ubuntu:ubuntu /home/ubuntu
chroot . chown --recursive ubuntu:ubuntu /home/ubuntu/.ssh
exec chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e
'
