//go:build npguard

package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/reach"
	"github.com/weir-net/weir/policy/ruleset"
)

var corpus = flag.String("np-guard", "", "a checkout of github.com/np-guard/netpol-analyzer")

// TestPublishedConnectivity: matrices show the same connections as the results that another analyzer, np-guard's
// netpol-analyzer, publishes for its own test cases. The test needs a checkout of that project:
//
//	git clone https://github.com/np-guard/netpol-analyzer /tmp/netpol-analyzer
//	go test -tags npguard ./plugins/weirctl -run TestPublishedConnectivity -np-guard /tmp/netpol-analyzer -v
//
// Cases with policies that weir doesn't enforce are left out. Like the analyzer, the test counts pods of the host
// network as ordinary pods, and no ipBlock contains a pod.
func TestPublishedConnectivity(t *testing.T) {
	const end = "_connlist_output.txt"
	files, err := filepath.Glob(filepath.Join(*corpus, "test_outputs/connlist/*"+end))
	if err != nil || len(files) == 0 {
		t.Fatalf("no published connectivity in %s: %v", *corpus, err)
	}
	cases, pairs, left := 0, 0, 0
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), end)
		dir := filepath.Join(*corpus, "tests", name)
		text, err := os.ReadFile(f)
		if _, missing := os.Stat(dir); missing != nil || err != nil {
			continue // a file without a directory of manifests is the output of another command of the analyzer
		}
		want, ok := readPublished(string(text))
		s := client.Source{Place: "dir:" + dir}
		c, err := s.Load(t.Context())
		// In the cases labels_gap, pods of one workload have different labels, and the analyzer shows the workload only
		// once. So these cases are left out.
		ok = ok && !strings.Contains(name, "labels_gap")
		if !ok || err != nil || len(c.Unenforced) > 0 || len(c.Pods) == 0 {
			left++
			continue
		}
		cases++
		pairs += want.compare(t, dir, c.State())
	}
	t.Logf("left out: %d", left)
	if !t.Failed() {
		fmt.Printf("reach-np-guard: %d cases, %d pairs of workloads, 0 differences\n", cases, pairs)
	}
}

type published struct {
	lines []publishedLine
}

type publishedLine struct {
	from, to publishedEnd
	ports    reach.Ports
}

type publishedEnd struct {
	name        string // a pod's namespace/name
	first, last netip.Addr
}

var publishedFormat = regexp.MustCompile(`^(.+) => (.+) : (.+)$`)

func readPublished(text string) (p published, ok bool) {
	if regexp.MustCompile(`\[(UDN|CUDN|NAD|udn|VirtualMachine)\]|analyzed in`).MatchString(text) {
		return p, false
	}
	for line := range strings.Lines(text) {
		m := publishedFormat.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || strings.Contains(line, "{ingress-controller}") {
			continue
		}
		ports := publishedPorts(m[3])
		for _, from := range publishedEnds(m[1]) {
			for _, to := range publishedEnds(m[2]) {
				p.lines = append(p.lines, publishedLine{from, to, ports})
			}
		}
	}
	return p, true
}

// publishedEnds reads "namespace/name[Kind]" or "ADDRESS-ADDRESS,ADDRESS-ADDRESS[External]".
func publishedEnds(text string) (all []publishedEnd) {
	ranges, external := strings.CutSuffix(text, "[External]")
	if !external {
		name, _, _ := strings.Cut(text, "[")
		return []publishedEnd{{name: name}}
	}
	for r := range strings.SplitSeq(ranges, ",") {
		first, last, _ := strings.Cut(r, "-")
		if last == "" {
			last = first
		}
		all = append(all, publishedEnd{first: netip.MustParseAddr(first), last: netip.MustParseAddr(last)})
	}
	return all
}

// publishedPorts reads "All Connections" or "TCP 80,443,UDP 1-65535".
func publishedPorts(text string) (p reach.Ports) {
	if text == "All Connections" {
		p = reach.Every
		p.Other = false
		return p
	}
	var into *[]ruleset.PortRange
	for item := range strings.SplitSeq(text, ",") {
		word, numbers, named := strings.Cut(strings.TrimSpace(item), " ")
		switch {
		case !named:
			numbers = word
		case word == "TCP":
			into = &p.TCP
		case word == "UDP":
			into = &p.UDP
		default:
			into = &p.SCTP
		}
		first, last, isRange := strings.Cut(numbers, "-")
		if !isRange {
			last = first
		}
		a, _ := strconv.Atoi(first)
		b, _ := strconv.Atoi(last)
		*into = append(*into, ruleset.PortRange{First: uint16(a), Last: uint16(b)})
	}
	return p
}

func (p published) allowed(from, to publishedEnd) string {
	is := func(line, asked publishedEnd) bool {
		if asked.name != "" {
			return line.name == asked.name
		}
		return line.first.IsValid() && line.first.Compare(asked.first) <= 0 && asked.first.Compare(line.last) <= 0
	}
	for _, l := range p.lines {
		if is(l.from, from) && is(l.to, to) {
			return l.ports.String()
		}
	}
	return "nothing"
}

func (p published) compare(t *testing.T, dir string, s policy.State) (pairs int) {
	name, owners := filepath.Base(dir), owners(dir)
	s.Pods = slices.Clone(s.Pods)
	for i := range s.Pods {
		s.Pods[i].Addresses, s.Pods[i].HostNetwork = nil, false
	}
	m := reach.New(s, nil)
	ends := map[publishedEnd]int{}
	for i, party := range m.Parties {
		for _, pod := range party.Pods {
			name := party.Namespace + "/" + pod
			if owner, ok := owners[name]; ok {
				name = owner
			}
			ends[publishedEnd{name: name}] = i
		}
	}
	addresses := []netip.Addr{netip.MustParseAddr("0.0.0.0")}
	for _, l := range p.lines {
		for _, e := range []publishedEnd{l.from, l.to} {
			if e.name == "" {
				addresses = append(addresses, e.first)
				if next := e.last.Next(); next.IsValid() {
					addresses = append(addresses, next)
				}
			}
		}
	}
	for _, party := range m.Parties {
		for _, n := range party.Networks {
			addresses = append(addresses, n.Addr())
		}
	}
	for _, a := range addresses {
		if i, ok := m.PartyOf(a); ok && a.Is4() {
			ends[publishedEnd{first: a}] = i
		}
	}
	for from, i := range ends {
		for to, j := range ends {
			if from.name == "" && to.name == "" || from == to {
				continue
			}
			pairs++
			got := "nothing"
			if ports := m.Between(i, j)[0]; ports != nil {
				ports.Other = false
				got = ports.String()
			}
			if want := p.allowed(from, to); got != want {
				t.Errorf("%s: from %v to %v: %s, published: %s", name, from, to, got, want)
			}
		}
	}
	return pairs
}

// owners returns the owner of each object that has one. Objects and owners are written as NAMESPACE/NAME.
func owners(dir string) map[string]string {
	by := map[string]string{}
	type object struct {
		Kind     string            `json:"kind"`
		Metadata metav1.ObjectMeta `json:"metadata"`
	}
	add := func(o object) {
		if o.Metadata.Namespace == "" {
			o.Metadata.Namespace = "default"
		}
		for _, owner := range o.Metadata.OwnerReferences {
			if owner.Kind == "Node" {
				continue
			}
			by[o.Metadata.Namespace+"/"+o.Metadata.Name] = o.Metadata.Namespace + "/" + owner.Name
		}
	}
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error {
		text, _ := os.ReadFile(path)
		for document := range strings.SplitSeq(string(text), "\n---") {
			var list struct {
				object
				Items []object `json:"items"`
			}
			if yaml.Unmarshal([]byte(document), &list) == nil {
				for _, o := range append(list.Items, list.object) {
					add(o)
				}
			}
		}
		return nil
	})
	return by
}
