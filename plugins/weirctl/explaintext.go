package main

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

func explanationLines(p *client.Printer, e explain.Explanation) {
	for i, path := range e.Paths {
		if i > 0 {
			p.Line()
		}
		pathLines(p, path, e.Paths[:i])
	}
	if len(e.Paths) == 0 {
		p.Line(e.Query.From.String(), " to ", e.Query.To.String(), ": ", result(e.Result))
	}
	if len(e.Notes)+len(e.Gaps) > 0 {
		p.Line()
	}
	for _, n := range e.Notes {
		p.Line("note: ", n)
	}
	for _, g := range e.Gaps {
		p.Line("unknown: ", g)
	}
	if e.Source != "" {
		p.Line()
		p.Line(sourceLine(e))
	}
}

func result(r explain.Result) client.Styled {
	if r == explain.Allowed {
		return client.Styled{Style: client.Green, Text: string(r)}
	}
	return client.Styled{Style: client.Red, Text: strings.ToUpper(string(r))}
}

// pathLines prints a path, with the verdicts at its two ends (Path.Sides). If an earlier path has the same pods and
// the same verdicts, pathLines names the earlier path instead of repeating the verdicts.
func pathLines(p *client.Printer, path explain.Path, before []explain.Path) {
	port := strings.ToUpper(string(path.Protocol))
	if path.Protocol == ruleset.ICMPv6 {
		port = "ICMPv6"
	}
	if path.Port != 0 {
		port = fmt.Sprintf("%s port %d", port, path.Port)
	}
	through := ""
	if path.Through != "" {
		through = ", through " + path.Through
	}
	p.Line(client.Styled{Style: client.Bold, Text: place(path.From) + " to " + place(path.To)}, ", ", port, through, ": ",
		result(path.Result))
	for _, n := range path.Notes {
		p.Line("  note: ", n)
	}
	if len(path.Alike) > 0 {
		p.Line("  the same for ", listed(path.Alike), ", behind the same Service")
	}
	for _, o := range before {
		if o.From.Pod == path.From.Pod && o.To.Pod == path.To.Pod && reflect.DeepEqual(o.Sides, path.Sides) {
			p.Line("  for the same reasons as from ", addressOf(o.From), " to ", addressOf(o.To))
			allKernelLines(p, path)
			return
		}
	}
	for _, s := range path.Sides {
		sideLines(p, s)
	}
	allKernelLines(p, path)
}

func listed(names []string) string {
	if more := len(names) - 5; more > 0 {
		return strings.Join(names[:5], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// addressOf returns the place's address, or the pod's name if the address is made up.
func addressOf(p explain.Place) string {
	if p.Invented {
		return p.Pod
	}
	return p.Address.String()
}

func place(p explain.Place) string {
	switch {
	case p.Invented:
		return p.Pod
	case p.Pod != "" && p.What != "":
		return fmt.Sprintf("%s (%s, %s)", p.Pod, p.Address, p.What)
	case p.Pod != "" && p.Node != "":
		return fmt.Sprintf("%s (%s, on %s)", p.Pod, p.Address, p.Node)
	case p.Pod != "":
		return fmt.Sprintf("%s (%s)", p.Pod, p.Address)
	case p.What != "":
		return fmt.Sprintf("%s (%s)", p.Address, p.What)
	}
	return p.Address.String()
}

func sideLines(p *client.Printer, s explain.Side) {
	of := ""
	if s.Pod != "" {
		of = " of " + s.Pod
	}
	p.Line("  ", string(s.Direction), of, ": ", result(s.Result), ", ", reason(s))
	var policies, allows []string
	for _, name := range s.Policies {
		policies = append(policies, "NetworkPolicy "+name)
	}
	listLines(p, policies, "NetworkPolicies isolate it too")
	auditLines(p, s)
	for _, r := range s.Allows {
		if s.Result == explain.Allowed {
			allows = append(allows, "allowed by "+r.Policy+" "+r.Field+matched(r))
		}
	}
	listLines(p, allows, "rules allow it too")
	if len(s.Nearest) == 0 {
		if s.Change != "" {
			p.Line("    no rule of these policies allows anything ", preposition(s.Direction), " other ends")
			p.Line("    to allow it: ", s.Change)
		}
		return
	}
	near := s.Nearest[0]
	p.Line("    nearest rule: NetworkPolicy ", near.Policy, " ", near.Field)
	missLines(p, "      ", near.Misses, s.Change == "")
	if s.Change != "" {
		p.Line("    to allow it: ", s.Change)
	}
	if more := len(s.Nearest) - 1; more == 1 {
		p.Line("    1 more rule doesn't allow it either (-o json lists it)")
	} else if more > 1 {
		p.Line("    ", fmt.Sprint(more), " more rules don't allow it either (-o json lists them)")
	}
}

// listLines prints the lines of a list. Of a long list, it prints the first lines and the number of the rest.
func listLines(p *client.Printer, lines []string, rest string) {
	shown := lines
	if len(lines) > excerpt.Named+1 {
		shown = lines[:excerpt.Named]
	}
	for _, l := range shown {
		p.Line("    ", l)
	}
	if more := len(lines) - len(shown); more > 0 {
		p.Line("    ", fmt.Sprint(more), " more ", rest, " (-o json lists them)")
	}
}

// missLines prints the conditions that a connection doesn't meet and, if changes is true, the changes that together
// would allow the connection.
func missLines(p *client.Printer, indent string, misses []verdict.Miss, changes bool) {
	said := map[string]bool{}
	for _, m := range misses {
		p.Line(indent, m.Why)
		if !changes || said[m.Change] {
			continue
		}
		begin := "to allow it: "
		if len(said) > 0 {
			begin = "and also: "
		}
		p.Line(indent, begin, m.Change)
		said[m.Change] = true
	}
}

func auditLines(p *client.Printer, s explain.Side) {
	if len(s.Audited) == 0 {
		return
	}
	names := listed(s.Audited)
	switch {
	case s.WouldDrop:
		p.Line("    ", client.Styled{Style: client.Yellow, Text: "audited: would be dropped by " + names})
		if len(s.NearestAudited) == 0 {
			p.Line("      no rule of these policies allows anything ", preposition(s.Direction), " other ends")
			return
		}
		near := s.NearestAudited[0]
		p.Line("      nearest rule: NetworkPolicy ", near.Policy, " ", near.Field)
		missLines(p, "        ", near.Misses, true)
	case len(s.OnlyAudited) > 0:
		for _, r := range s.OnlyAudited {
			p.Line("    only the audited policy ", r.Policy, " would allow it: ", r.Field, matched(r))
		}
	default:
		p.Line("    audited, and not enforced: ", names)
	}
}

func preposition(d ruleset.Direction) string {
	if d == ruleset.Egress {
		return "to"
	}
	return "from"
}

func matched(r explain.Rule) string {
	var parts []string
	for _, field := range []string{r.Peer, r.Port} {
		if field != "" {
			parts = append(parts, strings.TrimPrefix(field, r.Field+"."))
		}
	}
	if len(parts) == 0 {
		return ", which allows everything"
	}
	if len(parts) == 1 {
		return ": " + parts[0] + " matches"
	}
	return ": " + strings.Join(parts, " and ") + " match"
}

func reason(s explain.Side) string {
	switch s.Reason {
	case explain.Isolated:
		return "isolated by"
	case explain.Open:
		return "no policy isolates the pod in this direction"
	case explain.HostNetwork:
		return "the pod uses its node's network, so no policy applies"
	case explain.Vacant:
		if s.Direction == ruleset.Egress {
			return "no pod has this address, so no pod sends from it"
		}
		return "no pod has this address, so its node drops the packets"
	case explain.NoPod:
		return "no pod is at this end, so no policy applies"
	case explain.FromNode:
		return "packets from a node to its own pods aren't checked"
	case explain.Itself:
		return "a pod always reaches itself"
	case explain.Off:
		return "enforcement is off for the pod"
	case explain.Closed:
		return "the pod is closed, because the agent doesn't know it"
	case explain.Uncertain:
		return "it is uncertain which pod this is; isolated by"
	}
	return string(s.Reason)
}

func sourceLine(e explain.Explanation) string {
	var nodes []string
	asked := false
	for _, path := range e.Paths {
		for _, k := range path.Kernels {
			asked = true
			if k.Unknown == "" && !slices.Contains(nodes, k.Node) {
				nodes = append(nodes, k.Node)
			}
		}
	}
	slices.Sort(nodes)
	from := "From " + strings.TrimSuffix(e.Source, ".")
	switch {
	case !asked:
		return from + ". To see what the kernel has, run weirctl on the pods' nodes."
	case len(nodes) == 0:
		return from + ". No agent has answered."
	}
	return from + ", and the agents of " + listed(nodes) + "."
}

func allKernelLines(p *client.Printer, path explain.Path) {
	kernelLines(p, path.Kernel)
	for i := range path.Kernels {
		kernelLines(p, &path.Kernels[i])
	}
}

func kernelLines(p *client.Printer, k *explain.Kernel) {
	if k == nil {
		return
	}
	of := ""
	if k.Node != "" {
		of = " of " + k.Node
	}
	if k.Unknown != "" {
		p.Line("  kernel", of, ": unknown, ", k.Unknown)
		return
	}
	p.Line("  kernel", of, ": ", result(k.Result))
	for _, c := range k.Classes {
		if c.Set == "" {
			p.Line("    ", c.Pod, " is in no ", string(c.Direction), " class, so it is closed")
			continue
		}
		chain := ""
		if c.Chain != "" {
			chain = ", chain " + c.Chain
		}
		p.Line("    ", c.Pod, " is in the ", string(c.Direction), " class of ", classPolicies(c), chain)
	}
	for _, s := range k.Sets {
		has := "doesn't have"
		if s.Has {
			has = "has"
		}
		p.Line("    ", s.Name, " ", has, " ", s.Address.String(), " (", s.For, ")")
	}
	if k.Rule != "" {
		p.Line("    ", k.Chain, " decides: ", k.Rule)
	}
	if k.Unread != "" {
		p.Line("    the kernel's rules could not be compared: ", k.Unread)
	}
	for _, d := range k.Differences {
		p.Line("  ", client.Styled{Style: client.Red, Text: "DIFFERENCE: " + d})
	}
}

func classPolicies(c explain.KernelClass) string {
	switch {
	case len(c.Audited) > 0:
		return "pods that only audited policies would isolate: " + listed(c.Audited)
	case len(c.Policies) == 0:
		return "pods that no policy isolates"
	}
	return listed(c.Policies)
}
