package policy

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// AuditAnnotation with the value "true" makes a NetworkPolicy an audited policy: it isolates nothing and allows
// nothing, and the agent reports the connections that the policy would drop.
//
// It is an annotation and not a label, because kustomize and Helm charts often copy labels to all objects. A copied
// label could end the enforcement of a policy.
const AuditAnnotation = "weir.io/audit"

const auditField = "metadata.annotations[" + AuditAnnotation + "]"

// Audited reports whether the policy is an audited policy. If the annotation has a value other than "true" and "false",
// it returns false and an error.
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

// KeepAudit returns only AuditAnnotation, because weir uses no other annotation of a policy. It returns nil if
// AuditAnnotation is missing.
func KeepAudit(annotations map[string]string) map[string]string {
	if value, ok := annotations[AuditAnnotation]; ok {
		return map[string]string{AuditAnnotation: value}
	}
	return nil
}

// auditClass computes the class of pods that only audited policies select. The class's chain drops nothing. It logs the
// first packet of each connection that these policies would drop. ok is false if the kernel refuses the class set or an
// entry of this set.
func (l *classifier) auditClass(g *group) (k class, ok bool) {
	rules := l.agreedRules(g.policies)
	id := ruleset.Identity(g.key, rules)
	k = class{
		Class: ruleset.Class{
			Direction: l.direction, Family: l.family, Policies: []string{}, Audited: g.policies.all(),
			Set: l.family.Set(l.side.sets + id), Chain: l.side.chains + id,
		},
		key: g.key,
	}
	if why := l.refusesAny(k.Set, g); why != "" {
		for _, list := range g.policies {
			for i := range list {
				l.to.problems.report(list[i], string(l.direction), refusedByKernel(why)+
					"; what this audited policy would drop is not reported")
			}
		}
		return k, false
	}
	const why = "weir: what the audited policies would drop"
	l.fill(&k, g, append(rules,
		ruleset.Rule{
			Track: ruleset.First, Comment: why, Action: ruleset.Log, To: conf.AuditLogPrefix + k.Chain, Audits: l.direction,
		},
		ruleset.Rule{Comment: why, Action: ruleset.Return}))
	k.enter.Comment = "weir: pods under audited policies: " + strings.Join(k.Audited, ", ")
	return k, true
}

func (l *classifier) refusesAny(set string, g *group) (why string) {
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
