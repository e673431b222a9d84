package reach

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/verdict"
)

type Kind string

// A party of the kind Pods has pods that no policy can tell apart. A party of the kind World has a region of addresses
// outside of the pods' networks.
const (
	Pods  Kind = "pods"
	World Kind = "world"
)

// Party is one end of connections. It has Pods or Networks, depending on its Kind.
type Party struct {
	Kind Kind `json:"kind"`
	// Name is "NAMESPACE/WORKLOAD" of pods, or the networks of a region. No two parties have the same name.
	Name      string         `json:"name"`
	Namespace string         `json:"namespace,omitempty"`
	Pods      []string       `json:"pods,omitempty"`
	Addresses [][]netip.Addr `json:"addresses,omitempty"`
	// Labels has the labels that all of the pods have. Labels that controllers give to single pods are left out.
	Labels   map[string]string `json:"labels,omitempty"`
	Networks []netip.Prefix    `json:"networks,omitempty"`
	Services []ServicePort     `json:"services,omitempty"`
	Ingress  []string          `json:"ingress,omitempty"`
	Egress   []string          `json:"egress,omitempty"`
	// Off is true if enforcement is off for the pods. Unknown is true if only the pod's attachment is known, and not the
	// pod: all connections from and to the pod are then denied.
	Off     bool `json:"off,omitempty"`
	Unknown bool `json:"unknown,omitempty"`
}

type partyEnds []oneOfEach

type oneOfEach [len(conf.Families)]partyEnd

type partyEnd struct {
	verdict.End
	known bool // true if the party has addresses of the family, or if its pods have no addresses
	bare  bool // true for pods without addresses
}

func endAt(e verdict.End) partyEnd { return partyEnd{End: e, known: true} }

// unit is a pod, with at most one address of each family. A pod with several addresses of a family is several units.
// Pods that share an address are one unit.
type unit struct {
	// pod is the pod in the first of the compared states. If this state doesn't have the pod, only the namespace and the
	// name are set. If several pods have the address, the name has the names of all of them.
	pod       policy.Pod
	addresses oneAddress
	key       string // two units have different keys if a policy of one of the states may tell them apart
	ends      partyEnds
}

type oneAddress [len(conf.Families)]netip.Addr

func (u *universe) addPods() {
	facts := newFacts(u)
	by := map[string][]unit{}
	for _, one := range u.units() {
		one.key = facts.key(one)
		by[one.key] = append(by[one.key], one)
	}
	type group struct {
		Party
		ends partyEnds
	}
	var groups []group
	for _, key := range slices.Sorted(maps.Keys(by)) {
		units := by[key]
		slices.SortFunc(units, func(a, b unit) int { return cmp.Compare(a.pod.Name, b.pod.Name) })
		groups = append(groups, group{u.party(units), units[0].ends})
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Pods[0], b.Pods[0]))
	})
	names := map[string]int{}
	for _, g := range groups {
		names[g.Name]++
	}
	for _, g := range groups {
		if names[g.Name] > 1 {
			g.Name += " [" + g.Pods[0] + "]"
		}
		u.parties, u.ends = append(u.parties, g.Party), append(u.ends, g.ends)
	}
}

func (u *universe) units() []unit {
	e := u.evaluators[0]
	type id struct{ name, uid string }
	addresses := map[id]*[len(conf.Families)][]netip.Addr{}
	pods := map[id]policy.Pod{}
	var order []id
	seen := map[id]bool{} // pods with addresses
	for _, a := range e.Known() {
		end := e.At(a)
		at := id{end.Name(), ""}
		one := policy.Pod{}
		one.Namespace, one.Name, _ = strings.Cut(end.Name(), "/")
		for _, p := range end.Pods() {
			seen[id{p.Namespace + "/" + p.Name, p.UID}] = true
		}
		switch all := end.Pods(); len(all) {
		case 0:
			at.uid = "unknown"
		case 1:
			one, at.uid = all[0], "of "+all[0].UID
		default: // pods with the same address are one unit, and so are several versions of one pod
			one = all[0]
			names := anyOf(all)
			if one.Name, at.uid = names, "at "+a.String(); names == all[0].Name {
				at.uid = "of several versions"
			}
		}
		if addresses[at] == nil {
			addresses[at] = &[len(conf.Families)][]netip.Addr{}
			pods[at] = one
			order = append(order, at)
		}
		f := conf.FamilyOf(a)
		addresses[at][f] = append(addresses[at][f], a)
	}
	var all []unit
	for _, at := range order {
		for i := range max(len(addresses[at][conf.IPv4]), len(addresses[at][conf.IPv6])) {
			one := unit{pod: pods[at]}
			for f := range conf.Families {
				if i < len(addresses[at][f]) {
					one.addresses[f] = addresses[at][f][i]
				}
			}
			all = append(all, one)
		}
	}
	for _, p := range u.states[0].Pods {
		if !p.HostNetwork && !p.Finished && !seen[id{p.Namespace + "/" + p.Name, p.UID}] {
			all = append(all, unit{pod: p})
		}
	}
	u.findEnds(all)
	return all
}

// anyOf returns the pods' names, with "or" between them. A name includes the pod's namespace only if the first pod is
// in another namespace.
func anyOf(pods []policy.Pod) string {
	var names []string
	for _, p := range pods {
		name := p.Name
		if p.Namespace != pods[0].Namespace {
			name = p.Namespace + "/" + name
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " or ")
}

func (u *universe) findEnds(all []unit) {
	for s, e := range u.evaluators {
		pods := map[policy.Name]policy.Pod{}
		for _, p := range u.states[s].Pods {
			pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = p
		}
		for i := range all {
			one := &all[i]
			var at oneOfEach
			if one.addresses == (oneAddress{}) {
				pod := one.pod
				if s > 0 {
					pod = pods[policy.Name{Namespace: pod.Namespace, Name: pod.Name}]
				}
				end := partyEnd{End: e.Without(pod), known: true, bare: true}
				at = oneOfEach{end, end}
			}
			for f, a := range one.addresses {
				if a.IsValid() {
					at[f] = endAt(e.At(a))
				}
			}
			one.ends = append(one.ends, at)
		}
	}
}

type facts struct {
	world  *world
	labels map[string]bool // keys of labels in the policies' podSelectors
	ports  map[string]bool // names of ports in the policies
}

func newFacts(u *universe) facts {
	f := facts{world: u.world, labels: map[string]bool{}, ports: portNames(u.states)}
	add := func(s *metav1.LabelSelector) {
		if s == nil {
			return
		}
		for key := range s.MatchLabels {
			f.labels[key] = true
		}
		for _, r := range s.MatchExpressions {
			f.labels[r.Key] = true
		}
	}
	for _, s := range u.states {
		for _, np := range s.Policies {
			add(&np.Spec.PodSelector)
			for _, peers := range peersOf(np) {
				for _, p := range peers {
					add(p.PodSelector)
				}
			}
		}
	}
	return f
}

// key returns a text for the unit. Two units have the same key only if no policy can tell them apart, and both belong
// to the same workload.
func (f facts) key(u unit) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q", u.pod.Namespace)
	for _, a := range u.addresses {
		if a.IsValid() {
			fmt.Fprint(&b, f.world.at(a))
		}
		b.WriteByte(';')
	}
	for s, ends := range u.ends {
		for _, end := range ends {
			if !end.known {
				continue
			}
			pods := end.Pods()
			fmt.Fprintf(&b, "%v,%d:", end.Off(), len(pods))
			if len(pods) != 1 {
				fmt.Fprint(&b, u.addresses)
				continue
			}
			f.writePod(&b, pods[0], s == 0)
		}
	}
	return b.String()
}

func (f facts) writePod(b *strings.Builder, p policy.Pod, workload bool) {
	fmt.Fprintf(b, "%q", p.Namespace)
	for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
		if f.labels[k] || workload && !policy.IsOfOnePod(k) {
			fmt.Fprintf(b, "%q=%q,", k, p.Labels[k])
		}
	}
	unknown := slices.Clone(p.Unknown)
	slices.Sort(unknown)
	fmt.Fprintf(b, "?%q", unknown)
	var ports []string
	for _, n := range p.Ports {
		if f.ports[n.Name] {
			ports = append(ports, fmt.Sprintf("%q/%q/%d", n.Name, n.Proto, n.Number))
		}
	}
	slices.Sort(ports)
	fmt.Fprint(b, ports)
}

func (u *universe) party(units []unit) Party {
	first := units[0]
	p := Party{Kind: Pods, Namespace: first.pod.Namespace, Name: first.pod.Namespace + "/" + workloads(units)}
	labels := maps.Clone(first.pod.Labels)
	for _, one := range units {
		p.Pods = append(p.Pods, one.pod.Name)
		var addresses []netip.Addr
		for _, a := range one.addresses {
			if a.IsValid() {
				addresses = append(addresses, a)
			}
		}
		p.Addresses = append(p.Addresses, addresses)
		maps.DeleteFunc(labels, func(k, v string) bool { return one.pod.Labels[k] != v || policy.IsOfOnePod(k) })
	}
	p.Labels = labels
	for _, end := range first.ends[0] {
		p.Off = p.Off || end.known && end.Off()
		p.Unknown = p.Unknown || end.known && len(end.Pods()) == 0
	}
	p.Services = u.servicesOf(units)
	return p
}

const maxWorkloads = 3

func workloads(units []unit) string {
	var names []string
	for _, one := range units {
		names = append(names, workload(one.pod, len(units) > 1))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if more := len(names) - maxWorkloads; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxWorkloads-1], ", "), more+1)
	}
	return strings.Join(names, ", ")
}

// generated matches names that controllers give to pods. They end in a hash and random characters, in random
// characters, or in a number.
var generated = regexp.MustCompile(
	`^(.+?)(-[bcdfghjklmnpqrstvwxz2456789]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}` +
		`|-[bcdfghjklmnpqrstvwxz2456789]{5}|-[0-9]+)$`)

// workload guesses the name of the pod's workload: the pod's name without the end that a controller has made. If the
// name has no such end, workload returns the pod's name. It also returns the pod's name if the parameter several is
// false and the pod has no labels of controllers.
func workload(p policy.Pod, several bool) string {
	made := slices.ContainsFunc(slices.Collect(maps.Keys(p.Labels)), policy.IsOfOnePod)
	if m := generated.FindStringSubmatch(p.Name); m != nil && (made || several) {
		return m[1]
	}
	return p.Name
}
