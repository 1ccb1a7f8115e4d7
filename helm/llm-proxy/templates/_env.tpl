{{- /* Names here are those of gateway/settings.py; tests/helm holds the two together. */ -}}

{{- define "llm-proxy.env.fromSecret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
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
{{ include "llm-proxy.env.fromSecret" (dict "name" "DATABASE_URL" "secret" $secret "key" .Values.database.urlKey) }}
{{- if .Values.database.directUrlKey }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "DATABASE_DIRECT_URL" "secret" $secret "key" .Values.database.directUrlKey) }}
{{- end }}
{{- end }}
{{- include "llm-proxy.env.databaseCA" . }}
{{- end -}}

{{- /* LLM_PROXY_MIGRATION_URL of the role that owns the schema. */ -}}
{{- define "llm-proxy.env.migration" -}}
{{- $host := include "llm-proxy.databaseHost" . -}}
{{- $secret := include "llm-proxy.migrationSecret" . -}}
{{- if .Values.cnpg.enabled }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "LLM_PROXY_MIGRATION_URL" "secret" (printf "%s-app" (include "llm-proxy.cnpgName" .)) "key" "uri") }}
{{- else if $host }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "OWNER_PASSWORD" "secret" $secret "key" .Values.database.migrationPasswordKey) }}
- name: LLM_PROXY_MIGRATION_URL
  value: {{ printf "postgresql://%s:$(OWNER_PASSWORD)@%s:%v/%s?sslmode=%s" .Values.database.migrationUsername $host .Values.database.port .Values.database.name (include "llm-proxy.sslMode" .) | quote }}
{{- else }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "LLM_PROXY_MIGRATION_URL" "secret" $secret "key" .Values.database.migrationUrlKey) }}
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
- name: LLM_PROXY_DRAIN_LEAD
  value: {{ $.values.drainLeadSeconds | quote }}
- name: LLM_PROXY_DRAIN
  value: {{ $.values.drainSeconds | quote }}
- name: LLM_PROXY_DATABASE_POOL
  value: {{ .database.poolSize | quote }}
{{- range $name, $value := .config }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- include "llm-proxy.env.database" $root }}
- name: LLM_PROXY_KEK
  value: {{ .encryption.kek | quote }}
{{- if eq .encryption.kek "env" }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "LLM_PROXY_KEK_KEYS" "secret" (default .existingSecret .encryption.existingSecret) "key" .encryption.kekKeysKey) }}
{{- end }}
{{- if .egressProxy.existingSecret }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "LLM_PROXY_EGRESS_PROXY" "secret" .egressProxy.existingSecret "key" .egressProxy.key) }}
{{- end }}
{{- if eq $.component "control" }}
{{ include "llm-proxy.env.fromSecret" (dict "name" "LLM_PROXY_PEPPERS" "secret" (default .existingSecret .peppers.existingSecret) "key" .peppers.key) }}
{{- end }}
{{- end }}
{{- end -}}
