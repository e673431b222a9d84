package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type wish struct {
	namespace string
	rules     int
	sets      []string
}

func granted(room amount, wishes []wish) []bool {
	c := newCompiler(sizes{}, limits{node: room, setEntries: conf.MaxSetEntries})
	var all []*demand
	for _, w := range wishes {
		p := c.parts[w.namespace]
		if p == nil {
			p = &part{local: &local{namespace: w.namespace}, undecided: true}
			c.parts[w.namespace] = p
		}
		d := &demand{
			policy:  &parsedPolicy{namespace: w.namespace, name: w.namespace + "/np"},
			peer:    &peer{},
			ports:   &ports{},
			classes: w.rules,
			rules:   make([]familyRule, 1),
		}
		for _, name := range w.sets {
			s := c.supplies[name]
			if s == nil {
				s = &supply{Set: ruleset.Set{Name: name}, selector: &selector{key: name}}
			}
			if !slices.Contains(p.wants, s) {
				p.wants = append(p.wants, s)
				c.want(s, p)
			}
			d.sets = append(d.sets, s)
		}
		c.wanted.rules += d.cost()
		p.rules += d.cost()
		p.demands, all = append(p.demands, d), append(all, d)
	}
	c.grant()
	answers := make([]bool, len(all))
	for i, d := range all {
		answers[i] = slices.Contains(c.parts[d.policy.namespace].granted, d)
	}
	return answers
}

type sizes struct{ finder }

func (sizes) effort(*supply) float64 { return 0 }

func (sizes) countSelected(s selector, _ conf.Family) int { return len(s.key) }

func takes(wishes []wish) (a amount) {
	sets := map[string]bool{}
	for _, w := range wishes {
		a.rules += float64(w.rules)
		for _, s := range w.sets {
			if !sets[s] {
				sets[s] = true
				a.sets++
				a.entries += float64(roughly(len(s)))
			}
		}
	}
	return a
}

func TestGrant(t *testing.T) {
	room := amount{rules: 12, sets: 6, entries: 60}
	for name, tc := range map[string]struct{ wishes, want string }{
		"all fit":                                   {"a:3:x,y b:3:z", "yy"},
		"one wants everything, in small parts":      {"a:1:a1 a:1:a2 a:1:a3 a:1:a4 a:1:a5 a:1:a6 a:1:a7 z:1:z1", "yyyyynny"},
		"one wants everything at once":              {"a:1:" + strings.Repeat("a", 60) + " z:1:z1", "ny"},
		"what one doesn't need is the others'":      {"a:5: a:5: b:1:", "yyy"},
		"rules":                                     {"a:5: a:4: a:3: b:6:", "ynny"},
		"a smaller one fits where a larger doesn't": {"a:20: a:2: b:1:", "nyy"},
		"two are greedy": {
			"a:1:a1 a:1:a2 a:1:a3 a:1:a4 b:1:b1 b:1:b2 b:1:b3 b:1:b4 z:1:",
			"yyynyyyny",
		},
		"a set that they share counts once": {"a:1:s a:1:a1 b:1:s b:1:b1 z:1:s z:1:z1 z:1:z2 z:1:z3 z:1:z4", "yyyyyyyyn"},
		"more than fits, whoever asks":      {"a:13:", "n"},
	} {
		var wishes []wish
		for s := range strings.FieldsSeq(tc.wishes) {
			f := strings.SplitN(s, ":", 3)
			w := wish{namespace: f[0]}
			_, _ = fmt.Sscan(f[1], &w.rules)
			if f[2] != "" {
				w.sets = strings.Split(f[2], ",")
			}
			wishes = append(wishes, w)
		}
		var got strings.Builder
		for _, yes := range granted(room, wishes) {
			got.WriteString(map[bool]string{true: "y", false: "n"}[yes])
		}
		if got.String() != tc.want {
			t.Errorf("%s: %s: got %s, want %s", name, tc.wishes, got.String(), tc.want)
		}
	}
}

// TestGrantIsFair: the granted demands never need more than the capacity. All demands of a namespace that needs at most
// an equal share are granted. The order of the namespaces doesn't matter.
func TestGrantIsFair(t *testing.T) {
	limited := 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 0))
		room := amount{rules: float64(10 + r.IntN(40)), sets: float64(5 + r.IntN(20)), entries: float64(20 + r.IntN(200))}
		by := map[string][]wish{}
		var wishes []wish
		for range 1 + r.IntN(40) {
			w := wish{namespace: string(rune('a' + r.IntN(5))), rules: r.IntN(5)}
			for range r.IntN(3) {
				name := strings.Repeat(string(rune('a'+r.IntN(4))), 1+r.IntN(30)) // some demands need the same set
				if r.IntN(2) == 0 {
					name = fmt.Sprint(w.namespace, len(wishes))
				}
				if !slices.Contains(w.sets, name) {
					w.sets = append(w.sets, name)
				}
			}
			by[w.namespace], wishes = append(by[w.namespace], w), append(wishes, w)
		}
		answers := granted(room, wishes)
		var met []wish
		whole := true
		for i, w := range wishes {
			if answers[i] {
				met = append(met, w)
				continue
			}
			whole = false
			if takes(by[w.namespace]).share(room) <= 1/float64(len(by)) {
				t.Errorf("seed %d: of namespace %s, which wants less than its part, %+v isn't met", seed, w.namespace, w)
			}
		}
		if !takes(met).within(room) {
			t.Errorf("seed %d: what is met takes %+v of %+v", seed, takes(met), room)
		}
		if takes(wishes).within(room) != whole {
			t.Errorf("seed %d: all would have room: %v; all are met: %v", seed, takes(wishes).within(room), whole)
		}
		if !whole {
			limited++
		}
		order := r.Perm(5)
		index := make([]int, len(wishes))
		for i := range index {
			index[i] = i
		}
		slices.SortStableFunc(index, func(a, b int) int {
			return order[wishes[a].namespace[0]-'a'] - order[wishes[b].namespace[0]-'a']
		})
		other := make([]wish, len(wishes))
		for i, j := range index {
			other[i] = wishes[j]
		}
		for i, yes := range granted(room, other) {
			if yes != answers[index[i]] {
				t.Errorf("seed %d: %+v depends on the order of the namespaces", seed, other[i])
			}
		}
	}
	if limited < 1000 {
		t.Errorf("only %d of 3000 had no room for all", limited)
	}
}

func TestRoughly(t *testing.T) {
	for n := range 100_000 {
		got := roughly(n)
		if got < n || got > n+n/8 || n > 0 && got < roughly(n-1) {
			t.Fatalf("%d: %d", n, got)
		}
	}
	if a, b := roughly(10_001), roughly(10_002); a != b {
		t.Errorf("one more entry makes %d of %d", b, a)
	}
}
