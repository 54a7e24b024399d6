{{- /*
Names, labels and addresses that more than one template needs.

The labels of selectors are few and never change: a StatefulSet's selector, and the labels of its volume claims, cannot be
changed once they are installed, so no version may stand in them. tests/chart/immutable.py holds them to it.
*/ -}}

{{- define "lifeboat.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 40 characters, so that names of pods and of what hangs on them stay within 63. */ -}}
{{- define "lifeboat.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lifeboat.headless" -}}
{{- include "lifeboat.fullname" . }}-headless
{{- end -}}

{{- define "lifeboat.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "lifeboat.fullname" . -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- define "lifeboat.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lifeboat.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "lifeboat.memberSelector" -}}
{{ include "lifeboat.selectorLabels" . }}
app.kubernetes.io/component: member
{{- end -}}

{{- define "lifeboat.labels" -}}
{{ include "lifeboat.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Metadata of an object: a dict of root, name, and perhaps labels, annotations, component and namespace. */ -}}
{{- define "lifeboat.metadata" -}}
{{- $root := .root -}}
name: {{ .name }}
namespace: {{ default $root.Release.Namespace .namespace }}
labels:
  {{- include "lifeboat.labels" $root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "lifeboat.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* Where clients find some ready member. */ -}}
{{- define "lifeboat.clientEndpoint" -}}
http://{{ include "lifeboat.fullname" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.service.port }}
{{- end -}}

{{- /* The domain in which the headless Service gives each pod its name. */ -}}
{{- define "lifeboat.podDomain" -}}
{{ include "lifeboat.headless" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{- define "lifeboat.memberPrefix" -}}
{{- default .Values.site .Values.memberNamePrefix -}}
{{- end -}}

{{- define "lifeboat.expect" -}}
{{- default .Values.replicaCount .Values.bootstrapExpect -}}
{{- end -}}

{{- /* Which series are this release's: what the ServiceMonitor's target labels make of the headless Service. */ -}}
{{- define "lifeboat.series" -}}
{{- default (printf "namespace=\"%s\",job=\"%s\"" .Release.Namespace (include "lifeboat.headless" .)) .Values.prometheusRule.selector -}}
{{- end -}}

{{- /* Whether the API server knows a sleep before a container is stopped. */ -}}
{{- define "lifeboat.sleeps" -}}
{{- if and (gt (int .Values.preStopSeconds) 0) (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) -}}yes{{- end -}}
{{- end -}}

{{- /* A container that runs a command of ours once. A dict of root, name and args. */ -}}
{{- define "lifeboat.tool" -}}
{{- $root := .root -}}
name: {{ .name }}
image: {{ include "lifeboat.image" $root }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
command: [/lifeboat]
args:
  {{- toYaml .args | nindent 2 }}
env:
  - name: LIFEBOAT_ENDPOINTS
    value: {{ include "lifeboat.clientEndpoint" $root }}
resources:
  requests:
    cpu: 10m
    memory: 32Mi
  limits:
    memory: 128Mi
securityContext:
  {{- toYaml $root.Values.containerSecurityContext | nindent 2 }}
{{- end -}}

{{- /* What pods that run such a container have in common. */ -}}
{{- define "lifeboat.toolPod" -}}
restartPolicy: Never
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ include "lifeboat.serviceAccount" . }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end -}}
