package policy

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// AuditAnnotation makes a NetworkPolicy an audited one, if its value is "true". An audited policy isolates nothing
// and allows nothing. The agent reports the connections that the policy would drop if it were enforced.
//
// It is an annotation, not a label: tools (kustomize, Helm) copy labels from a template to all of its objects. Such
// a copy must not end the enforcement of a policy.
const AuditAnnotation = "weir.io/audit"

const auditField = "metadata.annotations[" + AuditAnnotation + "]"

// Audited reports whether the policy is an audited one. If the annotation has any other value than "true" and
// "false", Audited returns false and an error: the policy is enforced.
func Audited(np *networkingv1.NetworkPolicy) (bool, error) {
	switch value, ok := np.Annotations[AuditAnnotation]; {
	case !ok, value == "false":
		return false, nil
	case value == "true":
		return true, nil
	default:
		return false, fmt.Errorf(`%.80q is neither "true" nor "false"; the policy is enforced`, value)
	}
}

func allAudited(policies []*networkingv1.NetworkPolicy) bool {
	return !slices.ContainsFunc(policies, func(np *networkingv1.NetworkPolicy) bool {
		audited, _ := Audited(np)
		return !audited
	})
}

// KeepAudit returns only AuditAnnotation of a policy's annotations; nil if the policy doesn't have it. Policy needs
// no other annotation.
func KeepAudit(annotations map[string]string) map[string]string {
	if value, ok := annotations[AuditAnnotation]; ok {
		return map[string]string{AuditAnnotation: value}
	}
	return nil
}

// auditClass computes the class of pods that only audited policies would isolate. Its chain drops nothing, and logs
// the first packet of each connection that the policies would drop. The agent finds out what the other end's
// policies say.
//
// ok is false if the kernel refuses the class set, or an entry of it. Then nothing is logged for these pods.
func (l *lowering) auditClass(g *group) (k class, ok bool) {
	rules := l.agreedRules(g.policies)
	id := ruleset.Identity(g.key, rules)
	k = class{
		Class: ruleset.Class{
			Direction: l.direction, Policies: []string{}, Audited: g.policies.all(), Set: l.family.Set(l.side.sets + id),
			Chain: l.side.chains + id,
		},
		key: g.key,
	}
	if why := l.refusesAny(k.Set, g); why != "" {
		for _, list := range g.policies {
			for i := range list {
				l.to.problems.report(&list[i], string(l.direction), refusedByKernel(why)+
					"; what this audited policy would drop is not reported")
			}
		}
		return k, false
	}
	const why = "weir: what the audited policies would drop"
	l.fill(&k, g, append(rules,
		ruleset.Rule{Track: ruleset.First, Comment: why, Action: ruleset.Log, To: conf.AuditLogPrefix + k.Chain},
		ruleset.Rule{Comment: why, Action: ruleset.Return}))
	k.enter.Comment = "weir: pods under audited policies: " + strings.Join(k.Audited, ", ")
	return k, true
}

// refusesAny returns why the kernel refuses the class set or an entry of it; empty if it accepts all.
func (l *lowering) refusesAny(set string, g *group) (why string) {
	if why = l.refused.Set(l.family, "", set); why != "" || len(l.refused) == 0 {
		return why
	}
	for _, e := range g.pods {
		for _, a := range e.of(l.family) {
			refusal := ruleset.Refusal{Family: l.family, Set: set, Element: entry(hostPrefix(a), "").Element}
			if why, refused := l.refused[refusal]; refused {
				return why
			}
		}
	}
	return ""
}
