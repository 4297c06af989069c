#!/bin/bash
# The part of the image that programs write: image.sh IMAGE UV SKYPILOT-WHEEL, in a mount
# namespace of its own. The only step of a node's life that reaches the package index.
set -euo pipefail
IMAGE=$1 UV=$2 WHEEL=$3
ROOT=$IMAGE/root
NODE_HOME=$ROOT/home/ubuntu

mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$IMAGE/layer,workdir=$IMAGE/work" "$ROOT"
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
chroot "$ROOT" id ubuntu >/dev/null 2>&1 || chroot "$ROOT" useradd --shell /bin/bash ubuntu
mkdir -p "$NODE_HOME/.local/bin"
cp /etc/skel/.[!.]* "$NODE_HOME"
chroot "$ROOT" usermod --password '*' ubuntu # not locked, but a key is the only way in
chroot "$ROOT" ssh-keygen -A
rm -f "$ROOT/usr/sbin/policy-rc.d"

# SkyPilot's runtime as SkyPilot's own images carry it: what its set-up on a node would install,
# and the wheel of itself that the client will want to find there, by its hash.
RUNTIME=$NODE_HOME/skypilot-runtime
install() { "$UV" pip install --quiet --python "$RUNTIME/bin/python" "$@"; }
cp "$UV" "$NODE_HOME/.local/bin/uv"
"$UV" venv --quiet --seed --relocatable --python /usr/bin/python3 "$RUNTIME"
install "setuptools<70" "ray[default]==2.9.3" "pydantic-core==2.41.1" "click<8.3.0"
install "${WHEEL}[lambda,remote]" "setuptools<70"
mkdir -p "$NODE_HOME/.sky/wheels"
basename "$(dirname "$WHEEL")" >"$NODE_HOME/.sky/wheels/current_sky_wheel_hash"
# The Python environment that jobs find active.
"$UV" venv --quiet --seed --relocatable --system-site-packages --python /usr/bin/python3 \
  "$NODE_HOME/sky-user-env"
chroot "$ROOT" chown --recursive ubuntu:ubuntu /home/ubuntu

# SkyPilot's patches to ray, then compiled once here and not again on every node.
as_ubuntu() { chroot "$ROOT" runuser -u ubuntu -- env -i -C /home/ubuntu HOME=/home/ubuntu "$@"; }
as_ubuntu skypilot-runtime/bin/python -c "from sky.skylet.ray_patches import patch; patch()"
as_ubuntu skypilot-runtime/bin/python -m compileall -q -j0 skypilot-runtime/lib || true
