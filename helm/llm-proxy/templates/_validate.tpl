{{- /*
Refuses values that contradict each other, all at once, each with the mend. What one value may be by itself stands in
values.schema.json.
*/ -}}
{{- define "llm-proxy.validate" -}}
{{- $e := list -}}
{{- with .Values -}}
{{- if not .image.repository -}}
{{- $e = append $e "image.repository is empty: build the image with `make image`, push it to your registry and name it here" -}}
{{- end -}}
{{- if not .issuer -}}
{{- $e = append $e "issuer is empty: set the public https URL under which clients reach /oauth2, such as https://llm.example.com" -}}
{{- end -}}
{{- if and (not .existingSecret) (or (and (include "llm-proxy.kekIn" (list . "env")) (not .encryption.existingSecret)) (not .peppers.existingSecret)) -}}
{{- $e = append $e "no Secret for the key-encryption key and the peppers: create one (README.md shows how) and set existingSecret" -}}
{{- end -}}
{{- if and (not .existingSecret) (not .database.existingSecret) (not .cnpg.enabled) -}}
{{- $e = append $e "no Secret for the database: set existingSecret or database.existingSecret" -}}
{{- end -}}
{{- if and (contains "file:/var/lib/llm-proxy/shares" .encryption.shares) (not .encryption.sharesClaim) -}}
{{- $e = append $e "encryption.sharesClaim is empty: shares on a pod's own disk would be lost with it, and every tenant's secrets with them" -}}
{{- end -}}
{{- if and .encryption.sharesClaim (not .encryption.shares) -}}
{{- $e = append $e "encryption.sharesClaim goes with encryption.shares: set it to file:/var/lib/llm-proxy/shares" -}}
{{- end -}}
{{- if and .tls.clientCASecret (not .tls.existingSecret) -}}
{{- $e = append $e "tls.clientCASecret needs tls.existingSecret: only a server that ends TLS sees callers' certificates" -}}
{{- end -}}
{{- if and (eq (dig "LLM_PROXY_CLIENT_CERTIFICATES" "off" .config) "server") (not .tls.existingSecret) -}}
{{- $e = append $e "config.LLM_PROXY_CLIENT_CERTIFICATES is server, but the pods do not end TLS: set tls.existingSecret" -}}
{{- end -}}
{{- if and (include "llm-proxy.kekIn" (list . "vault://")) (not .encryption.vault.tokenPath) (not .encryption.vault.existingSecret) -}}
{{- $e = append $e "vault:// needs a token: set encryption.vault.tokenPath (an agent's file) or encryption.vault.existingSecret" -}}
{{- end -}}
{{- range $place, $labels := dict "commonLabels" .commonLabels "gateway.podLabels" .gateway.podLabels "control.podLabels" .control.podLabels "migrations.podLabels" .migrations.podLabels -}}
{{- range $word := list "name" "instance" "component" -}}
{{- if hasKey (default dict $labels) (printf "app.kubernetes.io/%s" $word) -}}
{{- $e = append $e (printf "%s holds app.kubernetes.io/%s, by which Deployments, Services and policies find their pods: leave it out" $place $word) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .networkPolicy.enabled (not .networkPolicy.extraEgress) -}}
{{- range splitList "," (printf "%s,%s,%s" .encryption.kek .encryption.spare .encryption.shares) -}}
{{- $port := trim . | regexFind "^vault://[^/]+:[0-9]+/" | regexFind ":[0-9]+/" | trimPrefix ":" | trimSuffix "/" -}}
{{- if and $port (not (has $port (toStrings $.Values.networkPolicy.providerPorts))) -}}
{{- $e = append $e (printf "Vault's port %s is closed by networkPolicy: add it to networkPolicy.providerPorts, or a rule to networkPolicy.extraEgress" $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (or .cnpg.enabled .devDatabase.enabled) (ne (int .database.port) 5432) -}}
{{- $e = append $e "database.port: the release's own database listens on 5432" -}}
{{- end -}}
{{- if .gateway.spool.enabled -}}
{{- $each := include "llm-proxy.mebibytes" .gateway.spool.processSize -}}
{{- $room := include "llm-proxy.mebibytes" .gateway.spool.sizeLimit -}}
{{- if and $each $room (gt (mul (int .gateway.workers) (int64 $each)) (int64 $room)) -}}
{{- $e = append $e (printf "gateway.spool.sizeLimit (%s) is less than gateway.workers (%d) times gateway.spool.processSize (%s): a pod beyond it is evicted, with its usage rows" .gateway.spool.sizeLimit (int .gateway.workers) .gateway.spool.processSize) -}}
{{- end -}}
{{- end -}}
{{- if and .database.directUrlKey (or .database.host .cnpg.enabled .devDatabase.enabled) -}}
{{- $e = append $e "database.directUrlKey goes with URLs from the Secret only: empty it, or empty database.host" -}}
{{- end -}}
{{- if and .cnpg.enabled .devDatabase.enabled -}}
{{- $e = append $e "cnpg.enabled and devDatabase.enabled are both on: choose one database" -}}
{{- end -}}
{{- if and .cnpg.enabled (not .cnpg.appRoleSecret) -}}
{{- $e = append $e (printf "cnpg.appRoleSecret is empty: create a Secret of type kubernetes.io/basic-auth with username %s and a password, and name it" .database.username) -}}
{{- end -}}
{{- if and .database.host (or .cnpg.enabled .devDatabase.enabled) -}}
{{- $e = append $e "database.host is set although the release brings its own database: empty it, or switch cnpg and devDatabase off" -}}
{{- end -}}
{{- if and (or .cnpg.enabled .devDatabase.enabled) (eq .migrations.mode "hook") -}}
{{- $e = append $e "migrations.mode is hook, but the release's own database does not exist yet when hooks run: set migrations.mode to initContainer" -}}
{{- end -}}
{{- if and (ne .gateway.autoscaling.type "none") (gt (int .gateway.autoscaling.minReplicas) (int .gateway.autoscaling.maxReplicas)) -}}
{{- $e = append $e "gateway.autoscaling.minReplicas is above maxReplicas" -}}
{{- end -}}
{{- if and (eq .gateway.autoscaling.type "hpa") (eq (int .gateway.autoscaling.targetCPUUtilization) 0) (not .gateway.autoscaling.inFlightMetric) -}}
{{- $e = append $e "the HPA has nothing to go by: set gateway.autoscaling.targetCPUUtilization or inFlightMetric" -}}
{{- end -}}
{{- if and (eq .gateway.autoscaling.type "hpa") (gt (int .gateway.autoscaling.targetCPUUtilization) 0) (not (dig "requests" "cpu" "" .gateway.resources)) -}}
{{- $e = append $e "the HPA measures CPU against the request: set gateway.resources.requests.cpu" -}}
{{- end -}}
{{- if and (eq .gateway.autoscaling.type "keda") (not .gateway.autoscaling.prometheusAddress) -}}
{{- $e = append $e "gateway.autoscaling.prometheusAddress is empty: KEDA asks Prometheus for the requests in flight" -}}
{{- end -}}
{{- range $component := list "gateway" "control" -}}
{{- $v := index $.Values $component -}}
{{- $fewest := int $v.replicas -}}
{{- if ne (dig "autoscaling" "type" "none" $v) "none" -}}
{{- $fewest = int $v.autoscaling.minReplicas -}}
{{- end -}}
{{- if and $v.pdb.enabled (lt $fewest 2) -}}
{{- $e = append $e (printf "%s.pdb.enabled with a single pod protects nothing: run two, or set %s.pdb.enabled to false" $component $component) -}}
{{- end -}}
{{- if and (eq (int $v.maxSurge) 0) (eq (int $v.maxUnavailable) 0) -}}
{{- $e = append $e (printf "%s.maxSurge and %s.maxUnavailable are both 0: no pod could ever be replaced" $component $component) -}}
{{- end -}}
{{- if and $v.service.nodePort (eq $v.service.type "ClusterIP") -}}
{{- $e = append $e (printf "%s.service.nodePort needs %s.service.type NodePort or LoadBalancer" $component $component) -}}
{{- end -}}
{{- end -}}
{{- if and (or .ingress.enabled .httpRoute.enabled) (not .routes.hosts) -}}
{{- $e = append $e "routes.hosts is empty: name the hosts that Ingress or HTTPRoute serve" -}}
{{- end -}}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) -}}
{{- $e = append $e "httpRoute.parentRefs is empty: name the Gateway that takes the route" -}}
{{- end -}}
{{- if .externalSecret.enabled -}}
{{- if or (not .existingSecret) (not .externalSecret.storeRef) (not .externalSecret.data) -}}
{{- $e = append $e "externalSecret needs existingSecret (the Secret that it fills), storeRef and data" -}}
{{- end -}}
{{- end -}}
{{- with .declarations -}}
{{- if .enabled -}}
{{- if not .operatorSecret -}}
{{- $e = append $e "declarations.operatorSecret is empty: name the Secret with client-id and client-secret of an operator (llm-proxy bootstrap --may-act)" -}}
{{- end -}}
{{- if eq (empty .files) (empty .existingConfigMap) -}}
{{- $e = append $e "declarations needs either files or existingConfigMap" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $most := include "llm-proxy.connections" $ | int -}}
{{- if and (gt (int .database.maxConnections) 0) (gt $most (int .database.maxConnections)) -}}
{{- $e = append $e (printf "the release may hold %d database connections while rolling, above database.maxConnections (%d): lower the replicas or the pool sizes, or put a pooler between" $most (int .database.maxConnections)) -}}
{{- end -}}
{{- end -}}
{{- if $e -}}
{{- fail (printf "\n\nllm-proxy: %d value(s) to mend:\n  - %s\n" (len $e) (join "\n  - " $e)) -}}
{{- end -}}
{{- end -}}
