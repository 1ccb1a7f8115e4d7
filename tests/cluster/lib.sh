# shellcheck shell=bash
# Names and tools that the scripts of this folder share; sourced, never run.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
CACHE=${CLUSTER_CACHE:-/var/cache/llm-proxy/cluster}
IMAGES=$CACHE/images
IMAGE=${IMAGE:-localhost/llm-proxy:dev}
BASE=localhost/llm-proxy-base:bookworm
mkdir -p "$IMAGES"

say() { printf '\n== %s\n' "$*"; }
store() { printf '%s\n' --root "$IMAGES/store" --runroot "$IMAGES/run" --storage-driver overlay; }
# shellcheck disable=SC2046
bd() { buildah $(store) "$@"; }

# A Debian with Python and nothing else stands in for the public slim image where no container registry is reached.
ensure_base() {
  bd inspect --type image "$BASE" >/dev/null 2>&1 && return
  say "base image by debootstrap (once)"
  if [ ! -f "$IMAGES/base.tar" ]; then
    rm -rf "$IMAGES/rootfs"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$IMAGES/rootfs" >"$IMAGES/debootstrap.log"
    rm -rf "$IMAGES"/rootfs/var/cache/apt/* "$IMAGES"/rootfs/var/lib/apt/lists/* "$IMAGES"/rootfs/usr/share/{doc,man,locale}/*
    tar -C "$IMAGES/rootfs" -cf "$IMAGES/base.tar.part" . && mv "$IMAGES/base.tar.part" "$IMAGES/base.tar"
    rm -rf "$IMAGES/rootfs"
  fi
  mkdir -p "$IMAGES/context"
  printf 'FROM scratch\nADD base.tar /\n' >"$IMAGES/context/Containerfile"
  ln -f "$IMAGES/base.tar" "$IMAGES/context/base.tar"
  bd bud --isolation chroot -q -t "$BASE" "$IMAGES/context" >/dev/null
}

# Builds $1 (a tag) from the work tree, or from SOURCE, such as an unpacked `git archive`; the host's certificates let pip reach its index from inside.
build_image() {
  bd bud --isolation chroot -q --layers -v /etc/ssl/certs:/etc/ssl/certs:ro --build-arg BASE_IMAGE="$BASE" \
    --build-arg REVISION="$(git -C "$ROOT" rev-parse HEAD)" -t "$1" -f "$ROOT/Containerfile" "${SOURCE:-$ROOT}" >/dev/null
}
