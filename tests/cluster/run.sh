#!/usr/bin/env bash
# Installs the chart with the real image and a real Postgres on a real one-node cluster, then upgrades, fails a migration and
# rolls back under streaming load: no stream may be cut and no request may fail.
#
# `KEEP=1` leaves the cluster up afterwards; `tests/cluster/run.sh down` stops it.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$HERE/cluster.sh"

if [ "${1:-}" = down ]; then cluster_down; exit 0; fi

not_run() { echo "NOT RUN: the cluster test needs $1. Nothing was tested here."; exit 3; }
[ "$(id -u)" = 0 ] || not_run "root (network namespaces, containerd, kubelet)"
PACKAGES="buildah debootstrap etcd-server etcd-client containerd runc containernetworking-plugins iptables conntrack iproute2 openssl dpkg-dev rsync gcc libc6-dev make git procps kmod"
# Each by itself: `command -v` of several is content with one of them.
missing() { for tool in "$@"; do command -v "$tool" >/dev/null || return 0; done; return 1; }
if missing buildah debootstrap etcd containerd runc /usr/lib/cni/bridge iptables conntrack ip openssl dpkg-source rsync gcc make git ps modprobe; then
  command -v apt-get >/dev/null || not_run "Debian's packages: $PACKAGES"
  say "installing Debian's packages"
  # shellcheck disable=SC2086
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PACKAGES >/dev/null; } \
    || not_run "Debian's packages: $PACKAGES"
fi
say "Kubernetes 1.20 from source (once, about 13 minutes)"
nice -n 15 "$HERE/build.sh" >"$CACHE/build.log" 2>&1 || { tail -20 "$CACHE/build.log"; not_run "a Kubernetes that builds here"; }

say "images"
ensure_base
build_image "$IMAGE"
NEXT=${IMAGE%:*}:next
context=$(mktemp -d); trap 'rm -rf "$context"' EXIT
printf 'FROM %s\nLABEL next=yes\n' "$IMAGE" >"$context/Containerfile"
bd bud --isolation chroot -q -t "$NEXT" "$context" >/dev/null
install -m 755 "$K8S/pause" "$context/pause"
printf 'FROM scratch\nCOPY pause /pause\nUSER 65535\nENTRYPOINT ["/pause"]\n' >"$context/Containerfile"
bd bud --isolation chroot -q -t localhost/pause:3 "$context" >/dev/null

cleanup() { rm -rf "$context"; [ -n "${KEEP:-}" ] || cluster_down; }
trap cleanup EXIT
cluster_down
say "the cluster"
cluster_up
for tag in "$IMAGE" "$NEXT" localhost/pause:3; do
  bd push -q "$tag" "oci-archive:$D/import/$(echo "$tag" | tr '/:' '__').tar:$tag"
done
control_plane_up
node_up

say "Postgres and a simulated provider beside it"
"$HERE/postgres.sh" start
provider_key=sim-cluster-$(openssl rand -hex 12)
cat >"$D/provider.json" <<J
{"keys": [{"secret": "$provider_key-a", "name": "a", "limits": {}}, {"secret": "$provider_key-b", "name": "b", "limits": {}}],
 "latency": {"first_byte_s": 0.05, "per_token_s": 0.1}, "answer_tokens": 80}
J
start provider "$ROOT/.venv/bin/llm-proxy" simulated-provider --host $NODE --port 9000 --config "$D/provider.json"

kubectl create namespace llm >/dev/null
kubectl -n llm create secret generic llm-proxy --from-file=database-url="$D/postgres/app-url" \
  --from-file=migration-database-url="$D/postgres/owner-url" \
  --from-literal=kek-keys="$(openssl rand -base64 32)" --from-literal=peppers="1:$(openssl rand -base64 32)" >/dev/null
kubectl -n llm create secret generic broken --from-literal=migration-database-url=postgresql://nobody:wrong@$NODE:5432/llm_proxy >/dev/null

# A 1.20 API server cannot be asked to accept a chart for 1.25 and newer: only that line differs from what is released.
cp -r "$ROOT/helm/llm-proxy" "$D/chart"
sed -i '/^kubeVersion:/d' "$D/chart/Chart.yaml"
release() { helm -n llm "$@" -f "$HERE/values.yaml" --timeout 5m; }
# Pods that serve: a pod that drains is still in phase Running.
pods() {
  kubectl -n llm get pods -l app.kubernetes.io/instance=gw --field-selector=status.phase=Running \
    -o go-template='{{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}' | grep -v -e migrate -e smoke | sort
}
expect() { if "${@:2}"; then echo "ok   $1"; passed=$((passed + 1)); else echo "FAIL $1"; failed=$((failed + 1)); fi; }
show() { kubectl -n llm get pods 2>&1 | tail -20; kubectl -n llm get events --sort-by=.lastTimestamp 2>&1 | tail -20; kubectl -n llm logs -l app.kubernetes.io/instance=gw --all-containers --tail=20 2>&1 | tail -60; }
passed=0 failed=0

say "install"
time release install gw "$D/chart" --wait || { show; exit 1; }
expect "helm test passes" helm -n llm test gw --logs
# shellcheck disable=SC2016  # expanded in the pod
expect "the pods run as a user that is not root, on a read-only root" \
  kubectl -n llm exec deployment/gw-llm-proxy-gateway -- sh -c '[ "$(id -u)" = 65532 ] && ! touch /opt/x 2>/dev/null && touch /tmp/x'

say "a tenant, a pool, a client"
kubectl -n llm exec deployment/gw-llm-proxy-control -- llm-proxy bootstrap --json >"$D/operator.json"
cli() { # profile command…
  local profile=$1; shift
  inside env LLM_PROXY_URL=http://$NODE:30081 LLM_PROXY_CLIENT_ID="$(jq -r .client_id "$profile")" \
    LLM_PROXY_CLIENT_SECRET="$(jq -r .client_secret "$profile")" "$ROOT/.venv/bin/llm-proxy" "$@"
}
jq() { "$ROOT/.venv/bin/python" "$HERE/pick.py" "$@"; }
cli "$D/operator.json" tenant create acme --json >"$D/tenant.json"
cat >"$D/pool.json" <<J
{"providers": [
  {"name": "a", "provider": "openai", "base_url": "http://$NODE:9000", "api_key": "$provider_key-a"},
  {"name": "b", "provider": "openai", "base_url": "http://$NODE:9000", "api_key": "$provider_key-b"}],
 "strategy": "round_robin", "is_default": true}
J
cli "$D/tenant.json" pool import "$D/pool.json" --json >/dev/null

say "load"
jq -c . "$D/tenant.json" >"$D/credentials.json"
load() {
  case $1 in
    start) start load "$ROOT/.venv/bin/python" "$HERE/load.py" http://$NODE:30080 http://$NODE:30081 "$D/credentials.json" "$D/result.json" ;;
    stop) kill -TERM "$(cat "$D/pid/load")"; await 60 "the load to end" test -f "$D/result.json" ;;
  esac
}
load start
sleep 10
kill -0 "$(cat "$D/pid/load")" || { cat "$D/log/load.log"; show; exit 1; }
before=$(pods)

say "a migration that fails"
if release upgrade gw "$D/chart" --wait --set image.tag=next --set database.migrationSecret=broken >"$D/log/failing.log" 2>&1; then
  expect "a failing migration fails the upgrade" false
else
  expect "a failing migration fails the upgrade" true
fi
expect "no serving pod was touched by it" [ "$before" = "$(pods)" ]

say "upgrade under load"
time release upgrade gw "$D/chart" --wait --set image.tag=next || { show; exit 1; }
kubectl -n llm rollout status deployment/gw-llm-proxy-gateway --timeout=3m >/dev/null
expect "every pod was replaced" bash -c "[ -z \"\$(comm -12 <(echo '$before') <(echo '$(pods)'))\" ]"
sleep 15

say "rollback under load"
time helm -n llm rollback gw 1 --wait --timeout 5m || { show; exit 1; }
sleep 60
say "what the load saw"
load stop
cat "$D/result.json"
expect "0 cut streams, 0 failed requests" "$ROOT/.venv/bin/python" "$HERE/pick.py" --no-failures "$D/result.json"

say "every gateway container dies while Postgres is away"
inside curl -sf -u "$(jq -r .client_id "$D/credentials.json"):$(jq -r .client_secret "$D/credentials.json")" \
  -d grant_type=client_credentials http://$NODE:30081/oauth2/token >"$D/token.json"
sleep 5 # the sealed state is written within seconds of the last change
kill -INT "$(cat "$D/pid/postgres")"
gateways() { kubectl -n llm get pods -l app.kubernetes.io/component=gateway -o go-template="{{range .items}}{{range .status.containerStatuses}}$1{{end}}{{end}}"; }
restarted() { [ "$(gateways '{{if and .ready (gt .restartCount 0)}}r{{end}}')" = "$(gateways r)" ]; }
pkill -9 -f '^/opt/llm-proxy/bin/python.* /opt/llm-proxy/bin/llm-proxy gateway'
await 90 "the gateway containers to be back" restarted || { show; exit 1; }
chat() {
  inside curl -sf -m 20 -H "authorization: Bearer $(jq -r .access_token "$D/token.json")" -H 'content-type: application/json' \
    -d '{"model": "gpt-4o-mini", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}' \
    http://$NODE:30080/v1/chat/completions | grep -q '"chat.completion"'
}
expect "they serve from their sealed state" bash -c "$(declare -f inside jq chat); NS=$NS D=$D ROOT=$ROOT HERE=$HERE NODE=$NODE; for _ in 1 2 3 4 5; do chat || exit 1; done"
expect "and say so" bash -c "kubectl() { nsenter --net=/var/run/netns/$NS $TOOLS/kubectl \"\$@\"; }; kubectl -n llm exec deployment/gw-llm-proxy-gateway -- python3 -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:8080/readyz\").read())' | grep -q 'Postgres is away'"
[ $failed = 0 ] || show
echo "$passed passed, $failed failed"
[ $failed = 0 ]
