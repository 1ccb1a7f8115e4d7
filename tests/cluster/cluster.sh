# shellcheck shell=bash
# Starts and stops a one-node Kubernetes 1.20 in a network namespace of its own; sourced by run.sh after lib.sh.
#
# Traps that shaped it: the namespace is entered with `nsenter --net`, because `ip netns exec` remounts /sys and kubelet
# dies of it; containerd needs restrict_oom_score_adj where CAP_SYS_RESOURCE is missing; kubelet changes three sysctls of
# the whole machine, which are saved and put back.
NODE=10.250.0.1
NS=llm-proxy-test
D=$CACHE/node
K8S=$CACHE/bin
TOOLS=$ROOT/.venv-chart/tools
export KUBECONFIG=$D/admin.kubeconfig HELM_CACHE_HOME=$D/helm/cache HELM_CONFIG_HOME=$D/helm/config HELM_DATA_HOME=$D/helm/data
SYSCTLS=(vm.overcommit_memory kernel.panic kernel.panic_on_oops)

inside() { nsenter --net=/var/run/netns/$NS "$@"; }
kubectl() { inside "$TOOLS/kubectl" "$@"; }
helm() { inside "$TOOLS/${HELM:-helm-4}" "$@"; }
ctr_() { inside ctr -a "$D/containerd.sock" -n k8s.io "$@"; }
await() { # seconds, what, command…
  local until=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $until ] || { echo "FAIL waited too long for $what"; return 1; }; sleep 0.3; done
}
start() { # name command… : runs inside the namespace, notes the process id
  local name=$1; shift
  # exec, so that the process id is the program's own and not that of a shell around it.
  (exec nsenter --net=/var/run/netns/$NS setsid "$@" >"$D/log/$name.log" 2>&1 </dev/null) & echo $! >"$D/pid/$name"
}

network_up() {
  ip netns add $NS
  ip -n $NS link set lo up
  ip -n $NS link add node0 type bridge # dummy devices need a kernel module that may be missing
  ip -n $NS addr add $NODE/24 dev node0
  ip -n $NS link set node0 up
  ip -n $NS route add default dev node0
  inside sysctl -qw net.ipv4.ip_forward=1
}

control_plane_up() {
  openssl genrsa -out "$D/pki/sa.key" 2048 2>/dev/null
  openssl rsa -in "$D/pki/sa.key" -pubout -out "$D/pki/sa.pub" 2>/dev/null
  local token; token=$(openssl rand -hex 16)
  echo "$token,admin,admin,system:masters" >"$D/pki/tokens.csv"
  cat >"$KUBECONFIG" <<K
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:16443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: $token}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
K
  local etcd=http://127.0.0.1:12379
  start etcd etcd --data-dir "$D/etcd" --listen-client-urls $etcd --advertise-client-urls $etcd \
    --listen-peer-urls http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380 \
    --initial-cluster default=http://127.0.0.1:12380 --unsafe-no-fsync
  start apiserver "$K8S/kube-apiserver" --etcd-servers $etcd --bind-address 0.0.0.0 --advertise-address $NODE \
    --secure-port 16443 --cert-dir "$D/pki" --service-cluster-ip-range 10.96.0.0/16 \
    --service-account-key-file "$D/pki/sa.pub" --service-account-signing-key-file "$D/pki/sa.key" \
    --service-account-issuer https://kubernetes.default --token-auth-file "$D/pki/tokens.csv" \
    --authorization-mode RBAC,Node --allow-privileged=false --kubelet-preferred-address-types=InternalIP
  await 90 "the API server" kubectl get --raw /readyz
  start controller-manager "$K8S/kube-controller-manager" --kubeconfig "$KUBECONFIG" --cert-dir "$D/pki" \
    --service-account-private-key-file "$D/pki/sa.key" --bind-address 127.0.0.1 --leader-elect=false
  start scheduler "$K8S/kube-scheduler" --kubeconfig "$KUBECONFIG" --leader-elect=false --bind-address 127.0.0.1 --cert-dir "$D/pki"
}

node_up() {
  cat >"$D/containerd.toml" <<C
version = 2
root = "$D/containerd/root"
state = "$D/containerd/state"
[grpc]
  address = "$D/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:3"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$D/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
C
  cat >"$D/cni/10-bridge.conflist" <<C
{"cniVersion":"0.4.0","name":"k8s","plugins":[
 {"type":"bridge","bridge":"cni-k8s0","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"$D/ipam","ranges":[[{"subnet":"10.244.0.0/24"}]],
          "routes":[{"dst":"10.96.0.0/16"},{"dst":"10.244.0.0/24"},{"dst":"$NODE/32"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
C
  cat >"$D/kubelet.yaml" <<C
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
address: $NODE
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
evictionHard: {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
imageGCHighThresholdPercent: 100
clusterDNS: [$NODE]
clusterDomain: cluster.local
healthzPort: 0
C
  cat >"$D/proxy.yaml" <<C
kind: KubeProxyConfiguration
apiVersion: kubeproxy.config.k8s.io/v1alpha1
clientConnection: {kubeconfig: $KUBECONFIG}
mode: iptables
clusterCIDR: 10.244.0.0/16
hostnameOverride: node1
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
bindAddress: $NODE
C
  start containerd containerd -c "$D/containerd.toml"
  await 30 containerd ctr_ version
  local archive; for archive in "$D"/import/*.tar; do ctr_ images import "$archive" >/dev/null; done
  start kubelet "$K8S/kubelet" --config "$D/kubelet.yaml" --kubeconfig "$KUBECONFIG" --container-runtime remote \
    --container-runtime-endpoint "unix://$D/containerd.sock" --root-dir "$D/kubelet" --cert-dir "$D/pki" \
    --hostname-override node1 --node-ip $NODE
  start proxy "$K8S/kube-proxy" --config "$D/proxy.yaml"
  start dns "$ROOT/.venv/bin/python" "$HERE/dns.py" $NODE 53 "$KUBECONFIG"
  await 90 "the node" bash -c "$(declare -f inside kubectl); NS=$NS TOOLS=$TOOLS; kubectl get nodes | grep -q ' Ready'"
}

cluster_up() {
  rm -rf "$D"; mkdir -p "$D"/{pki,log,pid,cni,kubelet,import,helm}
  sysctl "${SYSCTLS[@]}" | tr -d ' ' >"$D/sysctls"
  ls /run/netns >"$D/netns-before" 2>/dev/null || true
  ulimit -n 20000
  network_up
}

cluster_down() ( # whatever is left of a former run; a step that finds nothing is no error
  set +eo pipefail
  stop() { [ -f "$D/pid/$1" ] && kill "$(cat "$D/pid/$1")" 2>/dev/null; rm -f "$D/pid/$1"; }
  for name in load provider dns kubelet proxy; do stop $name; done
  sleep 1
  if [ -S "$D/containerd.sock" ]; then
    for name in $(ctr_ task ls -q 2>/dev/null); do ctr_ task kill -s 9 "$name" 2>/dev/null; done
    sleep 1
    for name in $(ctr_ task ls -q 2>/dev/null); do ctr_ task rm -f "$name" >/dev/null 2>&1; done
    for name in $(ctr_ c ls -q 2>/dev/null); do ctr_ c rm "$name" >/dev/null 2>&1; done
  fi
  for name in containerd scheduler controller-manager apiserver etcd postgres; do stop $name; done
  sleep 2
  grep " $D/" /proc/mounts | cut -d' ' -f2 | sort -r | xargs -r -n1 umount -l 2>/dev/null
  # The pods' network namespaces: those that came since cluster_up, for another runtime may have some too.
  if [ -f "$D/netns-before" ]; then
    for name in /run/netns/cni-*; do
      grep -qxF "$(basename "$name")" "$D/netns-before" || { umount -l "$name" 2>/dev/null; rm -f "$name"; }
    done
  fi
  [ -f "$D/sysctls" ] && xargs sysctl -q <"$D/sysctls"
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null
  ip netns del $NS 2>/dev/null
  true
)
