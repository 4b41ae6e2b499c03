{{- define "fusion.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "fusion.image" -}}
{{ .root.Values.image.registry }}/fusion-{{ .service }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "fusion.selector" -}}
app.kubernetes.io/name: fusion
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fusion.labels" -}}
{{ include "fusion.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The pod's side of "restricted" (Kubernetes pod security standards). */}}
{{- define "fusion.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "fusion.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Settings that every service reads. Secrets are files: nothing secret is in a pod's environment. */}}
{{- define "fusion.storeEnv" -}}
- {name: FUSION_DATABASE_URL_FILE, value: /etc/fusion/postgres/url}
- {name: FUSION_REDIS_URL_FILE, value: /etc/fusion/redis/url}
{{- if .Values.caBundle.configMap }}
- {name: PGSSLROOTCERT, value: /etc/fusion/ca/ca.crt}
{{- end }}
{{ include "fusion.s3Env" . }}
{{- end }}

{{/* Those of them that a follower reads, too: it has no database and no Redis. */}}
{{- define "fusion.s3Env" -}}
{{- $s3 := .Values.s3 -}}
- {name: FUSION_S3_ENDPOINT, value: {{ include "fusion.s3Endpoint" . | quote }}}
{{- with $s3.publicEndpoint }}
- {name: FUSION_S3_PUBLIC_ENDPOINT, value: {{ . | quote }}}
{{- end }}
- {name: FUSION_S3_BUCKET, value: {{ $s3.bucket | quote }}}
- {name: FUSION_S3_REGION, value: {{ $s3.region | quote }}}
- {name: FUSION_S3_ACCESS_KEY_FILE, value: /etc/fusion/s3/access-key}
- {name: FUSION_S3_SECRET_KEY_FILE, value: /etc/fusion/s3/secret-key}
- {name: FUSION_LOG_FORMAT, value: json}
{{- with .Values.tracing.endpoint }}
- {name: FUSION_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if .Values.caBundle.configMap }}
- {name: SSL_CERT_FILE, value: /etc/fusion/ca/ca.crt}
- {name: AWS_CA_BUNDLE, value: /etc/fusion/ca/ca.crt}
{{- end }}
{{- end }}

{{- define "fusion.extraEnv" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{- define "fusion.storeMounts" -}}
- {name: postgres, mountPath: /etc/fusion/postgres, readOnly: true}
- {name: redis, mountPath: /etc/fusion/redis, readOnly: true}
{{ include "fusion.s3Mounts" . }}
{{- end }}

{{- define "fusion.s3Mounts" -}}
- {name: s3, mountPath: /etc/fusion/s3, readOnly: true}
{{- if .Values.caBundle.configMap }}
- {name: ca, mountPath: /etc/fusion/ca, readOnly: true}
{{- end }}
{{- end }}

{{/* role: api, orchestrator, worker or migrate; each takes what is its own where that is given. */}}
{{- define "fusion.storeVolumes" -}}
{{- $v := .root.Values -}}
{{- $url := get $v.postgres.keys (printf "%sUrl" .role) | default $v.postgres.keys.url -}}
- name: postgres
  secret:
    secretName: {{ include "fusion.storeSecret" (dict "root" .root "store" "postgres") }}
    defaultMode: 0440
    items: [{key: {{ $url | quote }}, path: url}]
- name: redis
  secret:
    secretName: {{ include "fusion.storeSecret" (dict "root" .root "store" "redis") }}
    defaultMode: 0440
    items: [{key: {{ $v.redis.keys.url | quote }}, path: url}]
{{ include "fusion.s3Volumes" . }}
{{- end }}

{{- define "fusion.s3Volumes" -}}
{{- $v := .root.Values -}}
- name: s3
  secret:
    secretName: {{ get $v.s3.secretOf .role | default (include "fusion.storeSecret" (dict "root" .root "store" "s3")) }}
    defaultMode: 0440
    items:
      - {key: {{ $v.s3.keys.accessKey | quote }}, path: access-key}
      - {key: {{ $v.s3.keys.secretKey | quote }}, path: secret-key}
{{- with $v.caBundle.configMap }}
- name: ca
  configMap: {name: {{ . }}, items: [{key: {{ $v.caBundle.key | quote }}, path: ca.crt}]}
{{- end }}
{{- end }}

{{- define "fusion.storeSecret" -}}
{{- $store := index .root.Values .store -}}
{{- if $store.trial }}{{ include "fusion.fullname" .root }}-trial-{{ .store }}
{{- else }}{{ $store.existingSecret }}
{{- end }}
{{- end }}

{{- define "fusion.s3Endpoint" -}}
{{- if .Values.s3.trial }}http://{{ include "fusion.fullname" . }}-trial-s3:7070
{{- else }}{{ .Values.s3.endpoint }}
{{- end }}
{{- end }}

{{/* Ports of S3 alone, a list as JSON. */}}
{{- define "fusion.s3Ports" -}}
{{- $given := .Values.networkPolicies.s3Ports -}}
{{- $endpoint := include "fusion.s3Endpoint" . -}}
{{- $port := regexFind ":[0-9]+$" (urlParse $endpoint).host | trimPrefix ":" | default (ternary "443" "80" (hasPrefix "https:" $endpoint)) -}}
{{- default (list (int $port)) $given | toJson -}}
{{- end }}

{{/* When the schema migrates: Secrets of trial stores, and the stores, are installed with the chart, so before it. What a
     hook has made is no part of the release, so it goes once all have succeeded; where one failed it stays to be read. */}}
{{- define "fusion.migrateHook" -}}
helm.sh/hook: {{ ternary "post-install" "pre-install" (or .Values.postgres.trial .Values.redis.trial .Values.s3.trial) }},pre-upgrade
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* A pool with what it does not say taken from workerPoolDefaults. */}}
{{- define "fusion.pool" -}}
{{- mustMergeOverwrite (deepCopy .root.Values.workerPoolDefaults) (deepCopy .pool) | toJson -}}
{{- end }}

{{- define "fusion.webhookVolume" -}}
{{- with .Values.webhooks.existingSecret }}
- name: webhooks
  secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: {{ $.Values.webhooks.key | quote }}, path: key}]}
{{- end }}
{{- end }}
