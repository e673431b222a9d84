package nftables

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
	"github.com/weir-net/weir/test/nodetest"
)

func (l lowered) text() string {
	var all []string
	for _, t := range l {
		if t != nil {
			all = append(all, t.String())
		}
	}
	return strings.Join(all, "\n")
}

// TestGolden compares the lowered rulesets with testdata/NAME.nft. To write these files: go test ./netfilter/nftables
// -run Golden -update
func TestGolden(t *testing.T) {
	golden.Each(t, "../..", func(t *testing.T, name string, s policy.State) {
		golden.Compare(t, "testdata/"+name+".nft", new(lowering).lower(policy.Compile(s)).text())
	})
}

// TestNftReadsTheGoldenFiles: after nft has loaded a golden file, or after the backend has written the same tables, nft
// prints the tables as they are in the file. nft can't load rules for bridge ports, so only the backend writes these.
func TestNftReadsTheGoldenFiles(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	golden.Each(t, "../..", func(t *testing.T, name string, s policy.State) {
		file := "testdata/" + name + ".nft"
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		loads := !strings.Contains(string(data), "xt match")
		if loads {
			nodetest.Run(t, "nft", "-f", file)
			if diff := cmp.Diff(unwrapped(string(data)), listed(t)); diff != "" {
				t.Errorf("loaded by nft: -%s +as nft prints it\n%s", file, diff)
			}
			nodetest.Run(t, "nft", "flush", "ruleset")
		}
		if err := makePlan(state{}, new(lowering).lower(policy.Compile(s)), false).batch.Commit(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(unwrapped(string(data)), listed(t)); diff != "" {
			t.Errorf("written by the backend: -%s +as nft prints it\n%s", file, diff)
		}
		path := filepath.Join(t.TempDir(), "printed.nft")
		if err := os.WriteFile(path, []byte(listed(t)), 0o600); err != nil {
			t.Fatal(err)
		}
		nodetest.Run(t, "nft", "flush", "ruleset")
		if loads {
			nodetest.Run(t, "nft", "-f", path)
			nodetest.Run(t, "nft", "flush", "ruleset")
		}
	})
}

func listed(t *testing.T) string {
	t.Helper()
	all := listings(t)
	return strings.Join(slices.DeleteFunc(all[:], func(table string) bool { return table == "" }), "\n")
}

func listings(t *testing.T) (all [len(conf.Families)]string) {
	t.Helper()
	for _, f := range conf.Families {
		out, err := exec.Command("nft", "--stateless", "list", "table", (&statement{family: f}).ip(), tableName).Output()
		if err == nil {
			all[f] = strings.ReplaceAll(unwrapped(string(out)), "priority mangle;", "priority -150;")
		}
	}
	return all
}

var (
	listOfElements = regexp.MustCompile(`(?s)elements = \{ (.*?) \}\n`)
	element        = regexp.MustCompile(`(?:"[^"]*"|[^,"\s])(?:"[^"]*"|[^,"])*`)
)

func unwrapped(text string) string {
	return listOfElements.ReplaceAllStringFunc(text, func(found string) string {
		all := element.FindAllString(listOfElements.FindStringSubmatch(found)[1], -1)
		slices.Sort(all)
		return "elements = { " + strings.Join(all, ", ") + " }\n"
	})
}

func sorted(text string) string {
	all := strings.Split(text, "\n\n")
	for i, object := range all {
		all[i] = strings.TrimSuffix(strings.TrimSpace(object), "\n}")
	}
	slices.Sort(all)
	return strings.Join(all, "\n\n")
}

// TestWithoutPorts: if the kernel can't match bridge ports, no rule with a bridge port allows anything.
func TestWithoutPorts(t *testing.T) {
	port := func(r ruleset.Rule) ruleset.Rule { r.InPort = "veth1"; return r }
	c := ruleset.Chain{Name: conf.PortsChain, Rules: []ruleset.Rule{
		port(ruleset.Rule{Action: ruleset.Return}), port(ruleset.Rule{Action: ruleset.Drop}),
		port(ruleset.Rule{Action: ruleset.GoTo, To: "WEIR-X"}),
		{Action: ruleset.Return},
	}}
	var text []string
	rules, _ := lowerRules(c, nil, lacks{ports: true})
	for _, r := range rules {
		_, words := r.write(conf.IPv4)
		text = append(text, words)
	}
	if want := []string{"counter drop", "goto WEIR-X", "return"}; !slices.Equal(text, want) {
		t.Errorf("got %q, want %q", text, want)
	}
}

// TestSets: Sets returns the same sets and maps that lowering makes.
func TestSets(t *testing.T) {
	check := func(name string, s policy.State) {
		r := policy.Compile(s)
		var want, got []string
		for _, of := range new(lowering).lower(r) {
			if of == nil {
				continue
			}
			for _, s := range of.sets {
				want = append(want, fmt.Sprint(s.Name, s.Layout.In(of.family), s.entries.Len()))
			}
		}
		for _, s := range new(Driver).Sets(r) {
			got = append(got, fmt.Sprint(s.Name, s.Type, s.Entries))
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -in the kernel +Sets\n%s", name, diff)
		}
	}
	golden.Each(t, "../..", func(_ *testing.T, name string, s policy.State) { check(name, s) })
	for i := range uint64(200) {
		check(fmt.Sprint("state ", i), policytest.State(rand.New(rand.NewPCG(2, i))))
	}
}
