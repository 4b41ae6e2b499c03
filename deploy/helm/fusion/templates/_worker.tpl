{{/* The pod of a worker. Arguments: root, name (the pool), pool (merged), component, oneJob (a pod for one job),
     group (of nodes), rank in it: above 0 it follows the pod of rank 0, and is given no database and no Redis. */}}
{{- define "fusion.workerPod" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
{{- $markedByLease := and $root.Values.disruptionMarks.enabled (not .oneJob) (not .group) -}}
metadata:
  labels:
    {{- include "fusion.labels" (dict "root" $root "component" .component) | nindent 4 }}
    fusion/pool: {{ .name }}
    {{- with .group }}
    fusion/group: {{ . }}
    {{- end }}
    {{- if .rank }}
    fusion/role: follower
    {{- end }}
    {{- if $markedByLease }}
    fusion/marks: lease
    {{- end }}
  {{- if not $markedByLease }}
  annotations:
    # A busy worker that is moved loses the steps since its last checkpoint. An idle one is scaled in anyway.
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
  {{- end }}
spec:
  serviceAccountName: {{ include "fusion.fullname" $root }}-worker
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- if or .oneJob .group }}
  restartPolicy: Never
  {{- end }}
  securityContext: {{- include "fusion.podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  # SIGTERM drains: save, upload, give the job back.
  terminationGracePeriodSeconds: {{ $pool.gracePeriodSeconds }}
  {{- with $pool.runtimeClass }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $pool.priorityClass }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if $pool.topologySpread }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector: {matchLabels: {fusion/pool: {{ .name }}, app.kubernetes.io/instance: {{ $root.Release.Name }}}}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "fusion.image" (dict "root" $root "service" "worker") | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      securityContext: {{- include "fusion.containerSecurity" $root | nindent 8 }}
      {{- if .group }}
      # Drained, a worker ends well, and its Job would be done for good; the group is to start again.
      command: [tini, --, python3, -c, "from fusion_worker.__main__ import main; main(); raise SystemExit('drained')"]
      {{- end }}
      env:
        {{- include (ternary "fusion.s3Env" "fusion.storeEnv" (gt (int .rank) 0)) $root | nindent 8 }}
        - {name: FUSION_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: FUSION_POOL, value: {{ .name | quote }}}
        - {name: FUSION_WORK_DIR, value: /var/lib/fusion}
        {{- if gt (int $pool.gpu.count) 0 }}
        - {name: FUSION_DEVICE, value: cuda}
        - {name: FUSION_GPU_CLASS, value: {{ $pool.gpu.class | quote }}}
        - {name: FUSION_NUM_PROCESSES, value: {{ $pool.gpu.count | quote }}}
        {{- else }}
        - {name: FUSION_DEVICE, value: cpu}
        {{- end }}
        - {name: FUSION_SHARDING, value: {{ $pool.sharding }}}
        # 30 s before Kubernetes kills, the job is given back at its last checkpoint, come what may.
        - {name: FUSION_DRAIN_GRACE_S, value: {{ max 30 (sub (int $pool.gracePeriodSeconds) 30) | quote }}}
        - {name: FUSION_CHECKPOINT_EVERY_S, value: {{ $pool.checkpointSeconds | quote }}}
        - {name: FUSION_METRICS_HOST, value: 0.0.0.0}
        - {name: FUSION_METRICS_PORT, value: "9100"}
        {{- if .oneJob }}
        - {name: FUSION_EXIT_AFTER_JOBS, value: "1"}
        - {name: FUSION_EXIT_WHEN_IDLE_S, value: {{ $pool.idleSeconds | quote }}}
        {{- end }}
        {{- if .group }}
        - {name: FUSION_GROUP_SECRET_FILE, value: /etc/fusion/group/secret}
        - {name: FUSION_NODES, value: {{ $pool.nodes | quote }}}
        - {name: FUSION_NODE_RANK, value: {{ .rank | quote }}}
        - {name: FUSION_LEADER_HOST, value: {{ printf "%s-node-0-0-0.%s" .group .group | quote }}}
        {{- end }}
        {{- include "fusion.extraEnv" $pool.env | nindent 8 }}
      ports:
        - {name: metrics, containerPort: 9100}
      livenessProbe:
        exec: {command: [python3, -m, fusion_worker.alive, /var/lib/fusion]}
        initialDelaySeconds: 30
        periodSeconds: 20
        timeoutSeconds: 10
        failureThreshold: 3
      {{- $requests := $pool.resources.requests }}
      {{- $limits := $pool.resources.limits }}
      {{- if eq $pool.scratch.storageClass "emptyDir" }}
      # The kubelet counts an emptyDir as the pod's ephemeral storage: ask the node for it, and let its own limit hold.
      {{- $requests = merge (dict "ephemeral-storage" $pool.scratch.size) $requests }}
      {{- $limits = omit $limits "ephemeral-storage" }}
      {{- end }}
      resources:
        requests: {{- toYaml $requests | nindent 10 }}
        limits:
          {{- toYaml $limits | nindent 10 }}
          {{- if gt (int $pool.gpu.count) 0 }}
          {{ $pool.gpu.resource }}: {{ $pool.gpu.count }}
          {{- end }}
      volumeMounts:
        {{- include (ternary "fusion.s3Mounts" "fusion.storeMounts" (gt (int .rank) 0)) $root | nindent 8 }}
        {{- if .group }}
        - {name: group, mountPath: /etc/fusion/group, readOnly: true}
        {{- end }}
        - {name: scratch, mountPath: /var/lib/fusion}
        - {name: tmp, mountPath: /tmp}
        {{- if $pool.shm }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
  volumes:
    {{- include (ternary "fusion.s3Volumes" "fusion.storeVolumes" (gt (int .rank) 0)) (dict "root" $root "role" "worker") | nindent 4 }}
    {{- if .group }}
    - name: group
      secret:
        secretName: {{ $root.Values.groups.existingSecret }}
        defaultMode: 0440
        items: [{key: {{ $root.Values.groups.key | quote }}, path: secret}]
    {{- end }}
    - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
    {{- if $pool.shm }}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $pool.shm }}}}
    {{- end }}
    - name: scratch
      {{- if eq $pool.scratch.storageClass "emptyDir" }}
      emptyDir: {sizeLimit: {{ $pool.scratch.size }}}
      {{- else }}
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            {{- with $pool.scratch.storageClass }}
            storageClassName: {{ . }}
            {{- end }}
            resources: {requests: {storage: {{ $pool.scratch.size }}}}
      {{- end }}
  {{- with $pool.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := $pool.tolerations }}
  {{- if gt (int $pool.gpu.count) 0 }}
  {{- $tolerations = append $tolerations (dict "key" $pool.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- if $pool.spot }}
  {{- range list "cloud.google.com/gke-spot" "kubernetes.azure.com/scalesetpriority" "karpenter.sh/capacity-type" }}
  {{- $tolerations = append $tolerations (dict "key" . "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- end }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* The trigger of a pool: how many slots it wants, as the orchestrator says. */}}
{{- define "fusion.demandTrigger" -}}
- type: metrics-api
  metadata:
    url: http://{{ include "fusion.fullname" .root }}-orchestrator.{{ .root.Release.Namespace }}:8001/demand/{{ .name }}
    valueLocation: demand
    targetValue: "1"
    activationTargetValue: "0"
{{- end }}
