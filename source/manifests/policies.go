package manifests

import (
	stdjson "encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
)

// nameless is the name that a policy gets if its own name can't be read.
const nameless = "nameless"

type policyReader struct {
	object
	np           networkingv1.NetworkPolicy
	wrong        []complaint
	anyDirection bool // the policy's directions can't be read, so it isolates both
	noSelector   bool // the policy's selector can't be read, so it selects all pods of the namespace
}

// addPolicy reads a NetworkPolicy. If the namespace can't be read, no policy is added. If the selector can't be read,
// the policy isolates all pods of its namespace, and allows nothing. If another part can't be read, the policy isolates
// the pods that it selects, and allows nothing. Annotations are an exception: see readAudit.
func (c *content) addPolicy(o object) {
	r := policyReader{object: o}
	m := o.readMeta(o.raw["metadata"], true)
	r.np.Name, r.np.Namespace = m.name, m.namespace
	if len(m.wrongName) > 0 {
		r.wrong = append(r.wrong, m.wrongName...)
		r.np.Name = nameless
	}
	e := entry{where: o.where, object: "NetworkPolicy " + r.np.Namespace + "/" + r.np.Name}
	if len(m.wrongNamespace) > 0 {
		e.object, e.name = fmt.Sprintf("NetworkPolicy %.80q", m.name), m.name
		e.damage = noNamespace
		e.complain(append(m.wrongNamespace, m.wrongName...)...)
		c.entries = append(c.entries, e)
		return
	}
	e.ignore(m.ignored)
	if o.apiVersion != "networking.k8s.io/v1" {
		r.wrong = append(r.wrong, complaint{"apiVersion", fmt.Sprintf("%q: must be networking.k8s.io/v1", o.apiVersion)})
	}
	if o.kind != "NetworkPolicy" {
		r.wrong = append(r.wrong, complaint{"kind", fmt.Sprintf("%q: must be NetworkPolicy", o.kind)})
	}
	r.readSpec()
	notAudited := r.readAudit()
	if len(r.wrong) == 0 {
		for _, p := range policy.Invalid(&r.np) {
			r.wrong = append(r.wrong, complaint{p.Field, p.Message})
		}
	}
	switch {
	case r.noSelector:
		e.damage = noSelector
		r.np.Spec = networkingv1.NetworkPolicySpec{}
		r.anyDirection = true
	case len(r.wrong) > 0:
		e.damage = denying
	}
	if e.damage != intact {
		r.np.Spec.Ingress, r.np.Spec.Egress = nil, nil
		if r.anyDirection || len(r.np.Spec.PolicyTypes) == 0 {
			r.np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
		}
	}
	if e.complain(append(r.wrong, notAudited...)...); e.damage == intact && len(notAudited) > 0 {
		e.damage = partly
	}
	e.key, e.policy = e.object, &r.np
	c.entries = append(c.entries, e)
}

// readAudit reads the annotation policy.AuditAnnotation. If the annotation can't be read, the policy is enforced.
func (r *policyReader) readAudit() (wrong []complaint) {
	const path = "metadata.annotations"
	var metadata struct {
		Annotations map[string]stdjson.RawMessage `json:"annotations"`
	}
	err := decode(r.raw["metadata"], &metadata)
	raw, given := metadata.Annotations[policy.AuditAnnotation]
	field := path + "." + policy.AuditAnnotation
	var value string
	switch {
	case err != nil:
		return []complaint{{path, "can't be read, so the policy is enforced and not audited"}}
	case !given:
		return nil
	case slices.Contains(r.duplicates, path), slices.Contains(r.duplicates, field):
		return []complaint{{field, "it is there twice, so the policy is enforced"}}
	case stdjson.Unmarshal(raw, &value) != nil:
		return []complaint{{field, fmt.Sprintf("%.80s is no text, so the policy is enforced: write it in quotes", raw)}}
	}
	r.np.Annotations = map[string]string{policy.AuditAnnotation: value}
	return nil
}

func (r *policyReader) report(field string, errs ...error) {
	for _, err := range errs {
		// The paths in errors of sigs.k8s.io/json are relative to the decoded value. Here they become paths from the
		// object's root.
		at, why := field, err.Error()
		if m := fieldInError.FindStringSubmatch(why); m != nil {
			at, why = field+joinPath(m[2])+m[2], m[1]+" field"
		}
		r.wrong = append(r.wrong, complaint{at, why})
	}
}

var fieldInError = regexp.MustCompile(`^(unknown|duplicate) field "(.*)"$`)

func joinPath(path string) string {
	if strings.HasPrefix(path, "[") {
		return ""
	}
	return "."
}

func (r *policyReader) readSpec() {
	for _, key := range slices.Sorted(maps.Keys(r.raw)) {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "spec", "status"}, key) {
			r.wrong, r.anyDirection = append(r.wrong, complaint{key, "unknown field"}), true
			r.noSelector = r.noSelector || r.raw["spec"] == nil // the unknown field may be a misspelt "spec"
		}
	}
	var spec map[string]stdjson.RawMessage
	if err := stdjson.Unmarshal(orEmpty(r.raw["spec"]), &spec); err != nil {
		r.wrong, r.noSelector = append(r.wrong, complaint{"spec", err.Error()}), true
		return
	}
	for _, key := range slices.Sorted(maps.Keys(spec)) {
		if !slices.Contains([]string{"podSelector", "policyTypes", "ingress", "egress"}, key) {
			r.wrong, r.anyDirection = append(r.wrong, complaint{"spec." + key, "unknown field"}), true
			r.noSelector = r.noSelector || spec["podSelector"] == nil
		}
	}
	r.reportDuplicates()
	s := &r.np.Spec
	errs := decodeStrict(spec["podSelector"], &s.PodSelector)
	if _, err := metav1.LabelSelectorAsSelector(&s.PodSelector); err != nil {
		errs = append(errs, err)
	}
	r.report("spec.podSelector", errs...)
	r.noSelector = r.noSelector || len(errs) > 0
	if errs := decodeStrict(spec["policyTypes"], &s.PolicyTypes); len(errs) > 0 {
		r.report("spec.policyTypes", errs...)
		r.anyDirection = true
	}
	for i, t := range s.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			why := fmt.Sprintf("%q is neither Ingress nor Egress", t)
			r.wrong, r.anyDirection = append(r.wrong, complaint{fmt.Sprintf("spec.policyTypes[%d]", i), why}), true
		}
	}
	r.report("spec.ingress", decodeStrict(spec["ingress"], &s.Ingress)...)
	r.report("spec.egress", decodeStrict(spec["egress"], &s.Egress)...)
}

// reportDuplicates reports fields outside of metadata and status that are given twice. A policy with such fields allows
// nothing. If policyTypes is given twice, the policy also isolates its pods in both directions. If a field outside of
// policyTypes, ingress and egress is given twice, the policy also selects all pods of its namespace.
func (r *policyReader) reportDuplicates() {
	for _, f := range r.duplicates {
		if strings.HasPrefix(f, "status.") || f == "status" || strings.HasPrefix(f, "metadata.") {
			continue // readMeta reports duplicates in metadata, and the status doesn't matter
		}
		r.wrong = append(r.wrong, complaint{f, fmt.Sprintf("%q is already set: it is there twice", f)})
		switch {
		case strings.HasPrefix(f, "spec.ingress"), strings.HasPrefix(f, "spec.egress"):
		case f == "spec.policyTypes":
			r.anyDirection = true
		default:
			r.noSelector = true
		}
	}
}
