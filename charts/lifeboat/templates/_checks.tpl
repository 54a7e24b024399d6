{{- /*
What values.schema.json cannot say: values that contradict each other, and a step that would endanger the quorum. Included
by the StatefulSet, so that nothing is rendered that is refused here. tests/chart/refusals.py tries each one.
*/ -}}
{{- define "lifeboat.checks" -}}
{{- $count := int .Values.replicaCount -}}
{{- $name := include "lifeboat.fullname" . -}}

{{- if and (eq .Values.mode "standby") (not .Values.peers) -}}
{{- fail "peers must be given in mode standby: where members of the primary site listen for members, for example [\"east-0.example.net:7401\"]" -}}
{{- end -}}

{{- if eq .Values.mode "primary" -}}
{{- $expect := int (include "lifeboat.expect" .) -}}
{{- if gt $expect $count -}}
{{- fail (printf "bootstrapExpect is %d and replicaCount %d: so many voters would never be there; lower bootstrapExpect" $expect $count) -}}
{{- end -}}
{{- if le (mul 2 $expect) $count -}}
{{- fail (printf "bootstrapExpect is %d and replicaCount %d: two clusters could be founded; expect more than half of the members" $expect $count) -}}
{{- end -}}
{{- if gt $expect 9 -}}
{{- fail (printf "%d voters are expected, and 9 are the most; set bootstrapExpect, or fewer members" $expect) -}}
{{- end -}}
{{- end -}}

{{- if and .Values.persistence.existingClaim (gt $count 1) -}}
{{- fail "persistence.existingClaim is for one member; for several, make claims named data-<pod> beforehand" -}}
{{- end -}}

{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) .Values.primaryService.enabled -}}
{{- fail "primaryService needs a service account of its own: set serviceAccount.create or serviceAccount.name" -}}
{{- end -}}

{{- if lt (int .Values.terminationGracePeriodSeconds) (add 15 (int .Values.preStopSeconds) | int) -}}
{{- fail "terminationGracePeriodSeconds must be at least preStopSeconds and 15 s for draining" -}}
{{- end -}}

{{- with .Values.dr.switchover -}}
{{- if and .to (ne .to .confirm) -}}
{{- fail (printf "dr.switchover.to is %q: set dr.switchover.confirm to the same to move the primary site" .to) -}}
{{- end -}}
{{- end -}}

{{- /* The API server answers only while a release is installed or upgraded; elsewhere nothing is found. */ -}}
{{- $now := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- if $now -}}
{{- $before := int (default 1 $now.spec.replicas) -}}
{{- $told := and (ne .Values.scaleDownTo nil) (eq (int .Values.scaleDownTo) $count) -}}
{{- if and (lt $count $before) (not $told) -}}
{{- $prefix := include "lifeboat.memberPrefix" . -}}
{{- $left := list -}}
{{- range $index := untilStep (sub $before 1 | int) (sub $count 1 | int) -1 -}}
{{- $left = append $left (printf "%s-%d" $prefix $index) -}}
{{- end -}}
{{- fail (printf "replicaCount goes from %d to %d, and a pod that goes while its member still counts weakens the quorum. Remove the members first, one after the other: %s (kubectl exec %s-0 -- /lifeboat members remove NAME); then upgrade with scaleDownTo=%d" $before $count (join ", " $left) $name $count) -}}
{{- end -}}
{{- end -}}
{{- end -}}
