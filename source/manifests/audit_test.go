package manifests

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-net/weir/policy"
)

// TestAuditAnnotation: a policy is audited only if the annotation's value is the text "true". With any other value the
// policy is enforced.
func TestAuditAnnotation(t *testing.T) {
	manifest := func(annotations, spec string) []byte {
		return fmt.Appendf(nil, "kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\n"+
			"metadata: {name: db, namespace: shop%s}\nspec: {%s}\n", annotations, spec)
	}
	const all, some = "podSelector: {}", "podSelector: {matchLabels: {a: b}}"
	for _, tc := range []struct {
		annotations, other, spec string
		audited                  bool
		problem                  string
	}{
		{``, "", all, false, ""},
		{`, annotations: {weir.io/audit: "true"}`, "", all, true, ""},
		{`, annotations: {weir.io/audit: "false", x: y}`, "", all, false, ""},
		{`, annotations: {weir.io/audit: true}`, "", all, false, "is no text"},
		{`, annotations: {weir.io/audit: "yes"}`, "", all, false, ""}, // package policy reports the value
		{`, annotations: {weir.io/audit: "true", weir.io/audit: "true"}`, "", all, false, "twice"},
		{`, annotations: [weir.io/audit]`, "", all, false, "can't be read"},
		{`, annotations: {weir.io/audit: "true"}`, `, annotations: {weir.io/audit: "true"}`, some, true, "another version"},
		{`, annotations: {weir.io/audit: "true"}`, " ", all, false, "another version"},
		{`, annotations: {weir.io/audit: "true"}`, "", "podSelector: {}, ingres: []", true, "audited as a policy"},
	} {
		texts := map[string][]byte{"a.yaml": manifest(tc.annotations, tc.spec)}
		if tc.other != "" {
			texts["b.yaml"] = manifest(strings.TrimSpace(tc.other), all)
		}
		objects, err := Read(texts)
		if err != nil || len(objects.Policies) == 0 {
			t.Errorf("%+v: %v", tc, err)
		}
		for _, np := range objects.Policies {
			if audited, _ := policy.Audited(np); audited != tc.audited {
				t.Errorf("%s, %s: audited: %v", tc.annotations, tc.other, audited)
			}
		}
		problems := fmt.Sprint(objects.Problems)
		if tc.problem == "" && len(objects.Problems) > 0 || !strings.Contains(problems, tc.problem) {
			t.Errorf("%s, %s: problems: %v, want %q", tc.annotations, tc.other, problems, tc.problem)
		}
	}
}
