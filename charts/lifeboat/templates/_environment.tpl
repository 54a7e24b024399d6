{{- /*
The environment of a member: who it is, where it listens and is reached, where it finds the others, and the settings.
The order matters: a variable may name only those before it.
*/ -}}
{{- define "lifeboat.environment" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_INDEX
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
- name: LIFEBOAT_NAME
  value: {{ include "lifeboat.memberPrefix" . }}-$(POD_INDEX)
- name: LIFEBOAT_SITE
  value: {{ .Values.site }}
- name: LIFEBOAT_ROLE
  value: {{ ternary "voter" "mirror" (eq .Values.mode "primary") }}
- name: LIFEBOAT_DATA_DIR
  # Below the root of the volume, which may hold a lost+found.
  value: /data/lifeboat
- name: LIFEBOAT_CLIENT_LISTEN
  value: {{ printf "%s:7400" .Values.listenAddress | quote }}
- name: LIFEBOAT_PEER_LISTEN
  value: {{ printf "%s:7401" .Values.listenAddress | quote }}
- name: LIFEBOAT_CLIENT_URL
  value: {{ default (printf "http://$(POD_NAME).%s:7400" (include "lifeboat.podDomain" .)) .Values.advertise.clientUrl }}
- name: LIFEBOAT_PEER_URL
  value: {{ default (printf "http://$(POD_NAME).%s:7401" (include "lifeboat.podDomain" .)) .Values.advertise.peerUrl }}
{{- if eq .Values.mode "primary" }}
- name: LIFEBOAT_BOOTSTRAP_EXPECT
  # From a ConfigMap, so that scaling changes no pod: only a member without data reads it.
  valueFrom:
    configMapKeyRef:
      name: {{ include "lifeboat.fullname" . }}-founding
      key: bootstrap-expect
{{- end }}
- name: LIFEBOAT_DISCOVER
  value: {{ prepend .Values.peers (printf "dns:%s:7401" (include "lifeboat.podDomain" .)) | join "," | quote }}
{{- if .Values.primaryService.enabled }}
- name: LIFEBOAT_KUBERNETES_POD
  value: $(POD_NAME)
- name: LIFEBOAT_KUBERNETES_LABEL
  value: {{ .Values.primaryService.label }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: LIFEBOAT_{{ $name | upper }}
  value: {{ if kindIs "slice" $value }}{{ join "," $value | quote }}{{ else if kindIs "float64" $value }}{{ $value | int64 | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
