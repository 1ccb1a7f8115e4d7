"""Writes docs/configuration.md from the table of variables, so that the page cannot drift from the code."""

from __future__ import annotations

from itertools import groupby

from gateway.variables import VARIABLES

_HEAD = """# Configuration

Everything is configured by environment variables; there is no configuration file. Set a variable wrongly and the
process refuses to start, saying which one, why and how to mend it: `llm-proxy config check` says the same without
starting, and warns of variables named `LLM_PROXY_…` that nothing reads. A variable marked *secret* may be given as a
file instead: `NAME_FILE=/run/secrets/name`. Secrets are never logged.

`llm-proxy dev` needs none of this. The smallest production environment:

```sh
DATABASE_URL=postgresql://llm_proxy_gateway:…@db.internal:5432/llm_proxy
LLM_PROXY_ISSUER=https://llm.example.com
LLM_PROXY_KEK=file:/etc/llm-proxy/keyring          # (umask 077; openssl rand -base64 32 > keyring)
LLM_PROXY_PEPPERS_FILE=/etc/llm-proxy/peppers      # (umask 077; echo "1:$(openssl rand -base64 32)" > peppers)
```

Then, once: `LLM_PROXY_MIGRATION_URL=postgresql://owner:…@db.internal/llm_proxy llm-proxy migrate --login
llm_proxy_gateway` makes the schema and the role, `llm-proxy bootstrap` prints the first operator's credentials, and
`llm-proxy serve` serves. Back the keyring up: without it no stored provider key can be read.
"""


def configuration_page() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD]
    for group, variables in groupby(VARIABLES, key=lambda variable: variable.group):
        rows = [f"\n## {group}\n", "| Variable | Default | Meaning |", "|---|---|---|"]
        for variable in variables:
            default = f"`{variable.default}`" if variable.default else "not set"
            mark = " *(secret)*" if variable.secret else ""
            rows.append(f"| `{variable.name}`{mark} | {default} | {variable.meaning} |")
        parts.append("\n".join(rows) + "\n")
    return "".join(parts)
