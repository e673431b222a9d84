// Package enforced computes a short form of what a ruleset enforces for pods. A program can ask an agent for the short
// form of its ruleset, and compare it with the short form of a ruleset that the program has compiled from the same
// objects.
//
// Invariants:
//   - The package is pure. The same ruleset and endpoints give the same short form in every program.
//   - Sets with the same entries have the same digest. Comments of entries don't matter.
//   - A closed pod is in the short form. The name of its class is empty.
package enforced

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Position says up to which version of the objects an agent enforces policies. It has a resourceVersion for each kind
// of object, and includes all changes up to these versions.
type Position struct {
	Pods       uint64 `json:"pods"`
	Namespaces uint64 `json:"namespaces"`
	Nodes      uint64 `json:"nodes"`
	Policies   uint64 `json:"networkpolicies"`
}

// Includes reports whether p includes all changes that o includes.
func (p Position) Includes(o Position) bool {
	return p.Pods >= o.Pods && p.Namespaces >= o.Namespaces && p.Nodes >= o.Nodes && p.Policies >= o.Policies
}

// Question asks an agent what it enforces.
type Question struct {
	// At is the position that the agent must have enforced before it answers. The agent waits at most for the time Wait.
	At   Position      `json:"at"`
	Wait time.Duration `json:"wait"`
	// Namespaces limits the question to pods of these namespaces. If it is empty, the question is about all pods of the
	// node.
	Namespaces []string `json:"namespaces,omitempty"`
	// Peers limits the numbers and digests of sets in the answer (Set) to entries with these addresses. If Peers is
	// empty, all entries count.
	Peers []netip.Addr `json:"peers,omitempty"`
}

func (q Question) About(endpoints []policy.Endpoint) (about []policy.Endpoint) {
	for _, e := range endpoints {
		if len(q.Namespaces) == 0 || slices.Contains(q.Namespaces, e.Pod.Namespace) {
			about = append(about, e)
		}
	}
	return about
}

// Answer is what an agent enforces. All parts are about the same ruleset.
type Answer struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// At is the position up to which the ruleset includes all changes. It may also include later changes.
	At Position `json:"at"`
	// Faults say why the kernel lacks a part of the ruleset, or why the ruleset is out of date.
	Faults []string `json:"faults,omitempty"`
	// Problems are about faulty parts of policies in the question's namespaces. Faulty parts allow nothing.
	Problems []ruleset.Problem `json:"problems,omitempty"`
	// Endpoints has all attachments of the node, in all namespaces, as they were when the ruleset was compiled.
	Endpoints []policy.Endpoint `json:"endpoints"`
	ShortForm ShortForm         `json:"shortForm"`
}

// ShortForm has the pods with their classes, and the classes with digests of the sets that their rules look up.
type ShortForm struct {
	Pods []Pod `json:"pods"`
	// Classes has each class by the name that Pod.Ingress and Pod.Egress use.
	Classes map[string]Class `json:"classes"`
}

// Pod is what is enforced for one address of a pod.
type Pod struct {
	ID      string     `json:"id"` // the attachment's ID
	Pod     string     `json:"pod"`
	Address netip.Addr `json:"address"`
	// Ingress and Egress name the pod's classes. If a name is empty, the pod is closed in this direction.
	Ingress string `json:"ingress"`
	Egress  string `json:"egress"`
}

// Class has a class's policies, and the number of entries and a digest of each set that the class's rules look up. Two
// classes with the same Chain have the same rules.
type Class struct {
	Chain    string   `json:"chain,omitempty"` // empty if no policy isolates the pods
	Policies []string `json:"policies"`
	Audited  []string `json:"audited,omitempty"`
	Sets     []Set    `json:"sets,omitempty"`
}

type Set struct {
	Name    string `json:"name"`
	Entries int    `json:"entries"`
	Digest  string `json:"digest"` // hash of the entries without comments; empty if there are no entries
}

// Equal reports whether both classes have the same policies, rules (Chain) and sets. It doesn't compare Audited.
func (c Class) Equal(o Class) bool {
	return c.Chain == o.Chain && slices.Equal(c.Policies, o.Policies) && slices.Equal(c.Sets, o.Sets)
}

// Of returns what the ruleset enforces for the endpoints. If the parameter peers isn't empty, the numbers and digests
// of sets count only entries with one of these addresses.
func Of(r ruleset.Ruleset, endpoints []policy.Endpoint, peers []netip.Addr) ShortForm {
	h := shortener{
		ShortForm: ShortForm{Pods: []Pod{}, Classes: map[string]Class{}}, of: r, peers: peers, sets: map[string]ruleset.Set{},
		chains: map[string]ruleset.Chain{}, digests: map[string]Set{},
	}
	for _, s := range r.Sets {
		h.sets[s.Name] = s
	}
	for _, c := range r.Chains {
		h.chains[chainKey(c.Family, c.Name)] = c
	}
	for _, e := range endpoints {
		for _, a := range e.Addresses {
			h.Pods = append(h.Pods, Pod{
				ID: e.ID, Pod: e.Pod.String(), Address: a.Addr,
				Ingress: h.class(ruleset.Ingress, e, a.Addr), Egress: h.class(ruleset.Egress, e, a.Addr),
			})
		}
	}
	return h.ShortForm
}

type shortener struct {
	ShortForm
	of      ruleset.Ruleset
	peers   []netip.Addr
	sets    map[string]ruleset.Set
	chains  map[string]ruleset.Chain
	digests map[string]Set
}

func chainKey(f conf.Family, name string) string { return f.String() + " " + name }

func (h *shortener) class(d ruleset.Direction, e policy.Endpoint, a netip.Addr) string {
	f, own := conf.FamilyOf(a), ruleset.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
	for _, c := range h.of.Classes {
		set := h.sets[c.Set]
		if c.Direction != d || set.Family != f || !slices.Contains(c.Pods, e.Pod.String()) {
			continue
		}
		if _, ok := set.Entries.Get(own); !ok {
			continue
		}
		name := strings.Join(append([]string{f.String(), string(d), c.Chain}, c.Policies...), " ")
		if _, known := h.Classes[name]; !known {
			h.Classes[name] = Class{
				Chain: c.Chain, Policies: c.Policies, Audited: c.Audited, Sets: h.used(h.chains[chainKey(f, c.Chain)]),
			}
		}
		return name
	}
	return ""
}

func (h *shortener) used(c ruleset.Chain) []Set {
	by := map[string]Set{}
	for _, r := range c.Rules {
		for _, m := range r.Sets {
			if _, done := h.digests[m.Name]; !done {
				h.digests[m.Name] = h.digest(h.sets[m.Name])
			}
			by[m.Name] = h.digests[m.Name]
		}
	}
	var all []Set
	for _, name := range slices.Sorted(maps.Keys(by)) {
		all = append(all, by[name])
	}
	return all
}

func (h *shortener) digest(s ruleset.Set) Set {
	out := Set{Name: s.Name}
	sum := sha256.New()
	var line []byte
	for e := range s.Entries.All() {
		if len(h.peers) > 0 && !slices.Contains(h.peers, e.Prefix.Addr()) {
			continue
		}
		out.Entries++
		line, _ = e.Prefix.AppendBinary(line[:0])
		line = append(append(line, e.Proto...), 0)
		line = binary.BigEndian.AppendUint16(line, e.Port)
		line = append(append(line, e.Link...), 0)
		sum.Write(line)
	}
	if out.Entries > 0 {
		const size = 15 // bytes; in base32, 120 bits need no padding
		out.Digest = base32.StdEncoding.EncodeToString(sum.Sum(nil)[:size])
	}
	return out
}
