package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Kernel is what one node's kernel does with a connection.
type Kernel struct {
	Node    string        `json:"node,omitempty"`
	Result  Result        `json:"result,omitempty"`
	Classes []KernelClass `json:"classes,omitempty"`
	Sets    []KernelSet   `json:"sets,omitempty"`
	Chain   string        `json:"chain,omitempty"`
	Rule    string        `json:"rule,omitempty"`
	// Differences says where the kernel doesn't enforce what the policies mean.
	Differences []string `json:"differences,omitempty"`
	// Unread says why only the kernel's sets could be compared, and not the rules.
	Unread  string `json:"unread,omitempty"`
	Unknown string `json:"unknown,omitempty"`
}

// KernelClass is the class that a pod has in the kernel's sets. If Set is empty, the pod is closed.
type KernelClass struct {
	Direction ruleset.Direction `json:"direction"`
	Pod       string            `json:"pod"`
	Set       string            `json:"set,omitempty"`
	Chain     string            `json:"chain,omitempty"`
	Policies  []string          `json:"policies"`
	Audited   []string          `json:"audited,omitempty"`
}

// KernelSet is a set in which a rule looks up an address of the connection.
type KernelSet struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Has     bool       `json:"has"`
	For     string     `json:"for,omitempty"`
}

// View is the state of a node's kernel, with the ruleset that the kernel should have.
type View struct {
	Node string
	// Want is the ruleset that the agent has applied. Have is the same ruleset, but its sets have the entries that the
	// kernel has (only those entries that matter for the query's packets). Wrong says where the kernel's rules differ
	// from Want.
	Want, Have ruleset.Ruleset
	Wrong      []string
	Unread     string
	Unknown    string
	Links      map[netip.Addr]ruleset.Link
}

const elsewhere = conf.Tunnel

// Packet returns the path's first packet as this node's rules check it. ok is false if this node doesn't check the
// packet.
func (p *Path) Packet(links map[netip.Addr]ruleset.Link) (packet ruleset.Packet, ok bool) {
	if (!p.From.Here && !p.To.Here) || p.From.Address == p.To.Address || (p.From.isOwn && !p.From.Here) {
		return ruleset.Packet{}, false
	}
	packet = ruleset.Packet{
		In: elsewhere, Out: elsewhere, Src: p.From.Address, Dst: p.To.Address, Proto: p.Protocol, Port: p.Port,
	}
	if in, ok := links[p.From.Address]; ok {
		packet.In, packet.InPort = in.In, in.Port
	}
	if out, ok := links[p.To.Address]; ok && out.In != "" {
		packet.Out = out.In
	}
	switch {
	case p.To.isOwn:
		packet.Out = ""
	case p.To.isVacant:
		packet.Out = conf.Bridge
	}
	return packet, true
}

// AddKernel adds the kernel's state to each path that the node checks. Other paths may get a note that says why the
// node doesn't check them.
func (e *Explanation) AddKernel(v View) {
	for i := range e.Paths {
		p := &e.Paths[i]
		packet, ok := p.Packet(v.Links)
		if !ok {
			if note := p.unchecked(); note != "" && !slices.Contains(p.Notes, note) {
				p.Notes = append(p.Notes, note)
			}
			continue
		}
		p.Kernel = &Kernel{Node: v.Node}
		if v.Unknown != "" {
			p.Kernel.Unknown = v.Unknown
			continue
		}
		if err := p.compare(v, packet); err != nil {
			p.Kernel.Unknown = err.Error()
		}
	}
}

func (p *Path) unchecked() string {
	if p.From.Here || p.To.Here || (p.From.Pod == "" && p.To.Pod == "") {
		return ""
	}
	nodes := slices.DeleteFunc([]string{p.From.Node, p.To.Node}, func(n string) bool { return n == "" })
	slices.Sort(nodes)
	where := strings.Join(slices.Compact(nodes), " and ")
	return "neither end is a pod of this node, so its kernel wasn't asked: it is enforced on " +
		cmp.Or(where, "the pods' nodes")
}

func (p *Path) compare(v View, packet ruleset.Packet) error {
	k := p.Kernel
	passes, steps, err := v.Have.Trace(packet)
	if err != nil {
		return err
	}
	if k.Result = Dropped; passes {
		k.Result = Allowed
	}
	k.Differences, k.Unread = append(k.Differences, v.Wrong...), v.Unread
	want := Allowed
	for i, end := range []Place{p.From, p.To} {
		if (end.Here || p.Sides[i].Reason == Vacant && i > 0) && p.Sides[i].Result == Dropped {
			want = Dropped
		}
	}
	if want != k.Result {
		k.Differences = append(k.Differences, fmt.Sprintf("the policies mean that the connection is %s here, and the "+
			"kernel's rules and sets say %s", want, k.Result))
	}
	for i, end := range []Place{p.From, p.To} {
		if end.Here {
			p.compareClass(v, p.Sides[i], end)
		}
	}
	if len(steps) > 0 {
		last := steps[len(steps)-1]
		k.Chain, k.Rule = last.Chain, last.Rule.String()
	}
	for _, c := range k.Classes {
		p.compareSets(v, c, packet)
	}
	return nil
}

func (p *Path) compareClass(v View, s Side, end Place) {
	k := p.Kernel
	found, wanted := classOf(v.Have, s.Direction, end), classOf(v.Want, s.Direction, end)
	class := KernelClass{Direction: s.Direction, Pod: end.Pod, Policies: []string{}}
	if found != nil {
		class.Set, class.Chain, class.Policies, class.Audited = found.Set, found.Chain, found.Policies, found.Audited
	}
	k.Classes = append(k.Classes, class)
	switch {
	case found == nil && wanted == nil && s.Reason != Closed:
		k.Differences = append(k.Differences, fmt.Sprintf("%s is in no %s class, so it is closed: the agent has not put it "+
			"into one yet", end.Pod, s.Direction))
	case found == nil && wanted != nil:
		k.Differences = append(k.Differences, fmt.Sprintf("%s is in no %s class of the kernel, and belongs into that of %s",
			end.Pod, s.Direction, policiesOf(wanted)))
	case found != nil && (wanted == nil || found.Set != wanted.Set):
		k.Differences = append(k.Differences, fmt.Sprintf("the kernel has %s in the %s class of %s, and it belongs elsewhere",
			end.Pod, s.Direction, policiesOf(found)))
	case found != nil && s.Reason == Isolated && !samePolicies(found.Policies, s.Policies):
		k.Differences = append(k.Differences, fmt.Sprintf("the kernel has %s in the %s class of %s, and it is isolated by %s",
			end.Pod, s.Direction, policiesOf(found), excerpt.List(s.Policies, ", ")))
	}
}

func policiesOf(c *ruleset.Class) string {
	switch {
	case len(c.Audited) > 0:
		return "pods that only audited policies would isolate: " + excerpt.List(c.Audited, ", ")
	case len(c.Policies) == 0:
		return "pods that no policy isolates"
	}
	return excerpt.List(c.Policies, ", ")
}

func samePolicies(class, policies []string) bool {
	plain := make([]string, len(class))
	for i, name := range class {
		plain[i] = policy.PlainName(name)
	}
	return sameNames(plain, policies)
}

func classOf(r ruleset.Ruleset, d ruleset.Direction, of Place) (found *ruleset.Class) {
	for i := range r.Classes {
		c := &r.Classes[i]
		if c.Direction != d || !inSet(r, c.Set, of.Address) {
			continue
		}
		if slices.Contains(c.Pods, of.Pod) {
			return c
		}
		found = c
	}
	return found
}

func inSet(r ruleset.Ruleset, name string, a netip.Addr) bool {
	i := slices.IndexFunc(r.Sets, func(s ruleset.Set) bool { return s.Name == name })
	if i < 0 || r.Sets[i].Family != conf.FamilyOf(a) {
		return false
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p, err := a.Prefix(bits); err == nil {
			if _, ok := r.Sets[i].Entries.Get(ruleset.Element{Prefix: p}); ok {
				return true
			}
		}
	}
	return false
}

const maxSets = 10

func (p *Path) compareSets(v View, c KernelClass, packet ruleset.Packet) {
	chain, ok := v.Have.Chain(conf.FamilyOf(packet.Dst), c.Chain)
	if !ok {
		return
	}
	for _, r := range chain.Rules {
		for _, m := range r.Sets {
			var a netip.Addr
			switch m.By {
			case ruleset.Source:
				a = packet.Src
			case ruleset.Destination:
				a = packet.Dst
			default:
				continue
			}
			found := inSet(v.Have, m.Name, a)
			if wanted := inSet(v.Want, m.Name, a); found != wanted {
				words := map[bool]string{true: "has", false: "lacks"}
				p.Kernel.Differences = append(p.Kernel.Differences,
					fmt.Sprintf("the kernel's set %s %s %s, and should not", m.Name, words[found], a))
			}
			set := KernelSet{Name: m.Name, Address: a, Has: found, For: r.Comment}
			if len(p.Kernel.Sets) < maxSets && !slices.Contains(p.Kernel.Sets, set) {
				p.Kernel.Sets = append(p.Kernel.Sets, set)
			}
		}
	}
}
