{{- /*
What gateway and control have in common. Every template takes (dict "root" $ "component" "gateway" "values" .Values.gateway).
*/ -}}

{{- define "llm-proxy.deployment" -}}
{{- $root := .root -}}
{{- $v := .values -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "llm-proxy.metadata" (dict "root" $root "component" .component "suffix" .component "annotations" $v.deploymentAnnotations) | nindent 2 }}
spec:
  {{- if eq (dig "autoscaling" "type" "none" $v) "none" }}
  replicas: {{ $v.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  minReadySeconds: {{ $v.minReadySeconds }}
  progressDeadlineSeconds: {{ add 300 $v.probes.startupSeconds $v.drainLeadSeconds $v.drainSeconds }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ $v.maxSurge }}
      maxUnavailable: {{ $v.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "llm-proxy.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "llm-proxy.podLabels" . | nindent 8 }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ .component }}
        {{- with $root.Values.secretsRevision }}
        llm-proxy/secrets-revision: {{ . | quote }}
        {{- end }}
        {{- with $root.Values.commonAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $v.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "llm-proxy.podBasics" (dict "root" $root "serviceAccountName" (include "llm-proxy.serviceAccountName" $root)) | nindent 6 }}
      terminationGracePeriodSeconds: {{ add $v.drainLeadSeconds $v.drainSeconds 25 }}
      {{- with $v.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $v.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        {{- with $v.topologySpreadConstraints }}
        {{- toYaml . | nindent 8 }}
        {{- else }}
        {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "llm-proxy.selectorLabels" $ | nindent 14 }}
        {{- end }}
        {{- end }}
      {{- if or $v.extraInitContainers (eq $root.Values.migrations.mode "initContainer") }}
      initContainers:
        {{- if eq $root.Values.migrations.mode "initContainer" }}
        - name: migrate
          {{- include "llm-proxy.migrateContainer" $root | nindent 10 }}
        {{- end }}
        {{- with $v.extraInitContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "llm-proxy.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [{{ .component }}]
          {{- with $root.Values.containerSecurityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          env:
            {{- include "llm-proxy.env.process" . | trim | nindent 12 }}
            {{- with $v.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $v.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - name: http
              containerPort: 8080
              protocol: TCP
          {{- include "llm-proxy.probes" (dict "probes" $v.probes "scheme" (include "llm-proxy.scheme" $root | upper)) | nindent 10 }}
          {{- with $v.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          volumeMounts:
            {{- include "llm-proxy.volumeMounts" . | nindent 12 }}
            {{- with $v.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
        {{- with $v.extraContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
        {{- include "llm-proxy.volumes" . | nindent 8 }}
        {{- if eq $root.Values.migrations.mode "initContainer" }}
        {{- include "llm-proxy.secretVolume" (dict "root" $root "component" "migrate") | trim | nindent 8 }}
        {{- end }}
        {{- with $v.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end -}}

{{- /* What the pods speak: https when they end TLS themselves. */ -}}
{{- define "llm-proxy.scheme" -}}
{{- if .Values.tls.existingSecret -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{- define "llm-proxy.podBasics" -}}
serviceAccountName: {{ .serviceAccountName }}
automountServiceAccountToken: {{ .root.Values.serviceAccount.automountToken }}
enableServiceLinks: false
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Where pods that run once are placed: the hooks' and the test's. */ -}}
{{- define "llm-proxy.jobPlacement" -}}
{{- with .Values.jobs.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.jobs.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "llm-proxy.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http, scheme: {{ .scheme }}}
  periodSeconds: 2
  timeoutSeconds: {{ .probes.livenessTimeoutSeconds }}
  failureThreshold: {{ div (add .probes.startupSeconds 1) 2 }}
livenessProbe:
  httpGet: {path: /livez, port: http, scheme: {{ .scheme }}}
  periodSeconds: {{ .probes.livenessPeriodSeconds }}
  timeoutSeconds: {{ .probes.livenessTimeoutSeconds }}
  failureThreshold: {{ .probes.livenessFailures }}
readinessProbe:
  httpGet: {path: /readyz, port: http, scheme: {{ .scheme }}}
  periodSeconds: {{ .probes.readinessPeriodSeconds }}
  timeoutSeconds: {{ .probes.readinessTimeoutSeconds }}
  failureThreshold: {{ .probes.readinessFailures }}
{{- end -}}

{{- /* Takes root and component; the init container of migrations has a volume of its own. */ -}}
{{- define "llm-proxy.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if and (eq .component "gateway") .root.Values.gateway.spool.enabled }}
- name: spool
  mountPath: /var/lib/llm-proxy/spool
{{- end }}
{{- if and (eq .component "gateway") .root.Values.gateway.state.enabled }}
- name: state
  mountPath: /var/lib/llm-proxy/state
{{- end }}
{{- if include "llm-proxy.secretFiles" . | trim }}
- name: {{ .component }}-secrets
  mountPath: /etc/llm-proxy/secrets
  readOnly: true
{{- end }}
{{- if .root.Values.database.caSecret }}
- name: database-ca
  mountPath: /etc/llm-proxy/database-ca
  readOnly: true
{{- end }}
{{- if ne .component "migrate" }}
{{- if .root.Values.tls.existingSecret }}
- name: tls
  mountPath: /etc/llm-proxy/tls
  readOnly: true
{{- if .root.Values.tls.clientCASecret }}
- name: client-ca
  mountPath: /etc/llm-proxy/client-ca
  readOnly: true
{{- end }}
{{- end }}
{{- if .root.Values.encryption.sharesClaim }}
- name: shares
  mountPath: /var/lib/llm-proxy/shares
{{- end }}
{{- end }}
{{- end -}}

{{- define "llm-proxy.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .root.Values.tmpSizeLimit }}
{{- with .root.Values.gateway.spool }}
{{- if and (eq $.component "gateway") .enabled }}
- name: spool
  emptyDir:
    sizeLimit: {{ .sizeLimit }}
{{- end }}
{{- end }}
{{- with .root.Values.gateway.state }}
{{- if and (eq $.component "gateway") .enabled }}
- name: state
  {{- if .existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .sizeLimit }}
  {{- end }}
{{- end }}
{{- end }}
{{- include "llm-proxy.secretVolume" . }}
{{- if .root.Values.database.caSecret }}
- name: database-ca
  secret:
    secretName: {{ .root.Values.database.caSecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- if ne .component "migrate" }}
{{- with .root.Values.tls }}
{{- if .existingSecret }}
- name: tls
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
{{- if .clientCASecret }}
- name: client-ca
  secret:
    secretName: {{ .clientCASecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}
{{- end }}
{{- with .root.Values.encryption.sharesClaim }}
- name: shares
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "llm-proxy.secretVolume" -}}
{{- with include "llm-proxy.secretFiles" . | trim }}
- name: {{ $.component }}-secrets
  projected:
    defaultMode: 0440
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- end -}}

{{- /* All of the container but its name: the hook Job and the init container run the same. */ -}}
{{- define "llm-proxy.migrateContainer" -}}
image: {{ include "llm-proxy.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [migrate]
{{- with .Values.containerSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
env:
  {{- include "llm-proxy.env.migration" . | trim | nindent 2 }}
  {{- with .Values.migrations.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.migrations.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "llm-proxy.volumeMounts" (dict "root" . "component" "migrate") | nindent 2 }}
{{- end -}}

{{- define "llm-proxy.service" -}}
{{- $v := .values -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "llm-proxy.metadata" (dict "root" .root "component" .component "suffix" .component "annotations" $v.service.annotations) | nindent 2 }}
spec:
  type: {{ $v.service.type }}
  {{- if and $v.service.trafficDistribution (semverCompare ">=1.31.0-0" .root.Capabilities.KubeVersion.Version) }}
  trafficDistribution: {{ $v.service.trafficDistribution }}
  {{- end }}
  selector:
    {{- include "llm-proxy.selectorLabels" . | nindent 4 }}
  ports:
    - name: http
      port: {{ $v.service.port }}
      targetPort: http
      protocol: TCP
      appProtocol: {{ include "llm-proxy.scheme" .root }}
      {{- with $v.service.nodePort }}
      nodePort: {{ . }}
      {{- end }}
{{- end -}}

{{- define "llm-proxy.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "llm-proxy.metadata" (dict "root" .root "component" .component "suffix" .component) | nindent 2 }}
spec:
  maxUnavailable: {{ .values.pdb.maxUnavailable }}
  {{- if semverCompare ">=1.27.0-0" .root.Capabilities.KubeVersion.Version }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  {{- end }}
  selector:
    matchLabels:
      {{- include "llm-proxy.selectorLabels" . | nindent 6 }}
{{- end -}}
