{{- /* Names here are those of gateway/settings.py; tests/helm holds the two together. */ -}}

{{- define "llm-proxy.env.fromSecret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end -}}

{{- /*
A secret that is taken whole from a Secret is mounted and given by its path (NAME_FILE), so that it stands in no process's
environment. Only passwords that are put into a URL here must be variables.
*/ -}}
{{- define "llm-proxy.env.fromFile" -}}
- name: {{ .name }}_FILE
  value: /etc/llm-proxy/secrets/{{ .file }}
{{- end -}}

{{- /* Tells whether a place of key-encryption keys is in use; takes (list .Values "vault://"). */ -}}
{{- define "llm-proxy.kekIn" -}}
{{- $word := last . -}}
{{- $encryption := (first .).encryption -}}
{{- range splitList "," (printf "%s,%s,%s" $encryption.kek $encryption.spare $encryption.shares) -}}
{{- if hasPrefix $word (trim .) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- /* One entry of the projected volume. */ -}}
{{- define "llm-proxy.secretFile" -}}
- secret:
    name: {{ .secret }}
    items:
      - {key: {{ .key }}, path: {{ .file }}}
{{- end -}}

{{- /* The files of a component; takes root and component (gateway, control or migrate). */ -}}
{{- define "llm-proxy.secretFiles" -}}
{{- $root := .root -}}
{{- with $root.Values }}
{{- $secret := include "llm-proxy.databaseSecret" $root }}
{{- $host := include "llm-proxy.databaseHost" $root }}
{{- if eq $.component "migrate" }}
{{- if .cnpg.enabled }}
{{ include "llm-proxy.secretFile" (dict "secret" (printf "%s-app" (include "llm-proxy.cnpgName" $root)) "key" "uri" "file" "migration-url") }}
{{- else if not $host }}
{{ include "llm-proxy.secretFile" (dict "secret" (include "llm-proxy.migrationSecret" $root) "key" .database.migrationUrlKey "file" "migration-url") }}
{{- end }}
{{- else }}
{{- if not $host }}
{{ include "llm-proxy.secretFile" (dict "secret" $secret "key" .database.urlKey "file" "database-url") }}
{{- if .database.directUrlKey }}
{{ include "llm-proxy.secretFile" (dict "secret" $secret "key" .database.directUrlKey "file" "database-direct-url") }}
{{- end }}
{{- end }}
{{- if include "llm-proxy.kekIn" (list . "env") }}
{{ include "llm-proxy.secretFile" (dict "secret" (default .existingSecret .encryption.existingSecret) "key" .encryption.kekKeysKey "file" "kek-keys") }}
{{- end }}
{{- if .encryption.aws.existingSecret }}
{{ include "llm-proxy.secretFile" (dict "secret" .encryption.aws.existingSecret "key" .encryption.aws.secretAccessKeyKey "file" "aws-secret-access-key") }}
{{- if .encryption.aws.sessionTokenKey }}
{{ include "llm-proxy.secretFile" (dict "secret" .encryption.aws.existingSecret "key" .encryption.aws.sessionTokenKey "file" "aws-session-token") }}
{{- end }}
{{- end }}
{{- if .encryption.azure.existingSecret }}
{{ include "llm-proxy.secretFile" (dict "secret" .encryption.azure.existingSecret "key" .encryption.azure.clientSecretKey "file" "azure-client-secret") }}
{{- end }}
{{- if and (include "llm-proxy.kekIn" (list . "vault://")) (not .encryption.vault.tokenPath) }}
{{ include "llm-proxy.secretFile" (dict "secret" .encryption.vault.existingSecret "key" .encryption.vault.tokenKey "file" "vault-token") }}
{{- end }}
{{- if .egressProxy.existingSecret }}
{{ include "llm-proxy.secretFile" (dict "secret" .egressProxy.existingSecret "key" .egressProxy.key "file" "egress-proxy") }}
{{- end }}
{{- if eq $.component "control" }}
{{ include "llm-proxy.secretFile" (dict "secret" (default .existingSecret .peppers.existingSecret) "key" .peppers.key "file" "peppers") }}
{{- if .oidc.existingSecret }}
{{ include "llm-proxy.secretFile" (dict "secret" .oidc.existingSecret "key" .oidc.key "file" "oidc-client-secret") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* DATABASE_URL of the login role. A password must come before the variable that uses it. */ -}}
{{- define "llm-proxy.env.database" -}}
{{- $host := include "llm-proxy.databaseHost" . -}}
{{- $secret := include "llm-proxy.databaseSecret" . -}}
{{- $key := .Values.database.passwordKey -}}
{{- if and .Values.cnpg.enabled .Values.cnpg.appRoleSecret -}}
{{- $secret = .Values.cnpg.appRoleSecret -}}
{{- $key = "password" -}}
{{- end -}}
{{- if $host }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "APP_PASSWORD" "secret" $secret "key" $key) }}
- name: DATABASE_URL
  value: {{ printf "postgresql://%s:$(APP_PASSWORD)@%s:%v/%s?sslmode=%s" .Values.database.username $host .Values.database.port .Values.database.name (include "llm-proxy.sslMode" .) | quote }}
{{- else }}
{{ include "llm-proxy.env.fromFile" (dict "name" "DATABASE_URL" "file" "database-url") }}
{{- if .Values.database.directUrlKey }}
{{ include "llm-proxy.env.fromFile" (dict "name" "DATABASE_DIRECT_URL" "file" "database-direct-url") }}
{{- end }}
{{- end }}
{{- include "llm-proxy.env.databaseCA" . }}
{{- end -}}

{{- /* LLM_PROXY_MIGRATION_URL of the role that owns the schema. */ -}}
{{- define "llm-proxy.env.migration" -}}
{{- $host := include "llm-proxy.databaseHost" . -}}
{{- $secret := include "llm-proxy.migrationSecret" . -}}
{{- if and $host (not .Values.cnpg.enabled) }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "OWNER_PASSWORD" "secret" $secret "key" .Values.database.migrationPasswordKey) }}
- name: LLM_PROXY_MIGRATION_URL
  value: {{ printf "postgresql://%s:$(OWNER_PASSWORD)@%s:%v/%s?sslmode=%s" .Values.database.migrationUsername $host .Values.database.port .Values.database.name (include "llm-proxy.sslMode" .) | quote }}
{{- else }}
{{ include "llm-proxy.env.fromFile" (dict "name" "LLM_PROXY_MIGRATION_URL" "file" "migration-url") }}
{{- end }}
{{- include "llm-proxy.env.databaseCA" . }}
{{- end -}}

{{- define "llm-proxy.env.databaseCA" -}}
{{- if .Values.database.caSecret }}
- name: PGSSLROOTCERT
  value: /etc/llm-proxy/database-ca/ca.crt
{{- end }}
{{- end -}}

{{- define "llm-proxy.sslMode" -}}
{{- if .Values.devDatabase.enabled -}}disable{{- else -}}{{ .Values.database.sslMode }}{{- end -}}
{{- end -}}

{{- /* What gateway and control are given; only control issues tokens and needs the peppers. */ -}}
{{- define "llm-proxy.env.process" -}}
{{- $root := .root -}}
{{- with $root.Values }}
- name: LLM_PROXY_HOST
  value: "0.0.0.0"
- name: PORT
  value: "8080"
- name: LLM_PROXY_ISSUER
  value: {{ .issuer | quote }}
{{- if .region }}
- name: LLM_PROXY_REGION
  value: {{ .region | quote }}
{{- end }}
- name: LLM_PROXY_DRAIN_LEAD
  value: {{ $.values.drainLeadSeconds | quote }}
- name: LLM_PROXY_DRAIN
  value: {{ $.values.drainSeconds | quote }}
{{- if eq $.component "gateway" }}
- name: LLM_PROXY_WORKERS
  value: {{ .gateway.workers | quote }}
{{- if .gateway.spool.enabled }}
- name: LLM_PROXY_USAGE_SPOOL
  value: /var/lib/llm-proxy/spool
- name: LLM_PROXY_USAGE_SPOOL_SIZE
  value: {{ .gateway.spool.processSize | quote }}
{{- end }}
{{- end }}
{{- if and (eq $.component "gateway") .gateway.state.enabled }}
- name: LLM_PROXY_STATE_PATH
  value: /var/lib/llm-proxy/state/state
- name: LLM_PROXY_STATE_MAX_AGE
  value: {{ .gateway.state.maxAgeSeconds | int | quote }}
{{- end }}
- name: LLM_PROXY_DATABASE_POOL
  value: {{ .database.poolSize | quote }}
{{- range $name, $value := .config }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- include "llm-proxy.env.database" $root }}
- name: LLM_PROXY_KEK
  value: {{ .encryption.kek | quote }}
{{- with .encryption.spare }}
- name: LLM_PROXY_KEK_SPARE
  value: {{ . | quote }}
{{- end }}
{{- with .encryption.shares }}
- name: LLM_PROXY_KEK_SHARES
  value: {{ . | quote }}
{{- end }}
{{- if .tls.existingSecret }}
- name: LLM_PROXY_TLS_CERTIFICATE
  value: /etc/llm-proxy/tls/tls.crt
- name: LLM_PROXY_TLS_KEY
  value: /etc/llm-proxy/tls/tls.key
{{- if .tls.clientCASecret }}
- name: LLM_PROXY_TLS_CLIENT_CA
  value: /etc/llm-proxy/client-ca/ca.crt
{{- end }}
{{- end }}
{{- if include "llm-proxy.kekIn" (list . "env") }}
{{ include "llm-proxy.env.fromFile" (dict "name" "LLM_PROXY_KEK_KEYS" "file" "kek-keys") }}
{{- end }}
{{- if .encryption.aws.existingSecret }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "AWS_ACCESS_KEY_ID" "secret" .encryption.aws.existingSecret "key" .encryption.aws.accessKeyIdKey) }}
{{ include "llm-proxy.env.fromFile" (dict "name" "AWS_SECRET_ACCESS_KEY" "file" "aws-secret-access-key") }}
{{- if .encryption.aws.sessionTokenKey }}
{{ include "llm-proxy.env.fromFile" (dict "name" "AWS_SESSION_TOKEN" "file" "aws-session-token") }}
{{- end }}
{{- end }}
{{- if .encryption.azure.existingSecret }}
{{ include "llm-proxy.env.fromFile" (dict "name" "AZURE_CLIENT_SECRET" "file" "azure-client-secret") }}
{{- end }}
{{- if include "llm-proxy.kekIn" (list . "vault://") }}
{{- if .encryption.vault.tokenPath }}
- name: LLM_PROXY_VAULT_TOKEN_PATH
  value: {{ .encryption.vault.tokenPath | quote }}
{{- else }}
{{ include "llm-proxy.env.fromFile" (dict "name" "VAULT_TOKEN" "file" "vault-token") }}
{{- end }}
{{- end }}
{{- if .egressProxy.existingSecret }}
{{ include "llm-proxy.env.fromFile" (dict "name" "LLM_PROXY_EGRESS_PROXY" "file" "egress-proxy") }}
{{- end }}
{{- if eq $.component "control" }}
{{ include "llm-proxy.env.fromFile" (dict "name" "LLM_PROXY_PEPPERS" "file" "peppers") }}
{{- if .oidc.existingSecret }}
{{ include "llm-proxy.env.fromFile" (dict "name" "LLM_PROXY_OIDC_CLIENT_SECRET" "file" "oidc-client-secret") }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
