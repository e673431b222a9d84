// Package enforced describes in a short form what a ruleset enforces for pods. A program can compare the description of
// a node's ruleset with that of a ruleset that it compiles from the same objects.
//
// Invariants:
//   - The package is pure. The same ruleset and endpoints give the same short form, whichever program computes it.
//   - Sets with the same entries have the same digest. The entries' comments don't matter.
//   - A closed pod is in the short form, with an empty class.
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

// Position has, for each kind of object, the resourceVersion up to which all changes are enforced.
type Position struct {
	Pods       uint64 `json:"pods"`
	Namespaces uint64 `json:"namespaces"`
	Nodes      uint64 `json:"nodes"`
	Policies   uint64 `json:"networkpolicies"`
}

// Includes reports whether p has all changes that o has.
func (p Position) Includes(o Position) bool {
	return p.Pods >= o.Pods && p.Namespaces >= o.Namespaces && p.Nodes >= o.Nodes && p.Policies >= o.Policies
}

// Question asks an agent what it enforces.
type Question struct {
	// At is what must be enforced before the agent answers. The agent waits at most Wait.
	At   Position      `json:"at"`
	Wait time.Duration `json:"wait"`
	// Namespaces limits the question to pods of these namespaces. If it is empty, the question is about all
	// pods of the node.
	Namespaces []string `json:"namespaces,omitempty"`
	// Unless Peers is empty, sets in the answer are described by their entries with these addresses only.
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

// Answer is what an agent enforces. All of it is about one ruleset.
type Answer struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// At is the position up to which the ruleset includes all changes. It may include later ones.
	At Position `json:"at"`
	// Faults say why the kernel lacks a part of the ruleset, or why the ruleset is old.
	Faults []string `json:"faults,omitempty"`
	// Problems are about faulty parts of policies in the question's namespaces. These parts allow nothing.
	Problems []ruleset.Problem `json:"problems,omitempty"`
	// Endpoints are the attachments that the ruleset was made for: all of the node, in every namespace.
	Endpoints []policy.Endpoint `json:"endpoints"`
	ShortForm ShortForm         `json:"shortForm"`
}

// ShortForm has the classes of pods, and the contents of the sets of these classes.
type ShortForm struct {
	Pods []Pod `json:"pods"`
	// Classes has the classes by the names in the fields Ingress and Egress of Pods.
	Classes map[string]Class `json:"classes"`
}

// Pod is what is enforced for one address of a pod.
type Pod struct {
	ID      string     `json:"id"` // the attachment's
	Pod     string     `json:"pod"`
	Address netip.Addr `json:"address"`
	// Ingress and Egress name the classes. An empty name means that the pod is closed in that direction.
	Ingress string `json:"ingress"`
	Egress  string `json:"egress"`
}

// Class is a class with the contents of its rules' sets. The chain's name identifies the rules.
type Class struct {
	Chain    string   `json:"chain,omitempty"` // empty for pods that no policy isolates
	Policies []string `json:"policies"`
	Audited  []string `json:"audited,omitempty"`
	Sets     []Set    `json:"sets,omitempty"`
}

type Set struct {
	Name    string `json:"name"`
	Entries int    `json:"entries"`
	Digest  string `json:"digest"` // a hash of the entries without their comments; empty if there are none
}

// Equal reports whether the classes are for the same policies, with the same rules and sets.
func (c Class) Equal(o Class) bool {
	return c.Chain == o.Chain && slices.Equal(c.Policies, o.Policies) && slices.Equal(c.Sets, o.Sets)
}

// Of returns what the ruleset enforces for the endpoints. Unless peers is empty, the sets are described by the
// entries with these addresses only.
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
		const size = 15 // bytes: 120 bits, and a text without padding
		out.Digest = base32.StdEncoding.EncodeToString(sum.Sum(nil)[:size])
	}
	return out
}
