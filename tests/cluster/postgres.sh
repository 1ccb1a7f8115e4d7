#!/usr/bin/env bash
# Runs the Postgres of the development environment on the node's address, with the roles that production has: an owner that
# may not create roles, and a login role that owns nothing.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$HERE/cluster.sh"
P=$D/postgres
bin=$(cd "$ROOT" && .venv/bin/python -c 'from gateway.embedded.binaries import find_binaries; print(find_binaries().directory)')
as() { inside setpriv --reuid=65534 --regid=65534 --clear-groups env -i PATH=/usr/bin:/bin LC_ALL=C "$@"; }

mkdir -p "$P/run"
for role in super owner app; do openssl rand -hex 16 | tr -d '\n' >"$P/$role"; done
chown -R 65534:65534 "$P"
as "$bin/initdb" -D "$P/data" -U postgres -A scram-sha-256 --pwfile "$P/super" --no-sync >"$D/log/initdb.log"
echo "host all all 10.0.0.0/8 scram-sha-256" >>"$P/data/pg_hba.conf"
start postgres setpriv --reuid=65534 --regid=65534 --clear-groups env -i PATH=/usr/bin:/bin LC_ALL=C "$bin/postgres" -D "$P/data" \
  -c listen_addresses=$NODE -c unix_socket_directories="$P/run" -c fsync=off -c max_connections=200
inside "$ROOT/.venv/bin/python" - "$P" $NODE <<'PY'
import asyncio, pathlib, sys, asyncpg
folder, host = pathlib.Path(sys.argv[1]), sys.argv[2]
word = {role: (folder / role).read_text() for role in ("super", "owner", "app")}

async def main() -> None:
    for _ in range(100):
        try:
            server = await asyncpg.connect(host=host, user="postgres", password=word["super"], database="postgres")
            break
        except (OSError, asyncpg.CannotConnectNowError):
            await asyncio.sleep(0.2)
    else:
        sys.exit("Postgres did not start")
    await server.execute(f"create role llm_proxy_owner login password '{word['owner']}'")
    await server.execute("create role llm_proxy_app nologin")
    await server.execute(f"create role llm_proxy_gateway login password '{word['app']}' in role llm_proxy_app")
    await server.execute("create database llm_proxy owner llm_proxy_owner")
    await server.close()
    for name, role in (("app", "llm_proxy_gateway"), ("owner", "llm_proxy_owner")):
        (folder / f"{name}-url").write_text(f"postgresql://{role}:{word[name]}@{host}:5432/llm_proxy?sslmode=disable")

asyncio.run(main())
PY
