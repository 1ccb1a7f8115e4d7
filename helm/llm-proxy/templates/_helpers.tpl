{{- define "llm-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* 45 characters leave room for the longest suffix below within the 63 of a DNS label. */ -}}
{{- define "llm-proxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "llm-proxy.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Takes (dict "root" $ "component" "gateway"). */ -}}
{{- define "llm-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "llm-proxy.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "llm-proxy.labels" -}}
{{ include "llm-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: llm-proxy
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Without the chart's version, which may change while no pod needs to. */ -}}
{{- define "llm-proxy.podLabels" -}}
{{ include "llm-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: llm-proxy
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The metadata block; takes root, component, and optionally suffix, annotations, labels. */ -}}
{{- define "llm-proxy.metadata" -}}
{{- $annotations := merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations -}}
name: {{ include "llm-proxy.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "llm-proxy.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "llm-proxy.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llm-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "llm-proxy.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "llm-proxy.databaseSecret" -}}
{{- default .Values.existingSecret .Values.database.existingSecret -}}
{{- end -}}

{{- define "llm-proxy.migrationSecret" -}}
{{- default (include "llm-proxy.databaseSecret" .) .Values.database.migrationSecret -}}
{{- end -}}

{{- define "llm-proxy.cnpgName" -}}
{{ include "llm-proxy.fullname" . }}-postgres
{{- end -}}

{{- define "llm-proxy.devDatabaseName" -}}
{{ include "llm-proxy.fullname" . }}-dev-postgres
{{- end -}}

{{- /* The host when the URLs are put together here; empty when they come whole from the Secret. */ -}}
{{- define "llm-proxy.databaseHost" -}}
{{- if .Values.cnpg.enabled -}}
{{ include "llm-proxy.cnpgName" . }}-rw
{{- else if .Values.devDatabase.enabled -}}
{{ include "llm-proxy.devDatabaseName" . }}
{{- else -}}
{{- .Values.database.host -}}
{{- end -}}
{{- end -}}

{{- /* The release brings a database that exists only after its own resources do. */ -}}
{{- define "llm-proxy.ownDatabase" -}}
{{- if or .Values.cnpg.enabled .Values.devDatabase.enabled -}}true{{- end -}}
{{- end -}}

{{- /* Connections that the release can hold at most: pods while rolling x connections a process. */ -}}
{{- define "llm-proxy.maxGateways" -}}
{{- $replicas := .Values.gateway.replicas -}}
{{- if ne .Values.gateway.autoscaling.type "none" -}}
{{- $replicas = .Values.gateway.autoscaling.maxReplicas -}}
{{- end -}}
{{- add $replicas .Values.gateway.maxSurge -}}
{{- end -}}

{{- /* Pools, and beside them the connections that listen, share leases, write usage and, in control, hold the jobs' lock. */ -}}
{{- define "llm-proxy.gatewayConnections" -}}{{ mul .Values.gateway.workers (add .Values.database.poolSize 3) }}{{- end -}}
{{- define "llm-proxy.controlConnections" -}}{{ add (mul 2 .Values.database.poolSize) 2 }}{{- end -}}

{{- define "llm-proxy.connections" -}}
{{- $gateways := mul (include "llm-proxy.maxGateways" . | int) (include "llm-proxy.gatewayConnections" . | int) -}}
{{- $controls := mul (add .Values.control.replicas .Values.control.maxSurge) (include "llm-proxy.controlConnections" . | int) -}}
{{- add $gateways $controls 1 -}}
{{- end -}}

{{- /* Where the Job of declarations finds the API: a certificate of the pods names the public host, no Service. */ -}}
{{- define "llm-proxy.declarationsUrl" -}}
{{- if .Values.declarations.url -}}
{{- .Values.declarations.url -}}
{{- else if .Values.tls.existingSecret -}}
{{- .Values.issuer -}}
{{- else -}}
http://{{ include "llm-proxy.fullname" . }}-control:{{ .Values.control.service.port }}
{{- end -}}
{{- end -}}

{{- /* A size in MiB, of Kubernetes (1Gi, 500M) or of the program (512MiB, 1G); empty for what is written otherwise. */ -}}
{{- define "llm-proxy.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexReplaceAll "^[0-9]+ *" . "" | lower | trimSuffix "b" | trimSuffix "i" -}}
{{- with get (dict "m" 1 "g" 1024 "t" 1048576) $unit -}}{{ mul $number . }}{{- end -}}
{{- end -}}

{{- /* Ports of the database: the one that the policy names, and the one that the URLs are put together with. */ -}}
{{- define "llm-proxy.databasePorts" -}}
{{- $ports := list (int .Values.networkPolicy.databasePort) -}}
{{- if include "llm-proxy.databaseHost" . -}}{{- $ports = append $ports (int .Values.database.port) -}}{{- end -}}
{{- join "," (uniq $ports) -}}
{{- end -}}
